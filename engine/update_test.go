package engine

import (
	"errors"
	"testing"

	"github.com/longshore/longshore/internal/cgroup"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestUpdatesSpareTheContainer: cgroup2 would kill a container for a limit below
// what it uses, so an update always has it looked at first.
func TestUpdatesSpareTheContainer(t *testing.T) {
	limit := int64(1)
	set := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if got := sparing(set).Memory.CheckBeforeUpdate; got == nil || !*got {
		t.Error("the usage is not looked at")
	}
	if set.Memory.CheckBeforeUpdate != nil {
		t.Error("what was asked for is changed")
	}
	if got := sparing(&specs.LinuxResources{}); got.Memory != nil {
		t.Error("memory is touched where it is not asked for")
	}
}

func TestHugePagesNeedTheirController(t *testing.T) {
	without := &cgroup.Host{Trees: []cgroup.Tree{{Controllers: []string{"memory"}}}}
	with := &cgroup.Host{Trees: []cgroup.Tree{{Controllers: []string{"hugetlb"}}}}
	some := &Resources{HugePages: map[string]uint64{"1GB": 0, "2MB": 1}}
	none := &Resources{HugePages: map[string]uint64{"1GB": 0, "2MB": 0}}
	if err := checkHugePages(without, some); !errors.Is(err, ErrInvalid) {
		t.Errorf("a limit without the controller: %v", err)
	}
	for _, err := range []error{checkHugePages(with, some), checkHugePages(without, none), checkHugePages(without, nil)} {
		if err != nil {
			t.Error(err)
		}
	}
}
