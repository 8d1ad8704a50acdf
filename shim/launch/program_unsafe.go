package launch

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arenaSize is address space, not memory: only touched pages are backed. It
// bounds a program: arguments and environment may use most of it, which is
// more than the kernel takes with an 8 MiB stack (execve(2), Linux 2.6.23).
const arenaSize = 4 << 20

// maxOps bounds the number of operations of a program. Long ones come from
// many sysctls, mounts made by the child, or PATH entries.
const maxOps = 1600

// usualOps is room for the names of most programs.
const usualOps = 200

// nameLists are empty lists for [program.names]. One is the most that a process
// run in a container would leave behind.
var nameLists = sync.Pool{New: func() any { list := make([]opName, 0, usualOps); return &list }}

// Flags of an op; the assembly loop knows their values.
const (
	opIgnore  = 1 << iota // a failure is no failure
	opMiddle              // a result other than 0 ends the process with status 0: it was the middle one of two clones
	opRetry               // EINTR repeats the call
	opNotZero             // a result of 0 fails with EPIPE: the parent is gone
	opRooted              // the text at the first argument must begin with "/" (getcwd, CVE-2024-21626)
)

// run is what the child's loop and its parent share beside the operations.
type run struct {
	first, end uintptr
	mask       uint64  // all signals
	failed     uintptr // address of the op that failed, or 0
	errno      uintptr
	join, own  int // descriptors: the pid namespace of the child, or -1, and that of this process
	joined     int // what entering join gave
	left       int // what entering own again gave
	pidfd      int32
	args       cloneArgs
}

// cloneArgs is struct clone_args up to its cgroup field (Linux 5.7).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// op is one system call as the assembly loop reads it.
type op struct {
	nr    uintptr
	args  [6]uintptr
	flags uintptr
	res   uintptr
	other uintptr // address of an earlier op; its success forgives a failure of this one
}

// opName names an operation for errors without building a string for each.
type opName struct{ verb, object string }

func (n opName) String() string {
	if n.object == "" {
		return n.verb
	}
	return n.verb + " " + n.object
}

// program is a launch program under construction, and the arena it lives in.
// The first error sticks and is returned by [program.extend], so that a builder
// need not check each step.
type program struct {
	mem     []byte
	used    int // of the data, which begins behind the operations
	names   []opName
	err     error
	private bool // the child shares the parent's memory (CLONE_VM)
	tidAt   int  // where the second clone stores the new process's id; 0 without one
}

const dataStart = int(unsafe.Sizeof(run{})) + maxOps*int(unsafe.Sizeof(op{}))

