package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// stop is a program that stops whatever appears in its pid namespace.
func stop() {
	first, _ := strconv.Atoi(lastPid())
	fmt.Println("ready")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	first += 50 // beyond the threads of this one
	for {
		last, _ := strconv.Atoi(lastPid())
		for pid := max(first, last); pid < max(first, last)+4; pid++ {
			unix.Kill(pid, unix.SIGSTOP)
		}
	}
}

// TestExecOfAStoppedChild: root of the container stops the child of an exec, which
// ends with an error and leaves nothing. Without launchTimeout it hangs.
func TestExecOfAStoppedChild(t *testing.T) {
	f := newFixture(t, "stop")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	old := launchTimeout
	defer func() { launchTimeout = old }()
	launchTimeout = 300 * time.Millisecond
	p := *f.spec.Process
	p.Args = []string{"/probe", "exit", "0"}
	for range 5000 {
		proc, err := c.Exec(&p, Stdio{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		proc.kill()
	}
	t.Error("no child was stopped before its execve")
}

// TestExecScore: a process has its oom_score_adj from its first instruction, and
// this process keeps its own.
func TestExecScore(t *testing.T) {
	for _, way := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"shared memory", func(*fixture) {}},
		{"memory of its own", func(*fixture) { kernel.noSharedMemory = true }},
		{"born late", (*fixture).mayTrace},
		{"user namespace", func(f *fixture) { f.userNS("") }},
	} {
		t.Run(way.name, func(t *testing.T) {
			f := newFixture(t, "wait")
			old := kernel
			defer func() { kernel = old }()
			way.set(f)
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			own, score := ownScore(), 321
			f.spec.Process.OOMScoreAdj = &score
			var written []string
			fault := kernel.fault
			kernel.fault = func(what string) bool {
				written = append(written, what)
				return fault != nil && fault(what)
			}
			if out := f.exec(c, "read", "/proc/self/oom_score_adj"); !strings.Contains(out, `"321\n"`) {
				t.Errorf("sees %s", out)
			}
			exec := slices.Index(written, "exec /probe")
			if at := slices.Index(written, "write oom_score_adj 321"); at < 0 || at > exec {
				t.Errorf("operations: %s", strings.Join(written, ", "))
			}
			if now := ownScore(); now != own {
				t.Errorf("our own score was %s and is %s", own, now)
			}
		})
	}
}

// TestWarnings: a process runs without what nobody can grant, and that is told once.
func TestWarnings(t *testing.T) {
	f := newFixture(t, "wait")
	caps := f.spec.Process.Capabilities
	caps.Bounding = append([]string{"CAP_NONSENSE"}, caps.Bounding...)
	var told []string
	f.cfg.Warn = func(err error) { told = append(told, err.Error()) }
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if r := decode(t, f.exec(c, "report")); r.Status["CapBnd"] != "00000000a80425fb" {
		t.Errorf("capabilities %s", r.Status["CapBnd"])
	}
	if len(told) != 1 || !strings.Contains(told[0], `process.capabilities: ["CAP_NONSENSE"] cannot be granted`) {
		t.Errorf("told %q", told)
	}
	own, err := ownCaps()
	if err != nil || own.permitted&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return // limits can be raised here
	}
	low, raised := -1000, []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 1 << 40, Hard: 1 << 40}}
	f.spec.Process.OOMScoreAdj, f.spec.Process.Rlimits = &low, raised
	f.exec(c, "report")
	if len(told) != 3 || !strings.Contains(told[1], "RLIMIT_NPROC") || !strings.Contains(told[2], "process.oomScoreAdj") {
		t.Errorf("told %q", told)
	}
}
