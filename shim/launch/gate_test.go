package launch

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loaded creates a container with a gate and gives it as another process
// would load it. The one that made it ends it.
func (f *fixture) loaded() (made, other *Container) {
	f.t.Helper()
	f.cfg.Gate = f.t.TempDir()
	made = f.create()
	started, err := made.Init().StartTime()
	if err != nil {
		f.t.Fatal(err)
	}
	if waits, err := Waiting(f.cfg.Gate, made.Init().Pid()); err != nil || !waits {
		f.t.Fatal("does not wait at its gate", err)
	}
	// The maker's end goes as it does when the maker ends.
	made.pending.link.close()
	if other, err = Load(f.cfg, made.Init().Pid(), started); err != nil {
		f.t.Fatal(err)
	}
	return made, other
}

func TestGateOutlivesItsMaker(t *testing.T) {
	f := newFixture(t, "report")
	made, c := f.loaded()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f.in.Close()
	out, err := io.ReadAll(f.out)
	if err != nil {
		t.Fatal(err)
	}
	checkDefaults(t, decode(t, string(out)))
	if err := c.Init().WaitEnd(endTimeout); err != nil || !c.Init().Ended() {
		t.Errorf("end of the process: %v", err)
	}
	if left, _ := os.ReadDir(f.cfg.Gate); len(left) > 0 {
		t.Errorf("the gate is left: %v", left)
	}
	if status, err := made.Init().Wait(); err != nil || status != 0 {
		t.Errorf("status %#x, %v", status, err)
	}
	if err := c.Start(); !errors.Is(err, unix.EALREADY) {
		t.Errorf("second start: %v", err)
	}
}

func TestGateTellsWhatFailedBehindIt(t *testing.T) {
	f := newFixture(t, "report")
	f.write("bin/odd", "no program", 0o755)
	f.spec.Process.Args = []string{"odd"}
	_, c := f.loaded()
	err := c.Start()
	if !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), `exec "odd": exec format error`) {
		t.Errorf("start: %v", err)
	}
	if !c.Init().Ended() {
		t.Error("the process has not ended")
	}
}

// TestCreateLooksForTheCommand: with a gate that stays, callers are those of an
// OCI runtime, and want to know before the start.
func TestCreateLooksForTheCommand(t *testing.T) {
	for _, tt := range []struct {
		command, want string
		errno         unix.Errno
	}{
		{"nowhere", `exec "nowhere": executable file not found in $PATH`, unix.ENOENT},
		{"/no/such", `exec "/no/such": no such file or directory`, unix.ENOENT},
		{"/etc/passwd", `exec "/etc/passwd": permission denied`, unix.EACCES},
	} {
		f := newFixture(t)
		f.cfg.Gate = t.TempDir()
		f.spec.Process.Args = []string{tt.command}
		c, err := Create(f.cfg)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, tt.errno) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("create: %v, want %s", err, tt.want)
		}
		if left, _ := os.ReadDir(f.cfg.Gate); len(left) > 0 {
			t.Errorf("the gate is left: %v", left)
		}
	}
}

func TestStartOfDeadProcessAtGate(t *testing.T) {
	f := newFixture(t, "report")
	made, c := f.loaded()
	if err := made.Init().Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Init().WaitEnd(endTimeout); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start: %v", err)
	}
}

func TestLoadedContainerRunsOthers(t *testing.T) {
	f := newFixture(t, "wait")
	_, c := f.loaded()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if waits, err := Waiting(f.cfg.Gate, c.Init().Pid()); err != nil || waits {
		t.Error("counts as waiting after its start")
	}
	for name, terminal := range map[string]bool{"streams": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			p := *f.spec.Process
			p.Args, p.Terminal = []string{"/probe", "report"}, terminal
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			proc, err := c.Exec(&p, Stdio{Stdout: w})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if terminal {
				r.Close()
				r = proc.Console()
			}
			out, err := io.ReadAll(r)
			if err != nil && !errors.Is(err, unix.EIO) {
				t.Fatal(err)
			}
			if status, err := proc.Wait(); err != nil || status != 0 {
				t.Fatalf("status %#x, %v", status, err)
			}
			rep := decode(t, string(out))
			if rep.Pid == 1 || rep.Exe != "/probe" || rep.NS["mnt"] == ownNS(t, "mnt") || rep.NS["pid"] == ownNS(t, "pid") {
				t.Errorf("pid %d, program %s, namespaces %v", rep.Pid, rep.Exe, rep.NS)
			}
			if rep.Status["Seccomp"] != "0" || rep.Status["CapEff"] != "00000000a80425fb" {
				t.Errorf("seccomp %s, capabilities %s", rep.Status["Seccomp"], rep.Status["CapEff"])
			}
		})
	}
}

// TestFindProcessKnowsAPid: the number alone does not make the process.
func TestFindProcessKnowsAPid(t *testing.T) {
	self := &Process{pid: os.Getpid()}
	started, err := self.StartTime()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		pid     int
		started uint64
		found   bool
	}{
		"itself":                 {os.Getpid(), started, true},
		"another with the id":    {os.Getpid(), started + 1, false},
		"none":                   {0, 0, false},
		"beyond the largest pid": {1 << 30, started, false},
	} {
		p, err := FindProcess(tc.pid, tc.started)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Ended() == tc.found || tc.found != (p.Pid() != 0) {
			t.Errorf("%s: pid %d, ended %v", name, p.Pid(), p.Ended())
		}
	}
}

func FuzzParseStartTime(f *testing.F) {
	self, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add([]byte("1 (a) b) S 1 2"))
	f.Fuzz(func(t *testing.T, stat []byte) { _, _ = parseStartTime(stat) })
}

func TestParseStartTime(t *testing.T) {
	line := "77 (a) 9 (x) S 1 77 77 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 123456 1 2 3\n"
	if got, err := parseStartTime([]byte(line)); err != nil || got != 123456 {
		t.Errorf("%d, %v", got, err)
	}
}

// TestGateOfAnotherDirectory: a descriptor is the gate only if it is that file.
func TestGateOfAnotherDirectory(t *testing.T) {
	held, err := holdsGate(t.TempDir(), os.Getpid(), 0)
	waits, noErr := Waiting(filepath.Join(t.TempDir(), "none"), os.Getpid())
	if held || waits || err != nil || noErr != nil {
		t.Error("a stranger stands at the gate")
	}
}
