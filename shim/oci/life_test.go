package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestLifeOfAContainer(t *testing.T) {
	f := newFixture(t, "wait")
	f.spec.Annotations = map[string]string{"a": "b"}
	in, out := f.create()
	r := f.wantStatus(specs.StateCreated)
	if r.ID != f.id || r.Bundle != f.bundle || r.Pid == 0 || r.Annotations["a"] != "b" || r.Rootfs != filepath.Join(f.bundle, "rootfs") {
		t.Errorf("state %+v", r)
	}
	f.fails("exists already", "create", "--bundle", f.bundle, f.id)
	f.fails("not stopped", "delete", f.id)
	f.wantStatus(specs.StateCreated)
	f.ok("start", f.id)
	if line := readLine(t, out); line != "waiting" {
		t.Errorf("the program says %q", line)
	}
	if r := f.wantStatus(specs.StateRunning); r.Pid == 0 {
		t.Error("a running container has no pid")
	}
	f.fails("not created", "start", f.id)
	f.fails("not stopped", "delete", f.id)
	if list := f.ok("list", "--format", "json"); !strings.Contains(list, `"id":"c1"`) {
		t.Errorf("list: %s", list)
	}
	in.Close()
	if status := reap(t, r.Pid); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("status %#x", status)
	}
	if r := f.wantStatus(specs.StateStopped); r.Pid != 0 {
		t.Errorf("a stopped container has pid %d", r.Pid)
	}
	f.fails("container not running", "kill", f.id, "KILL")
	f.fails("not created", "start", f.id)
	f.fails("stopped", "update", "--pids-limit", "3", f.id)
	f.ok("delete", f.id)
	f.fails("does not exist", "state", f.id)
	f.fails("does not exist", "delete", f.id)
	f.ok("delete", "--force", f.id)
	if list := f.ok("list", "-q"); list != "" {
		t.Errorf("list: %s", list)
	}
}

// TestKillReachesAllOfASharedPidNamespace: there the kernel ends nobody with the
// first process, neither before it has ended nor after.
func TestKillReachesAllOfASharedPidNamespace(t *testing.T) {
	f := newFixture(t, "wait")
	f.spec.Linux.Namespaces = slices.DeleteFunc(f.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace
	})
	_, out := f.create()
	f.ok("start", f.id)
	readLine(t, out)
	exec := func() int {
		file := filepath.Join(t.TempDir(), "pid")
		f.ok("exec", "--detach", "--pid-file", file, f.id, "/probe", "trap")
		return readPid(t, file)
	}
	first, pid := f.state().Pid, exec()
	f.ok("kill", f.id, "KILL")
	for _, pid := range []int{first, pid} {
		if status := reap(t, pid); status.Signal() != unix.SIGKILL {
			t.Errorf("process %d ended with %#x", pid, status)
		}
	}
	f.wantStatus(specs.StateStopped)
	f.ok("delete", f.id)
}

// TestOptionsOfEverySuperblock: the kernel takes them of every filesystem, so that
// they are among the options that features names.
func TestOptionsOfEverySuperblock(t *testing.T) {
	f := newFixture(t, "wait")
	for _, options := range [][]string{{"dirsync", "lazytime", "mand", "sync"}, {"async", "nolazytime", "nomand"}} {
		f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/tmp/" + options[0], Type: "tmpfs", Options: options})
	}
	f.create()
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", f.state().Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " /tmp/dirsync ") {
			if !strings.Contains(line, "rw,sync,dirsync,lazytime") && !strings.Contains(line, "rw,sync,dirsync,mand,lazytime") {
				t.Error(line)
			}
			return
		}
	}
	t.Errorf("not mounted:\n%s", mounts)
}

func TestKillReachesTheProgram(t *testing.T) {
	f := newFixture(t, "trap")
	_, out := f.create()
	f.ok("start", f.id)
	readLine(t, out)
	f.fails("invalid argument", "kill", f.id, "NOSUCH")
	f.ok("kill", f.id, "USR1")
	if line := readLine(t, out); line != "user defined signal 1" {
		t.Errorf("the program got %q", line)
	}
}

// TestKillEndsAWaitingContainer: the first process of a pid namespace would be
// spared by SIGTERM, and one at the gate holds all signals back.
func TestKillEndsAWaitingContainer(t *testing.T) {
	for _, args := range [][]string{{"kill", "c1"}, {"kill", "c1", "TERM"}, {"kill", "--all", "c1", "15"}, {"kill", "c1", "SIGKILL"}} {
		f := newFixture(t, "wait")
		f.create()
		pid := f.state().Pid
		f.ok("kill", f.id, "WINCH")
		f.wantStatus(specs.StateCreated)
		f.ok(args...)
		reap(t, pid)
		f.wantStatus(specs.StateStopped)
		f.ok("delete", f.id)
	}
}

