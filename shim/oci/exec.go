package oci

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/launch"
)

// execOptions are the flags of exec. Those below file change the process of
// the specification, which a command line stands for.
type execOptions struct {
	handOver
	detach, ignorePaused bool
	cgroup               string
	file                 string // of --process

	tty, noNewPrivs              bool
	cwd, user, apparmor, selinux string
	env, groups, caps            stringList
}

func execFlags(args []string) (id string, command []string, o execOptions, err error) {
	f := newFlags("exec")
	o.flags(f)
	for _, name := range []string{"detach", "d"} {
		f.BoolVar(&o.detach, name, false, "")
	}
	for _, name := range []string{"process", "p"} {
		f.StringVar(&o.file, name, "", "")
	}
	for _, name := range []string{"tty", "t"} {
		f.BoolVar(&o.tty, name, false, "")
	}
	for _, name := range []string{"env", "e"} {
		f.Var(&o.env, name, "")
	}
	for _, name := range []string{"user", "u"} {
		f.StringVar(&o.user, name, "", "")
	}
	for _, name := range []string{"additional-gids", "g"} {
		f.Var(&o.groups, name, "")
	}
	for _, name := range []string{"cap", "c"} {
		f.Var(&o.caps, name, "")
	}
	f.StringVar(&o.cwd, "cwd", "", "")
	f.StringVar(&o.apparmor, "apparmor", "", "")
	f.StringVar(&o.selinux, "process-label", "", "")
	f.BoolVar(&o.noNewPrivs, "no-new-privs", false, "")
	f.BoolVar(&o.ignorePaused, "ignore-paused", false, "")
	f.StringVar(&o.cgroup, "cgroup", "", "")
	f.Bool("no-subreaper", false, "")
	// The first argument ends the flags: what follows is the command's.
	if err := f.Parse(args); err != nil {
		return "", nil, o, fmt.Errorf("exec: %w", flagError(err))
	}
	if f.NArg() == 0 || f.NArg() == 1 && o.file == "" {
		return "", nil, o, fmt.Errorf("exec: want a container and a command or --process: %w", errUsage)
	}
	return f.Arg(0), f.Args()[1:], o, nil
}

// exec runs another process in a container.
func (c *cli) exec(args []string) error {
	id, command, o, err := execFlags(args)
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	ct, err := c.open(id)
	if err != nil {
		return err
	}
	spec, profile, err := ct.config()
	if err != nil {
		return err
	}
	launched, err := ct.launched(spec, profile, c.warn)
	if err != nil {
		return err
	}
	if err := ct.mayExec(launched.Init(), o.ignorePaused); err != nil {
		return err
	}
	p, err := o.process(spec, command)
	if err != nil {
		return err
	}
	if o.detach && p.Terminal != (o.consoleSocket != "") {
		return errTerminal
	}
	group, err := o.groupBelow(launched.Cgroup())
	if err != nil {
		return err
	}
	files, err := o.files(p)
	if err != nil {
		return err
	}
	var caught *signals
	if !o.detach {
		if caught, err = catch(); err != nil {
			return err
		}
	}
	proc, err := launched.ExecIn(p, launch.Stdio{Stdin: c.in, Stdout: c.out, Stderr: c.err, Files: files}, group)
	if err != nil {
		return err
	}
	return c.attend(proc, o, caught)
}

// groupBelow gives the group of --cgroup, nil for the container's own.
func (o *execOptions) groupBelow(own *cgroup.Group) (*cgroup.Group, error) {
	if strings.Trim(o.cgroup, "/") == "" {
		return nil, nil
	}
	group, err := own.Below(o.cgroup)
	if err != nil {
		return nil, fmt.Errorf("exec: --cgroup: %w", err)
	}
	return group, nil
}

// attend hands a new process over and, unless it is left alone, waits for it.
func (c *cli) attend(proc *launch.Process, o execOptions, caught *signals) error {
	s, err := c.supervise(proc, o.handOver, o.detach, caught)
	if err == nil {
		err = o.give(proc)
	}
	if err != nil {
		_ = proc.Signal(unix.SIGKILL)
		return err
	}
	if o.detach {
		return nil
	}
	status, err := s.wait()
	if err == nil && status != 0 {
		err = exitStatus(status)
	}
	return err
}

// mayExec says in which states a process may join the container.
func (ct *container) mayExec(p *launch.Process, ignorePaused bool) error {
	status, err := ct.status(p)
	if err != nil {
		return err
	}
	switch status {
	case specs.StateCreated, specs.StateRunning:
		return nil
	case statePaused:
		if ignorePaused {
			return nil
		}
	}
	return fmt.Errorf("exec in container %s: it is %s: %w", ct.ID, status, unix.EINVAL)
}

// process gives what to run: a file's process, or the container's own with
// what the flags say.
func (o *execOptions) process(spec *specs.Spec, command []string) (*specs.Process, error) {
	if o.file != "" {
		var p specs.Process
		if err := readJSONFile(o.file, &p); err != nil {
			return nil, err
		}
		if of := spec.Process; of != nil { // what it runs beside confines it too
			p.ApparmorProfile, p.SelinuxLabel = cmp.Or(p.ApparmorProfile, of.ApparmorProfile), cmp.Or(p.SelinuxLabel, of.SelinuxLabel)
		}
		return &p, nil
	}
	p := *spec.Process
	p.Args, p.Terminal, p.ConsoleSize = command, o.tty, nil
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], o.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || o.noNewPrivs
	for _, set := range []struct {
		to   *string
		from string
	}{{&p.Cwd, o.cwd}, {&p.ApparmorProfile, o.apparmor}, {&p.SelinuxLabel, o.selinux}} {
		if set.from != "" {
			*set.to = set.from
		}
	}
	if err := o.setUser(&p); err != nil {
		return nil, err
	}
	p.Capabilities = addCaps(p.Capabilities, o.caps)
	return &p, nil
}

func (o *execOptions) setUser(p *specs.Process) error {
	if o.user != "" {
		uid, gid, both := strings.Cut(o.user, ":")
		var err error
		if p.User.UID, err = parseID("--user", uid); err != nil {
			return err
		}
		if both {
			if p.User.GID, err = parseID("--user", gid); err != nil {
				return err
			}
		}
	}
	p.User.AdditionalGids = append([]uint32(nil), p.User.AdditionalGids...)
	for _, list := range o.groups {
		for g := range strings.SplitSeq(list, ",") {
			gid, err := parseID("--additional-gids", g)
			if err != nil {
				return err
			}
			p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
		}
	}
	return nil
}

func parseID(what, s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return uint32(id), nil
}

// addCaps gives a process more capabilities, in every set but the inheritable
// one: that lets programs of the image raise them (CVE-2022-29162).
func addCaps(have *specs.LinuxCapabilities, more []string) *specs.LinuxCapabilities {
	if len(more) == 0 {
		return have
	}
	if have == nil {
		have = &specs.LinuxCapabilities{}
	}
	join := func(set []string) []string { return append(set[:len(set):len(set)], more...) }
	return &specs.LinuxCapabilities{
		Bounding: join(have.Bounding), Effective: join(have.Effective), Permitted: join(have.Permitted),
		Inheritable: have.Inheritable, Ambient: have.Ambient,
	}
}
