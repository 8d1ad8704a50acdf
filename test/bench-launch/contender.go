package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runtime is one way to run containers. Each step gives how long it took.
type runtime interface {
	start() (time.Duration, error)
	exec() (time.Duration, error)
	remove() (time.Duration, error)
	whole() (time.Duration, error) // from the wish for a container that ends by itself until all of it is gone
	cpu() time.Duration            // used so far
	close()
}

// contender is a runtime with its measurements.
type contender struct {
	runtime
	name, calls                     string
	start, exec, remove, whole, cpu series
	err                             error
}

// measure runs one container's life, and leaves the machine alone for a while before
// each step: whoever moves a process into a control group waits for a grace
// period, unless somebody else just did.
func (c *contender) measure(settle time.Duration, count bool) error {
	before := c.runtime.cpu()
	var took [4]time.Duration
	for i, step := range []func() (time.Duration, error){c.runtime.start, c.runtime.exec, c.runtime.remove, c.runtime.whole} {
		time.Sleep(settle)
		var err error
		if took[i], err = step(); err != nil {
			return err
		}
	}
	if used := c.runtime.cpu() - before; count {
		for i, s := range []*series{&c.start, &c.exec, &c.remove, &c.whole} {
			*s = append(*s, took[i])
		}
		c.cpu = append(c.cpu, used)
	}
	return nil
}

// peer is an OCI runtime's name and program.
type peer struct{ name, binary string }

// contenders are those that are there.
func contenders(b *bundle, shim, helper string, more []peer) ([]*contender, error) {
	const own = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	all := []*contender{
		{name: "floor: clone, execve", calls: "-", runtime: &floor{clock: b.clock, flags: own | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}},
		{name: "floor, a pod's namespaces ready", calls: "-", runtime: &floor{clock: b.clock, flags: own}},
	}
	for _, c := range []struct{ name, as string }{
		{"ours, in a process that is there", ""}, {"ours, without seccomp", "unfiltered"}, {"ours, a pod's namespaces ready", "pod"},
	} {
		inside, err := newInside(b, helper, c.as)
		if err != nil {
			return nil, err
		}
		all = append(all, &contender{name: c.name, calls: "-", runtime: inside})
	}
	for _, c := range append([]peer{{"longshore-shim", shim}, {"crun", "crun"}, {"runc", "runc"}}, more...) {
		path, err := exec.LookPath(c.binary)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench-launch: left out:", err)
			continue
		}
		cli := &commandLine{binary: path, bundle: b.dir, ending: b.ending(), root: filepath.Join(b.dir, c.name), prefix: fmt.Sprintf("bench%d-%s", os.Getpid(), c.name)}
		all = append(all, &contender{name: c.name + " run", calls: cli.syscalls(b), runtime: cli})
	}
	return all, nil
}

// stamped starts a command whose program, at last, writes the time to its
// output, and waits for both.
func stamped(cmd *exec.Cmd) (time.Duration, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.Stdout = w
	begin := monotonic()
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, err
	}
	var stamp int64
	readErr := binary.Read(r, binary.LittleEndian, &stamp)
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%v: %w", cmd.Args, err)
	}
	return time.Duration(stamp - begin), readErr
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// reap collects what was left to us, so that its time counts.
func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
			return
		}
	}
}

// childrenCPU is what reaped children have used.
func childrenCPU() time.Duration {
	reap()
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_CHILDREN, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// floor is what the kernel needs.
type floor struct {
	clock string
	flags uintptr
}

func (f *floor) start() (time.Duration, error) {
	cmd := exec.Command(f.clock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: f.flags}
	return stamped(cmd)
}

func (f *floor) exec() (time.Duration, error)   { return stamped(exec.Command(f.clock)) }
func (f *floor) remove() (time.Duration, error) { return 0, nil }
func (f *floor) whole() (time.Duration, error)  { return 0, nil }
func (f *floor) cpu() time.Duration             { return childrenCPU() }
func (f *floor) close()                         {}

// commandLine is an OCI runtime.
type commandLine struct {
	binary, bundle, ending, root, prefix string
	runs                                 int
}

func (c *commandLine) id() string { return fmt.Sprintf("%s-%d", c.prefix, c.runs) }

func (c *commandLine) argv(args ...string) []string {
	return append([]string{c.binary, "--root", c.root}, args...)
}

func (c *commandLine) command(args ...string) *exec.Cmd {
	argv := c.argv(args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	return cmd
}

func (c *commandLine) start() (time.Duration, error) {
	c.runs++
	return stamped(c.command("run", "--detach", "--bundle", c.bundle, c.id()))
}

func (c *commandLine) exec() (time.Duration, error) {
	return stamped(c.command("exec", c.id(), "/clock"))
}

func (c *commandLine) whole() (time.Duration, error) {
	begin := monotonic()
	err := c.command("run", "--bundle", c.ending, c.id()).Run()
	return time.Duration(monotonic() - begin), err
}

func (c *commandLine) remove() (time.Duration, error) {
	begin := monotonic()
	err := c.command("delete", "--force", c.id()).Run()
	return time.Duration(monotonic() - begin), err
}

// syscalls counts those of one run in the foreground: strace waits for all that
// it traces.
func (c *commandLine) syscalls(b *bundle) string {
	return syscalls(b.dir, c.argv("run", "--bundle", b.ending(), c.prefix+"-traced"))
}

func (c *commandLine) cpu() time.Duration { return childrenCPU() }
func (c *commandLine) close()             {}

// inside is our launcher in a helper process that is there already.
type inside struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	used time.Duration
}

func newInside(b *bundle, helper, as string) (*inside, error) {
	i := &inside{cmd: exec.Command(helper)}
	i.cmd.Env = append(os.Environ(), "LAUNCH_BENCH_BUNDLE="+b.dir, "LAUNCH_BENCH_AS="+as)
	i.cmd.Stderr = os.Stderr
	var err error
	if i.in, err = i.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	i.out = bufio.NewReader(out)
	return i, i.cmd.Start()
}

func (i *inside) do(command string) (time.Duration, error) {
	if _, err := fmt.Fprintln(i.in, command); err != nil {
		return 0, err
	}
	var took, used time.Duration
	if _, err := fmt.Fscanln(i.out, &took, &used); err != nil {
		return 0, fmt.Errorf("%s: %w", command, err)
	}
	i.used = used
	return took, nil
}

func (i *inside) start() (time.Duration, error)  { return i.do("start") }
func (i *inside) exec() (time.Duration, error)   { return i.do("exec") }
func (i *inside) remove() (time.Duration, error) { return i.do("delete") }
func (i *inside) whole() (time.Duration, error)  { return 0, nil }
func (i *inside) cpu() time.Duration             { return i.used }

func (i *inside) close() {
	i.in.Close()
	_ = i.cmd.Wait() // what it had to say is on standard error
}
