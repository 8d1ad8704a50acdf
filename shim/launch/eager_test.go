package launch

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestEager: a process that nobody is to hold up runs by itself, and its start
// says what came of it; where somebody is to act in between, it waits.
func TestEager(t *testing.T) {
	for _, tt := range []struct {
		name, want string // of Start's error
		set        func(f *fixture)
		waits      bool
	}{
		{"runs", "", func(*fixture) {}, false},
		{"with a terminal", "", func(f *fixture) { f.spec.Process.Terminal = true }, false},
		{"no such command", "no such file", func(f *fixture) { f.spec.Process.Args = []string{"none"} }, false},
		{"no such directory", "not a directory", func(f *fixture) { f.spec.Process.Cwd = "/probe" }, false},
		{"start hook", "", func(f *fixture) {
			f.spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/probe", Args: []string{"/probe", "exit", "0"}}}}
		}, true},
		{"create hook", "", func(f *fixture) { f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}} }, true},
	} {
		f := newFixture(t, "exit", "7")
		tt.set(f)
		f.cfg.Eager = true
		born := 0
		f.cfg.Born = func(p *Process) error {
			born = p.Pid()
			return nil
		}
		c, err := Create(f.cfg)
		if err != nil { // it may have failed before Create was done
			if tt.want == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: create: %v, want %q", tt.name, err, tt.want)
			}
			continue
		}
		if born != c.Init().Pid() || c.pending.eager == tt.waits {
			t.Errorf("%s: told of process %d, it is %d; eager %v", tt.name, born, c.Init().Pid(), c.pending.eager)
		}
		err = c.Start()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: start: %v, want %q", tt.name, err, tt.want)
		}
		if status, waitErr := c.Init().Wait(); err == nil && (waitErr != nil || status.ExitStatus() != 7) {
			t.Errorf("%s: status %#x, %v", tt.name, status, waitErr)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestBornMayRefuse: the process is ended, and nothing is left.
func TestBornMayRefuse(t *testing.T) {
	f := newFixture(t, "exit", "7")
	refused, pid := errors.New("refused"), 0
	f.cfg.Born = func(p *Process) error {
		pid = p.Pid()
		return refused
	}
	if _, err := Create(f.cfg); !errors.Is(err, refused) {
		t.Errorf("create: %v", err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d: %v", pid, err)
	}
}
