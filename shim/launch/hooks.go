package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxHookOutput is how much of a failed hook's output its error quotes.
const maxHookOutput = 1024

// hasRootHooks says whether hooks run before the change of root. They expect
// the container's root at its place on the host, and the host's tree around it.
func hasRootHooks(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// HookError is the failure of a hook, upon which the container is destroyed
// (runtime.md, "Lifecycle").
type HookError struct {
	Name, Path string
	Err        error
}

func (e *HookError) Error() string { return fmt.Sprintf("%s hook %s: %v", e.Name, e.Path, e.Err) }

func (e *HookError) Unwrap() error { return e.Err }

// rootHooks runs them while the child waits with its root attached, and lets
// it go on.
func (k *creation) rootHooks() error {
	h := k.cfg.Spec.Hooks
	if !hasRootHooks(h) {
		return nil
	}
	if _, err := k.await(0); err != nil {
		return err
	}
	k.hooked = true
	for _, stage := range []struct {
		name   string
		hooks  []specs.Hook
		status specs.ContainerState
		member *Process
	}{
		// "created" is what runtime-tools wants there: the spec says no more than
		// that what comes before is over (runtime.md, "State").
		{"prestart", h.Prestart, specs.StateCreated, nil},
		{"createRuntime", h.CreateRuntime, specs.StateCreating, nil},
		{"createContainer", h.CreateContainer, specs.StateCreating, k.current()},
	} {
		for _, hook := range stage.hooks {
			if err := k.c.runHook(stage.name, hook, stage.status, stage.member); err != nil {
				return k.withEnd(err)
			}
		}
	}
	return k.pass()
}

// startHooks runs what comes after the order to start and before the
// program: as another process of the container.
func (c *Container) startHooks() error {
	for _, hook := range c.hooks().StartContainer {
		p := *c.spec.Process
		p.Args, p.Env, p.Cwd, p.Terminal = hookArgs(&hook), hook.Env, "/", false
		err := c.waitHook("startContainer", hook, c.state(specs.StateCreated, true), func(io Stdio) (*Process, error) {
			return c.exec(&p, hook.Path, io, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// poststart runs what comes when the program runs.
func (c *Container) poststart() error {
	for _, hook := range c.hooks().Poststart {
		if err := c.runHook("poststart", hook, specs.StateRunning, nil); err != nil {
			return err
		}
	}
	return nil
}

// poststop runs what comes when the container is gone. A failure stops nothing.
func (c *Container) poststop() error {
	var errs []error
	for _, hook := range c.hooks().Poststop {
		errs = append(errs, c.runHook("poststop", hook, specs.StateStopped, nil))
	}
	return errors.Join(errs...)
}

// runHook runs a program of the host, with member in the namespaces of that
// process.
func (c *Container) runHook(name string, hook specs.Hook, status specs.ContainerState, member *Process) error {
	return c.waitHook(name, hook, c.state(status, member != nil), func(io Stdio) (*Process, error) {
		return c.launchHook(hook, io, member)
	})
}

// waitHook feeds a hook the state on its standard input and waits for it.
func (c *Container) waitHook(name string, hook specs.Hook, state *specs.State, start func(Stdio) (*Process, error)) error {
	fail := func(err error) error { return &HookError{name, hook.Path, err} }
	if !filepath.IsAbs(hook.Path) {
		return fail(fmt.Errorf("path is not absolute: %w", unix.EINVAL))
	}
	if hook.Timeout != nil && *hook.Timeout <= 0 {
		return fail(fmt.Errorf("timeout %d s: %w", *hook.Timeout, unix.EINVAL))
	}
	in, err := stateFile(state)
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	out, err := memfd("hook output", nil)
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	proc, err := start(Stdio{Stdin: in, Stdout: out, Stderr: out})
	if err != nil {
		return fail(err)
	}
	var timeout time.Duration
	if hook.Timeout != nil {
		timeout = time.Duration(*hook.Timeout) * time.Second
	}
	ended, err := proc.waitFor(timeout)
	if err != nil {
		return fail(err)
	}
	if ended != 0 {
		return fail(fmt.Errorf("%s%s", describe(ended), tail(out)))
	}
	return nil
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// tail quotes the end of a hook's output.
func tail(out *os.File) string {
	st, err := out.Stat()
	if err != nil || st.Size() == 0 {
		return ""
	}
	buf := make([]byte, min(st.Size(), maxHookOutput))
	n, _ := out.ReadAt(buf, st.Size()-int64(len(buf)))
	return ": " + strings.TrimSpace(string(buf[:n]))
}

// state is the container's state (runtime.md, "State"). A hook inside the container
// is told the pid that it sees there.
func (c *Container) state(status specs.ContainerState, inside bool) *specs.State {
	state := &specs.State{
		Version: specs.Version, ID: c.id, Status: status, Pid: c.init.Pid(), Bundle: c.bundle, Annotations: c.spec.Annotations,
	}
	switch {
	case status == specs.StateStopped:
		state.Pid = 0
	case inside:
		state.Pid = innerPid(state.Pid)
	}
	return state
}

// innerPid is the id that a process has in its own pid namespace
// (proc_pid_status(5), NSpid); the one it has here if that cannot be read.
func innerPid(pid int) int {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return pid
	}
	_, after, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ := strings.Cut(after, "\n")
	ids := strings.Fields(line)
	if len(ids) == 0 {
		return pid
	}
	if inner, err := strconv.Atoi(ids[len(ids)-1]); err == nil {
		return inner
	}
	return pid
}

func stateFile(state *specs.State) (*os.File, error) {
	data, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	return memfd("state", data)
}

// memfd makes a file in memory, to be read from its beginning.
func memfd(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if len(data) > 0 {
		if _, err := f.WriteAt(data, 0); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func hookArgs(hook *specs.Hook) []string {
	if len(hook.Args) == 0 {
		return []string{hook.Path}
	}
	return hook.Args
}

// launchHook starts a program of the host. It is born into the pid namespace of
// member, unless others there could trace it: it has the host's capabilities.
func (c *Container) launchHook(hook specs.Hook, io Stdio, member *Process) (*Process, error) {
	env := hook.Env
	if env == nil {
		env = os.Environ()
	}
	var fds fdList
	defer fds.closeAll()
	std, err := streams(io, 0, &fds)
	if err != nil {
		return nil, err
	}
	limits, _, err := parseRlimits(nil, true)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	if member != nil {
		if pidfd, err = member.dupPidfd(); err != nil {
			return nil, err
		}
		fds.add(pidfd)
	}
	l, childEnd, err := newLaunching(false, append(std[:], pidfd))
	if err != nil {
		return nil, err
	}
	l.plan = &plan{args: hookArgs(&hook), env: env, file: hook.Path, rlimits: limits}
	l.stdio(std)
	if member != nil {
		l.do("join namespaces of the container", unix.SYS_SETNS, uintptr(pidfd), c.ns.all()&^unix.CLONE_NEWPID)
		if c.ns.userNS() {
			l.becomeRoot()
		}
	}
	l.closeOthers()
	l.do("become session leader", unix.SYS_SETSID)
	l.setRlimits(limits)
	l.resetSignals()
	l.exec(l.plan)
	pidNS := -1
	if c.ns.all()&unix.CLONE_NEWPID != 0 && !c.ns.exposed {
		pidNS = pidfd
	}
	err = l.clone(0, pidNS, -1, false)
	unix.Close(childEnd)
	if err != nil {
		l.abort()
		return nil, err
	}
	if err := l.execed(); err != nil {
		return nil, err
	}
	return l.proc, nil
}

// hooks gives the hooks, none if the spec has none.
func (c *Container) hooks() specs.Hooks {
	if c.spec.Hooks == nil {
		return specs.Hooks{}
	}
	return *c.spec.Hooks
}
