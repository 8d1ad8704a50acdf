package fault

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
)

func TestKnown(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("pull x: %w", ErrCorrupt), true},
		{fmt.Errorf("pull x: %w: deep", fmt.Errorf("%w", ErrNotFound)), true},
		{io.EOF, false},
		{nil, false},
	} {
		if got := Known(c.err); got != c.want {
			t.Errorf("Known(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestIsFull(t *testing.T) {
	if !IsFull(&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}) || IsFull(syscall.EIO) {
		t.Error("IsFull does not tell a full disk from a broken one")
	}
}
