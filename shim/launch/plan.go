package launch

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/seccomp"
)

// defaultPath is where a command is looked for if the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plan is a process of the spec, checked and turned into numbers.
type plan struct {
	args, env  []string
	file       string // what to execute; "" to look for args[0]
	cwd        string
	user       specs.User
	caps       capSets
	have       hostCaps // what the process has before caps are applied
	rlimits    []rlimit
	noNewPrivs bool
	filter     *seccomp.Filter
	apparmor   string
	selinux    string
	sched      *unix.SchedAttr
	ioprio     int // -1: none
	memory     *memoryPolicy
	persona    uintptr
	setPersona bool
	affinity   affinity
	warnings   []error // of what the process does without
	terminal   bool
	size       *specs.Box
}

// planContext is what a process's plan takes from its container.
type planContext struct {
	exec    bool // the process is not the container's first
	userNS  bool // the process lives in a user namespace of its own
	filter  *seccomp.Filter
	persona *specs.LinuxPersonality
	memory  *specs.LinuxMemoryPolicy
	home    func(uid uint32) string // looks a home directory up
}

// newPlan checks a process. Every error names the field of the spec.
func newPlan(p *specs.Process, ctx planContext) (*plan, error) {
	if p == nil {
		return nil, fmt.Errorf("process: %w", errMissing)
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fmt.Errorf("process.args: %w", errMissing)
	}
	if !path.IsAbs(p.Cwd) {
		return nil, fmt.Errorf("process.cwd %q is not absolute: %w", p.Cwd, unix.EINVAL)
	}
	if s := p.OOMScoreAdj; s != nil && (*s < -1000 || *s > 1000) {
		return nil, fmt.Errorf("process.oomScoreAdj %d: %w", *s, unix.EINVAL)
	}
	own, err := ownCaps()
	if err != nil {
		return nil, err
	}
	pl := &plan{
		args: p.Args, cwd: p.Cwd, user: p.User, have: own, noNewPrivs: p.NoNewPrivileges, filter: ctx.filter,
		apparmor: p.ApparmorProfile, selinux: p.SelinuxLabel, terminal: p.Terminal, size: p.ConsoleSize,
	}
	mayRaise := own.permitted&(1<<unix.CAP_SYS_RESOURCE) != 0
	if ctx.userNS { // the first process of a user namespace has every capability in it
		pl.have.permitted = 1<<(own.last+1) - 1
		pl.have.bounding = pl.have.permitted
	}
	var lacking []string
	if pl.caps, lacking = parseCaps(p.Capabilities, pl.have.permitted&pl.have.bounding); len(lacking) > 0 {
		pl.warnings = append(pl.warnings, fmt.Errorf("process.capabilities: %.512q cannot be granted", lacking))
	}
	var lowered []string
	if pl.rlimits, lowered, err = parseRlimits(p.Rlimits, mayRaise); err != nil {
		return nil, err
	}
	if len(lowered) > 0 {
		pl.warnings = append(pl.warnings, fmt.Errorf("process.rlimits: %q: hard limits cannot be raised without CAP_SYS_RESOURCE", lowered))
	}
	if pl.sched, err = parseScheduler(p.Scheduler); err != nil {
		return nil, err
	}
	if pl.ioprio, err = parseIOPriority(p.IOPriority); err != nil {
		return nil, err
	}
	if pl.persona, pl.setPersona, err = parsePersonality(ctx.persona); err != nil {
		return nil, err
	}
	if pl.memory, err = parseMemoryPolicy(ctx.memory); err != nil {
		return nil, err
	}
	if ctx.exec {
		if pl.affinity, err = parseAffinity(p.ExecCPUAffinity); err != nil {
			return nil, err
		}
	}
	pl.env = withHome(p.Env, p.User.UID, ctx.home)
	return pl, nil
}

// withHome adds HOME, which every shell expects, if the environment lacks it.
func withHome(env []string, uid uint32, home func(uint32) string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "HOME=") {
			return env
		}
	}
	if home == nil {
		return env
	}
	return append(env[:len(env):len(env)], "HOME="+home(uid))
}