func TestDeleteByForce(t *testing.T) {
	for name, started := range map[string]bool{"created": false, "running": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "wait")
			f.create()
			if started {
				f.ok("start", f.id)
			}
			f.ok("delete", "--force", f.id)
			if f.exists() {
				t.Error("the state is left")
			}
		})
	}
}

func TestStartTellsWhatFailed(t *testing.T) {
	f := newFixture(t)
	if err := os.WriteFile(filepath.Join(f.bundle, "rootfs", "odd"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.spec.Process.Args = []string{"/odd"}
	f.create()
	f.fails(`"/odd": exec format error`, "start", f.id)
	f.wantStatus(specs.StateStopped)
	f.ok("delete", f.id)
}

func TestCreateTellsThatThereIsNoCommand(t *testing.T) {
	f := newFixture(t)
	f.spec.Process.Args = []string{"nowhere"}
	f.write()
	f.fails(`"nowhere": executable file not found in $PATH`, "create", "--bundle", f.bundle, f.id)
	if f.exists() {
		t.Error("the state is left")
	}
}

func TestContainerWithoutProcess(t *testing.T) {
	f := newFixture(t)
	f.spec.Process = nil
	f.create()
	f.wantStatus(specs.StateCreated)
	f.fails("no process", "start", f.id)
	f.wantStatus(specs.StateStopped)
	f.ok("delete", f.id)
}

// TestOneStartWins: the program runs once, however many want to start it.
func TestOneStartWins(t *testing.T) {
	f := newFixture(t, "wait")
	f.create()
	var starts sync.WaitGroup
	status := make([]int, 4)
	for i := range status {
		cmd := f.command("start", f.id)
		starts.Go(func() {
			_ = cmd.Run()
			status[i] = cmd.ProcessState.ExitCode()
		})
	}
	starts.Wait()
	won := 0
	for _, s := range status {
		if s == 0 {
			won++
		}
	}
	if won != 1 {
		t.Errorf("statuses %v", status)
	}
}

// TestStrangerWithThePid: a process that got the id later is left alone.
func TestStrangerWithThePid(t *testing.T) {
	f := newFixture(t, "wait")
	f.create()
	pid := f.state().Pid
	f.edit(func(r *record) { r.Started++ })
	f.wantStatus(specs.StateStopped)
	f.fails("container not running", "kill", f.id, "KILL")
	f.edit(func(r *record) { r.Started-- })
	if r := f.wantStatus(specs.StateCreated); r.Pid != pid {
		t.Errorf("pid %d, want %d", r.Pid, pid)
	}
}

// edit changes the recorded state.
func (f *fixture) edit(change func(*record)) {
	f.t.Helper()
	name := filepath.Join(f.root, f.id, stateFile)
	data, err := os.ReadFile(name)
	if err != nil {
		f.t.Fatal(err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		f.t.Fatal(err)
	}
	change(&r)
	if data, err = json.Marshal(r); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// TestMakerThatDied: what a killed create has left can be seen and removed.
func TestMakerThatDied(t *testing.T) {
	for name, wrote := range map[string]bool{"before the state": false, "after the state": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "wait")
			dir := filepath.Join(f.root, f.id)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if wrote {
				data, _ := json.Marshal(record{ID: f.id, Cgroup: f.group})
				if err := os.WriteFile(filepath.Join(dir, stateFile), data, 0o600); err != nil {
					t.Fatal(err)
				}
				f.wantStatus(specs.StateStopped)
				lock, err := os.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
					t.Fatal(err)
				}
				f.wantStatus(specs.StateCreating)
				lock.Close()
			} else {
				f.fails("does not exist", "state", f.id)
				f.create() // the name is free
				f.ok("delete", "--force", f.id)
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			f.ok("delete", "--force", f.id)
			if f.exists() {
				t.Error("the state is left")
			}
		})
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	f := newFixture(t, "wait")
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs", Source: "none"})
	f.write()
	log := filepath.Join(t.TempDir(), "log")
	_, text, status := f.run("--log", log, "--log-format", "json", "create", "--bundle", f.bundle, f.id)
	if status != 1 || !strings.Contains(text, "nosuchfs") {
		t.Errorf("status %d: %s", status, text)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var line struct{ Level, Msg, Time string }
	if err := json.Unmarshal(data, &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "nosuchfs") || line.Time == "" {
		t.Errorf("log %s: %v", data, err)
	}
	if f.exists() {
		t.Error("the state is left")
	}
}

func TestRunGivesTheStatus(t *testing.T) {
	f := newFixture(t, "exit", "7")
	f.write()
	if _, text, status := f.run("run", "--bundle", f.bundle, f.id); status != 7 {
		t.Errorf("status %d: %s", status, text)
	}
	if f.exists() {
		t.Error("the state is left")
	}
	if _, _, status := f.run("run", "--keep", "--bundle", f.bundle, f.id); status != 7 || !f.exists() {
		t.Errorf("status %d with --keep", status)
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1} { // one that ends a Go program by itself, one that does not
		f := newFixture(t, "trap")
		f.write()
		cmd := f.command("run", "--bundle", f.bundle, f.id)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readLine(t, out)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(out); err != nil || string(text) != sig.String()+"\n" {
			t.Errorf("%q, %v", text, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestWaitingForNobody: a command that has no process to pass signals on to is
// itself ended by them.
func TestWaitingForNobody(t *testing.T) {
	f := newFixture(t, "wait")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/cat", Args: []string{"cat", fifo}}}}
	f.write()
	cmd := f.command("create", "--bundle", f.bundle, f.id)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hook, err := os.OpenFile(fifo, os.O_WRONLY, 0) // once it runs
	if err != nil {
		t.Fatal(err)
	}
	defer hook.Close()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGTERM {
		t.Errorf("it ended with %#x", status)
	}
}

func TestRunDetached(t *testing.T) {
	f := newFixture(t, "wait")
	f.write()
	pidFile := filepath.Join(t.TempDir(), "pid")
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := f.command("run", "-d", "--pid-file", pidFile, "-b", f.bundle, f.id)
	cmd.Stdin = in
	if _, text, status := f.finish(cmd); status != 0 {
		t.Fatalf("status %d: %s", status, text)
	}
	in.Close()
	if r := f.wantStatus(specs.StateRunning); r.Pid != readPid(t, pidFile) {
		t.Errorf("pid %d is not the file's", r.Pid)
	}
}

// TestStateDuringSetUp: a container whose process is just set up is being created.
func TestStateDuringSetUp(t *testing.T) {
	f := newFixture(t, "exit", "0")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := filepath.Join(t.TempDir(), "seen")
	f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf("%s --root %s state %s >%s", self, f.root, f.id, seen)}, Env: []string{commandEnv + "=1"},
	}}}
	f.write()
	for _, verb := range []string{"create", "run"} {
		f.ok(verb, "--bundle", f.bundle, f.id)
		text, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		var r report
		if err := json.Unmarshal(text, &r); err != nil || r.Status != specs.StateCreating {
			t.Errorf("%s: %s, %v", verb, text, err)
		}
		if verb == "create" {
			f.ok("delete", "--force", f.id)
		}
	}
}

// TestHooksThatFailLate: after the program has begun a failure ends the container;
// when it is gone it is a warning, and the others go on.
func TestHooksThatFailLate(t *testing.T) {
	for _, poststart := range []bool{true, false} {
		f := newFixture(t, "say", "done")
		list := filepath.Join(t.TempDir(), "hooks")
		say := func(word string) specs.Hook {
			return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + word + " >>" + list}}
		}
		broken := specs.Hook{Path: "/bin/false"}
		f.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{say("prestart")}, Poststop: []specs.Hook{broken, say("poststop")}}
		if poststart {
			f.spec.Hooks.Poststart = []specs.Hook{broken, say("poststart")}
		}
		f.create()
		pid := f.state().Pid
		_, text, status := f.run("start", f.id)
		if (status != 0) != poststart || strings.Contains(text, "warning: ") != poststart {
			t.Errorf("start: status %d: %s", status, text)
		}
		reap(t, pid)
		if _, text, status = f.run("delete", f.id); (status != 0) != poststart || !poststart && !strings.Contains(text, "warning: ") {
			t.Errorf("delete: status %d: %s", status, text)
		}
		data, err := os.ReadFile(list)
		if err != nil || string(data) != "prestart\npoststop\n" {
			t.Errorf("hooks %q, %v", data, err)
		}
	}
}

// TestRunsFromAReadOnlyView: what a container gets hold of as the program of a
// process that has entered it cannot be written (CVE-2019-5736).
func TestRunsFromAReadOnlyView(t *testing.T) {
	f := newFixture(t, "wait")
	f.create()
	exe := fmt.Sprintf("/proc/%d/exe", f.state().Pid) // the runtime, until start
	var fs unix.Statfs_t
	if err := unix.Statfs(exe, &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("%s is on a mount with flags %#x: %v", exe, fs.Flags, err)
	}
}

// TestCgroupOfOthers: what a container's path leads to may be a group of a
// neighbour, who would be killed and removed with it.
func TestCgroupOfOthers(t *testing.T) {
	f := newFixture(t, "wait")
	f.create()
	pid := f.state().Pid
	f.fails("is not empty", "create", "--bundle", f.bundle, "other")
	f.fails("does not exist", "delete", "other")
	f.ok("delete", "--force", "other")
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the neighbour is gone: %v", err)
	}
	f.wantStatus(specs.StateCreated)
	if pids := f.ok("ps", "--format", "json", f.id); !strings.Contains(pids, fmt.Sprint(pid)) {
		t.Errorf("the neighbour's cgroup has %s, not %d", pids, pid)
	}
}
