package dump

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestInterruptedListIsAskedForAgain(t *testing.T) {
	asked := 0
	all, err := Whole(func() ([]int, error) {
		if asked++; asked < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(all) != 2 || asked != 3 {
		t.Errorf("%v, %v, asked %d times", all, err, asked)
	}
	asked = 0
	if all, err = Whole(func() ([]int, error) { asked++; return []int{1}, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) || all != nil {
		t.Errorf("a list that is never whole: %v, %v", all, err)
	}
	broken := errors.New("broken")
	asked = 0
	if _, err = Whole(func() ([]int, error) { asked++; return nil, broken }); !errors.Is(err, broken) || asked != 1 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}