// newProgram maps an arena. It is private memory if the child will share the
// parent's address space, which spares the kernel a shmem file.
func newProgram(shareMemory bool) (*program, error) {
	kind := unix.MAP_SHARED
	if shareMemory {
		kind = unix.MAP_PRIVATE
	}
	mem, err := unix.Mmap(-1, 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE, kind|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	return programOf(mem, shareMemory, err)
}

// newProgramIn is newProgram in a memfd of arenaSize bytes, where another
// process can read what came of the program.
func newProgramIn(memfd int) (*program, error) {
	mem, err := unix.Mmap(memfd, 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return programOf(mem, false, err)
}

func programOf(mem []byte, shareMemory bool, err error) (*program, error) {
	if err != nil {
		return nil, fmt.Errorf("map launch arena: %w", err)
	}
	p := &program{mem: mem, used: dataStart, private: shareMemory, names: *nameLists.Get().(*[]opName)}
	p.run().mask = ^uint64(0)
	return p, nil
}

// free unmaps the arena; the child must have left it by execve or exit.
func (p *program) free() {
	if p.mem != nil {
		unix.Munmap(p.mem)
		p.mem = nil
		clear(p.names)
		list := p.names[:0]
		p.names = nil
		nameLists.Put(&list)
	}
}

func (p *program) run() *run { return (*run)(unsafe.Pointer(&p.mem[0])) }

func (p *program) addr(off int) uintptr { return uintptr(unsafe.Pointer(&p.mem[off])) }

func (p *program) op(i int) *op {
	return (*op)(unsafe.Pointer(&p.mem[unsafe.Sizeof(run{})+uintptr(i)*unsafe.Sizeof(op{})]))
}

func (p *program) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// add appends a system call, with its name for errors, and gives its index.
func (p *program) add(name opName, flags uintptr, nr uintptr, args ...uintptr) int {
	i := len(p.names)
	if i == maxOps {
		p.fail(fmt.Errorf("launch program of more than %d operations", maxOps))
		return i - 1
	}
	o := p.op(i)
	o.nr, o.flags = nr, flags
	if kernel.fault != nil && kernel.fault(name.String()) {
		o.nr = ^uintptr(0) // no call has this number: ENOSYS
	}
	copy(o.args[:], args)
	p.names = append(p.names, name)
	return i
}

// do appends a call without an object and without flags.
func (p *program) do(verb string, nr uintptr, args ...uintptr) int {
	return p.add(opName{verb, ""}, 0, nr, args...)
}

// forgive makes the failure of op i harmless if op earlier succeeded.
func (p *program) forgive(i, earlier int) {
	p.op(i).other = uintptr(unsafe.Pointer(p.op(earlier)))
}

// space reserves n zeroed bytes of data, aligned for any kernel structure.
func (p *program) space(n int) int {
	off := (p.used + 7) &^ 7
	if n < 0 || n > len(p.mem)-off {
		p.fail(fmt.Errorf("lay out launch program: %w", unix.E2BIG))
		return dataStart
	}
	p.used = off + n
	return off
}

// bytes copies b into the arena and gives its address there.
func (p *program) bytes(b []byte) uintptr {
	off := p.space(len(b) + 1)
	if p.err == nil {
		copy(p.mem[off:], b)
	}
	return p.addr(off)
}

// str copies s, ended by NUL, into the arena.
func (p *program) str(s string) uintptr {
	if strings.IndexByte(s, 0) >= 0 {
		p.fail(fmt.Errorf("%q contains a NUL byte: %w", s, unix.EINVAL))
		return p.addr(dataStart)
	}
	off := p.space(len(s) + 1)
	if p.err == nil {
		copy(p.mem[off:], s)
	}
	return p.addr(off)
}

// words stores 64-bit words.
func (p *program) words(w ...uintptr) uintptr {
	off := p.space(len(w) * 8)
	if p.err == nil {
		copy(unsafe.Slice((*uintptr)(unsafe.Pointer(&p.mem[off])), len(w)), w)
	}
	return p.addr(off)
}

// ints stores 32-bit words.
func (p *program) ints(w ...uint32) uintptr {
	off := p.space(len(w) * 4)
	if p.err == nil {
		copy(unsafe.Slice((*uint32)(unsafe.Pointer(&p.mem[off])), len(w)), w)
	}
	return p.addr(off)
}

// strv stores a NULL-ended array of strings, as execve takes it.
func (p *program) strv(list []string) uintptr {
	off := p.space((len(list) + 1) * 8)
	for i, s := range list {
		at := p.str(s)
		if p.err != nil {
			break
		}
		*(*uintptr)(unsafe.Pointer(&p.mem[off+i*8])) = at
	}
	return p.addr(off)
}

// filter stores a seccomp program as struct sock_fprog.
func (p *program) filter(prog []unix.SockFilter) uintptr {
	off := p.space(len(prog) * 8)
	if p.err == nil {
		copy(unsafe.Slice((*unix.SockFilter)(unsafe.Pointer(&p.mem[off])), len(prog)), prog)
	}
	return p.words(uintptr(len(prog)), p.addr(off))
}

// secondClone appends a clone after which only the new process goes on, as our
// child (CLONE_PARENT, which takes the first clone's exit signal). Its id in the
// namespace of the first is found by [program.tid]. It is clone(2), which seccomp
// profiles allow by its flags, where they refuse clone3(2), whose flags a filter
// cannot see.
func (p *program) secondClone(flags uintptr) {
	p.placeTid()
	p.add(opName{"clone into namespaces", ""}, opMiddle, unix.SYS_CLONE, flags|unix.CLONE_PARENT|unix.CLONE_PARENT_SETTID, 0, p.addr(p.tidAt))
}

// placeTid appends what a second clone needs, unless it is there already, which it
// must be before a filter is loaded. The new process's id lies in a page that the
// process does not get: others may trace it from its first instruction, and must
// not choose whom we take for it.
func (p *program) placeTid() {
	if p.tidAt != 0 {
		return
	}
	page := int(pageSize)
	p.tidAt = (p.space(2*page) + page - 1) &^ (page - 1)
	if !p.private {
		p.do("keep the new process's id", unix.SYS_MADVISE, p.addr(p.tidAt), pageSize, unix.MADV_DONTFORK)
	}
}

// tid is the id of the process made by the second clone, or 0.
func (p *program) tid() int {
	if p.tidAt == 0 || p.mem == nil {
		return 0
	}
	return int(*(*int32)(unsafe.Pointer(&p.mem[p.tidAt])))
}

// result is what op i returned.
func (p *program) result(i int) (uintptr, unix.Errno) {
	res := p.op(i).res
	if res > ^uintptr(4095) {
		return 0, unix.Errno(-res)
	}
	return res, 0
}

// failure gives the index of the operation that ended the child and its error,
// or -1 if none failed. Who traces the child can have written anything here.
func (p *program) failure() (int, unix.Errno) {
	r := p.run()
	if r.failed == 0 {
		return -1, 0
	}
	// By the child's address of the arena, which may lie elsewhere here.
	i := int((r.failed - r.first) / unsafe.Sizeof(op{}))
	return max(0, min(i, len(p.names)-1)), unix.Errno(r.errno)
}

// failureError names the operation that ended the child; nil if none failed.
func (p *program) failureError() error {
	i, errno := p.failure()
	if i < 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", p.names[i], errno)
}

// extend makes the operations added so far part of the program. It may run
// while the child waits at a gate.
func (p *program) extend() error {
	r := p.run()
	r.first = uintptr(unsafe.Pointer(p.op(0)))
	r.end = r.first + uintptr(len(p.names))*unsafe.Sizeof(op{})
	return p.err
}

// clone starts the program in a new process: flags are clone3(2)'s, cgroup is
// a cgroup v2 directory with CLONE_INTO_CGROUP or -1, and pidNS the namespace of
// the process or -1. It gives the pid and a nonblocking pidfd.
func (p *program) clone(flags uintptr, cgroup, pidNS int) (pid, pidfd int, err error) {
	if err := p.extend(); err != nil {
		return 0, -1, err
	}
	r := p.run()
	r.join, r.own = pidNS, -1
	if pidNS >= 0 {
		if r.own, err = unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return 0, -1, fmt.Errorf("open own pid namespace: %w", err)
		}
		defer unix.Close(r.own)
	}
	r.args = cloneArgs{
		flags:      uint64(flags) | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(&r.pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if cgroup >= 0 {
		r.args.flags |= unix.CLONE_INTO_CGROUP
		r.args.cgroup = uint64(cgroup)
	}
	child, errno := p.cloneAlone()
	if r.left != 0 {
		// A thread of this process would put its children, and what the runtime
		// starts from it, into a container's namespace.
		panic(fmt.Sprintf("leave pid namespace: %v", unix.Errno(-r.left)))
	}
	if r.joined != 0 {
		return 0, -1, fmt.Errorf("join pid namespace: %w", unix.Errno(errno))
	}
	if errno != 0 {
		return 0, -1, fmt.Errorf("clone3: %w", unix.Errno(errno))
	}
	pidfd = int(r.pidfd)
	unix.SetNonblock(pidfd, true) // PIDFD_NONBLOCK, Linux 5.10: clone3 has no flag for it
	return int(child), pidfd, nil
}

// keepOnly appends the unmapping of everything but the loop and the arena: a
// waiting child then holds none of the parent's memory, which neither leaks
// nor counts. The kernel may refuse to unmap its own pages; that is no harm.
func (p *program) keepOnly() {
	low, high := p.addr(0), p.addr(0)+uintptr(len(p.mem))
	top := addressLimit() - pageSize
	start, end, ok := loopPages()
	if !ok || end > low || high > top {
		return
	}
	name := opName{"unmap", "the parent's memory"}
	p.add(name, opIgnore, unix.SYS_MUNMAP, 0, start)
	p.add(name, opIgnore, unix.SYS_MUNMAP, end, low-end)
	p.add(name, opIgnore, unix.SYS_MUNMAP, high, top-high)
}

// cloning is held from the marking of memory for a child to its clone.
var cloning sync.Mutex

// cloneAlone clones the child. One with memory of its own gets a copy of the
// loop and the arena only: to copy the page tables of all memory, to have every
// page written to afterwards fault, and to unmap it all in the child takes as
// long as the rest of a launch. The marks stay: what else this process starts
// shares its memory until execve (CLONE_VM, as package syscall does).
func (p *program) cloneAlone() (pid, errno uintptr) {
	r := p.run()
	if !p.private {
		cloning.Lock()
		defer cloning.Unlock()
		p.leaveBehind()
	}
	return cloneLoop(r, &r.args, unsafe.Sizeof(cloneArgs{}))
}

// leaveBehind marks all memory but the loop and the arena as what a child does
// not get. That there are holes in between is an error of madvise(2) that changes
// nothing, and a page more in the child no harm: [program.keepOnly] unmaps it.
func (p *program) leaveBehind() {
	start, end, ok := loopPages()
	if !ok {
		return
	}
	for _, part := range []struct{ from, to, advice uintptr }{
		{0, start, unix.MADV_DONTFORK},
		{end, max(end, stackPage()), unix.MADV_DONTFORK},
		{p.addr(0), p.addr(0) + uintptr(len(p.mem)), unix.MADV_DOFORK},
	} {
		_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, part.from, part.to-part.from, part.advice)
	}
}

var pageSize = uintptr(os.Getpagesize())

// loopPages gives the pages of the loop's text, unless the child needs more.
func loopPages() (start, end uintptr, ok bool) {
	if dynamicallyLinked() {
		return 0, 0, false // libc's threads registered memory with the kernel (rseq)
	}
	start, end = loopText()
	if end < start {
		end = start + pageSize
	}
	return start &^ (pageSize - 1), (end + pageSize - 1) &^ (pageSize - 1), true
}

// dynamicallyLinked says whether a loader, and so libc, is part of this
// process. It is not in a release; a build with -race has it.
var dynamicallyLinked = sync.OnceValue(func() bool {
	const atBase = 7 // AT_BASE: the address of the loader
	aux, err := unix.Auxv()
	for _, v := range aux {
		if v[0] == atBase {
			return v[1] != 0
		}
	}
	return err != nil
})

// addressLimit is the end of the user address space: the power of two above
// the stack.
func addressLimit() uintptr {
	stack, limit := stackPage(), uintptr(1)<<38
	if stack == 0 {
		return 1 << 47
	}
	for limit < stack && limit < 1<<56 {
		limit <<= 1
	}
	return limit
}

// stackPage is a page near the top of the first thread's stack, where the kernel
// put the arguments; 0 without any.
func stackPage() uintptr {
	if len(os.Args) == 0 || len(os.Args[0]) == 0 {
		return 0
	}
	return uintptr(unsafe.Pointer(unsafe.StringData(os.Args[0]))) &^ (pageSize - 1)
}

// ignoredSignals lists the signals this process ignores: a child would inherit
// that, CLONE_CLEAR_SIGHAND resets handlers only.
func ignoredSignals() []int {
	var ignored []int
	for sig := 1; sig <= 64; sig++ {
		var old [4]uintptr // struct sigaction begins with the handler; 1 is SIG_IGN
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&old[0])), 8, 0, 0)
		if errno == 0 && old[0] == 1 {
			ignored = append(ignored, sig)
		}
	}
	return ignored
}

// ioctlValue calls ioctl with a plain number.
func ioctlValue(fd int, request, arg uintptr) (int, error) {
	res, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(res), nil
}