// candidates lists the files to try for the command, as execvp(3) would.
func (pl *plan) candidates() []string {
	name := pl.args[0]
	if pl.file != "" {
		return []string{pl.file}
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	search := defaultPath
	for _, e := range pl.env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			search = value
		}
	}
	var out []string
	for dir := range strings.SplitSeq(search, ":") {
		if dir == "" {
			dir = "."
		}
		out = append(out, dir+"/"+name)
	}
	return out
}

// step appends operations at a fixed point of a program; nil for none.
type step func(b *builder)

// finish appends the last part of every program: from root in the container to
// execve as the container's user. procfs is the child's descriptor of a private
// procfs, needed for security labels, or 0. The order matters (capabilities(7), seccomp(2)):
// the bounding set first, while CAP_SETPCAP is there; ids next; capabilities
// then; the filter last, or, without no_new_privs, while CAP_SYS_ADMIN is still
// held, with one capset and execve behind it. wait comes when the process has
// nothing left but what it may keep, last right before execve.
//
// A process that is born late (see [namespaces.exposed]) is cloned when the first
// one has nothing left either: before wait, or, if the filter needs CAP_SYS_ADMIN
// and allows what comes behind it, with the filter loaded already.
func (b *builder) finish(pl *plan, procfs uintptr, wait, last step) {
	b.labels(pl, procfs)
	if procfs != 0 {
		b.do("close procfs", unix.SYS_CLOSE, procfs)
	}
	b.tuning(pl)
	b.setRlimits(pl.rlimits)
	b.dropBounding(pl.caps.bounding, pl.have.bounding, pl.have.last)
	b.ids(pl)

	privileged := pl.forFilter()
	b.capset(pl.caps.effective|privileged, pl.caps.permitted|privileged, pl.caps.inheritable)
	b.raiseAmbient(pl.caps.ambient)
	b.add(opName{"check that the working directory is inside the container:", pl.cwd}, opRooted,
		unix.SYS_GETCWD, b.addr(b.space(unix.PathMax)), unix.PathMax)
	if pl.noNewPrivs {
		b.do("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	early := b.late && pl.filterBeforeBirth()
	if early {
		b.placeTid()
		b.confine(pl)
	}
	if b.late {
		b.bear(pl)
	}
	if wait != nil {
		wait(b)
	}
	if !early {
		b.confine(pl)
	}
	if pl.notify() {
		b.showListener()
	}
	if last != nil {
		last(b)
	}
	b.exec(pl)
}

// bear appends the second clone of a process that is born late. All that finish
// has set is inherited, but for what a scheduler does not hand on (sched(7)).
func (b *builder) bear(pl *plan) {
	if s := pl.sched; s != nil && (s.Policy == unix.SCHED_DEADLINE || s.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0) {
		b.fail(fmt.Errorf("process.scheduler: %s and %s where others may trace the process: %w", specs.SchedDeadline, specs.SchedFlagResetOnFork, errUnsupported))
	}
	b.secondClone(0)
	b.session(pl.terminal)
}

// confine appends what the filter may not allow any more, and the filter.
func (b *builder) confine(pl *plan) {
	b.placeFiles()
	b.resetSignals()
	if pl.filter == nil {
		return
	}
	b.listener = b.do("load seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(pl.filter.Flags), b.filter(pl.filter.Program))
	if pl.forFilter() != 0 {
		b.capset(pl.caps.effective, pl.caps.permitted, pl.caps.inheritable)
	}
}

// forFilter is the capability that is kept for loading the filter.
func (pl *plan) forFilter() uint64 {
	if pl.filter == nil || pl.noNewPrivs {
		return 0
	}
	return 1 << unix.CAP_SYS_ADMIN & pl.have.permitted
}

// filterBeforeBirth says whether the filter is loaded before the second clone of a
// process that is born late: so that nobody ever sees it with CAP_SYS_ADMIN. A
// filter that refuses the clone, or what comes behind it, is loaded after it.
func (pl *plan) filterBeforeBirth() bool {
	if pl.forFilter() == 0 {
		return false
	}
	f := pl.filter
	for _, nr := range []uint32{unix.SYS_SETSID, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_EXIT_GROUP} {
		if !f.Allows(nr) {
			return false
		}
	}
	return f.Allows(unix.SYS_CLONE, unix.CLONE_PARENT|unix.CLONE_PARENT_SETTID) &&
		(!pl.terminal || f.Allows(unix.SYS_IOCTL, 0, unix.TIOCSCTTY))
}

// session appends becoming the leader of a session, with its terminal.
func (b *builder) session(terminal bool) {
	b.do("become session leader", unix.SYS_SETSID)
	if terminal {
		b.do("take controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}

// resetSignals appends the default action for what this process ignores, and
// the empty mask.
func (b *builder) resetSignals() {
	for _, sig := range ignoredSignals() {
		b.do("reset signal", unix.SYS_RT_SIGACTION, uintptr(sig), b.words(0, 0, 0, 0), 0, 8)
	}
	b.do("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, b.words(0), 0, 8)
}

// ids appends the change to the container's user, around the change to the
// working directory: it is entered as root if root may, else as the user (a
// network filesystem may refuse root).
func (b *builder) ids(pl *plan) {
	umask := uintptr(0o022)
	if pl.user.Umask != nil {
		umask = uintptr(*pl.user.Umask)
	}
	b.do("set umask", unix.SYS_UMASK, umask)
	// The container gets no keys of this session. Not all kernels have keys.
	b.add(opName{"leave session keyring", ""}, opIgnore, unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	cwd := b.str(pl.cwd)
	asRoot := b.add(opName{"enter", pl.cwd}, opIgnore, unix.SYS_CHDIR, cwd)
	if pl.user.UID != 0 {
		b.do("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	uid, gid := uintptr(pl.user.UID), uintptr(pl.user.GID)
	b.do("set additional groups", unix.SYS_SETGROUPS, uintptr(len(pl.user.AdditionalGids)), b.ints(pl.user.AdditionalGids...))
	b.do("set group", unix.SYS_SETRESGID, gid, gid, gid)
	b.do("set user", unix.SYS_SETRESUID, uid, uid, uid)
	b.forgive(b.add(opName{"enter working directory", pl.cwd}, 0, unix.SYS_CHDIR, cwd), asRoot)
}

// exec appends an execve for each place the command may be in.
func (b *builder) exec(pl *plan) {
	argv, envp := b.strv(pl.args), b.strv(pl.env)
	candidates := pl.candidates()
	b.execFirst = len(b.program.names)
	for i, file := range candidates {
		flags := uintptr(opIgnore)
		if i == len(candidates)-1 {
			flags = 0
		}
		b.add(opName{"exec", pl.args[0]}, flags, unix.SYS_EXECVE, b.str(file), argv, envp)
	}
}

// execError explains a program that ended at execve: the first result that is
// more than "not here" counts, as for a shell.
func (b *builder) execError(pl *plan) error {
	at, errno := b.failure()
	if at < 0 {
		return nil
	}
	first := b.execFirst
	if first < 0 || at < first {
		return b.failureError()
	}
	best := errno
	if best == unix.ENOTDIR {
		best = unix.ENOENT
	}
	for i := first; i < len(b.names); i++ {
		_, e := b.result(i)
		if e == unix.EACCES && best == unix.ENOENT {
			best = e
		}
		if e != unix.ENOENT && e != unix.ENOTDIR && e != unix.EACCES && e != 0 {
			best = e
			break
		}
	}
	err := commandError(pl.args[0], best)
	if pl.selinux != "" && (best == unix.EACCES || best == unix.EPERM) {
		return fmt.Errorf("%w (with SELinux label %s)", err, pl.selinux)
	}
	return err
}

// commandError says that a command cannot be run.
func commandError(command string, errno unix.Errno) error {
	if errno == unix.ENOENT && !strings.Contains(command, "/") {
		return fmt.Errorf("exec %q: executable file not found in $PATH: %w", command, errno)
	}
	return fmt.Errorf("exec %q: %w", command, errno)
}
