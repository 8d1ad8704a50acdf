package oci

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestFiltersAreKept: a profile is compiled once, for exec too, and where it is
// kept is no container.
func TestFiltersAreKept(t *testing.T) {
	if err := checkID(filters); err == nil {
		t.Errorf("a container may be named %s", filters)
	}
	f := newFixture(t, "wait")
	f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{Names: []string{"bpf"}, Action: specs.ActErrno}}}
	f.create()
	f.ok("start", f.id)
	f.ok("exec", f.id, "/probe", "exit", "0")
	kept, err := os.ReadDir(filepath.Join(f.root, filters))
	if err != nil || len(kept) != 1 {
		t.Errorf("%d profiles are kept, %v", len(kept), err)
	}
	if list := f.ok("list", "-q"); list != f.id+"\n" {
		t.Errorf("list: %q", list)
	}
}
