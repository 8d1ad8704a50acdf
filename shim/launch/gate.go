package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/atomicfile"
)

// Files in a gate directory; both go once the gate is open.
const (
	gateFIFO   = "gate"
	gateRecord = "gate.json"
)

// endTimeout bounds the wait for a process that was sent SIGKILL.
const endTimeout = 10 * time.Second

// fifoGate is a gate that outlives its maker: a FIFO of which the child holds
// both ends, so that it waits for a byte and never sees an end of file. The
// launch program lies in a memfd that the child keeps open too: there whoever
// opens the gate finds what failed behind it. execve closes both, which is how
// others see that the program runs.
type fifoGate struct {
	dir   string
	fifo  int
	arena int
	// The child's numbers of both.
	childFIFO, childArena int
}

// gateNames is what the record of a gate holds: all that is not in the arena.
type gateNames struct {
	FIFO      int      `json:"fifo"` // this and the next: the child's descriptors
	Arena     int      `json:"arena"`
	ExecFirst int      `json:"execFirst"`
	Command   string   `json:"command"`
	Ops       []string `json:"operations"`
}

// newFIFOGate makes the FIFO and the memory of the program.
func newFIFOGate(dir string, fds *fdList) (*fifoGate, error) {
	name := filepath.Join(dir, gateFIFO)
	if err := unix.Mkfifo(name, 0o600); err != nil {
		return nil, &os.PathError{Op: "make gate", Path: name, Err: err}
	}
	g := &fifoGate{dir: dir}
	var err error
	if g.fifo, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		g.remove()
		return nil, &os.PathError{Op: "open gate", Path: name, Err: err}
	}
	fds.add(g.fifo)
	if g.arena, err = unix.MemfdCreate("launch", unix.MFD_CLOEXEC); err != nil {
		g.remove()
		return nil, fmt.Errorf("make memory of the launch program: %w", err)
	}
	fds.add(g.arena)
	if err = unix.Ftruncate(g.arena, arenaSize); err != nil {
		g.remove()
		return nil, fmt.Errorf("size memory of the launch program: %w", err)
	}
	return g, nil
}

// remove takes away the names; the child's waiting is not affected.
func (g *fifoGate) remove() { removeGate(g.dir) }

func removeGate(dir string) {
	for _, name := range []string{gateFIFO, gateRecord} {
		os.Remove(filepath.Join(dir, name))
	}
}

// keepIn makes the child keep both descriptors; it must come before anything
// is closed in it.
func (g *fifoGate) keepIn(b *builder) {
	g.childFIFO, g.childArena = b.keep(g.fifo), b.keep(g.arena)
}

// wait appends the gate: a read that ends with the first byte written.
func (g *fifoGate) wait(b *builder) {
	b.add(opName{"wait for start", ""}, opRetry|opNotZero, unix.SYS_READ, uintptr(g.childFIFO), b.addr(b.space(1)), 1)
}

// record writes down, for the process that will open the gate, what it cannot
// see in the child's memory.
func (g *fifoGate) record(b *builder, command string) error {
	names := gateNames{FIFO: g.childFIFO, Arena: g.childArena, ExecFirst: b.execFirst, Command: command}
	for _, n := range b.names {
		names.Ops = append(names.Ops, n.String())
	}
	return atomicfile.WriteJSON(filepath.Join(g.dir, gateRecord), names, atomicfile.Volatile)
}

// Waiting says whether the process pid stands at the gate in dir. The caller
// makes sure that pid is who it thinks.
func Waiting(dir string, pid int) (bool, error) {
	var names gateNames
	err := atomicfile.ReadJSON(filepath.Join(dir, gateRecord), &names)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // it is open
	}
	if err != nil {
		return false, err
	}
	return holdsGate(dir, pid, names.FIFO)
}

// holdsGate says whether the descriptor of a process is the gate: it is until
// execve or its end.
func holdsGate(dir string, pid, fd int) (bool, error) {
	held, err := os.Stat(childFD(pid, fd))
	if processGone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	gate, err := os.Stat(filepath.Join(dir, gateFIFO))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(held, gate), err
}

func childFD(pid, fd int) string {
	return "/proc/" + strconv.Itoa(pid) + "/fd/" + strconv.Itoa(fd)
}

// openGate lets the container's first process pass a gate that another process
// made, and returns once execve has happened, or with what failed.
func (c *Container) openGate() error {
	var names gateNames
	err := atomicfile.ReadJSON(filepath.Join(c.gate, gateRecord), &names)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("it was started before: %w", unix.EALREADY)
	}
	if err != nil {
		return err
	}
	pid := c.init.Pid()
	prog, err := openProgram(childFD(pid, names.Arena), names)
	if err != nil {
		return err
	}
	defer prog.free()
	// Asked after opening: a process that lives now had this id all the time.
	waits, err := holdsGate(c.gate, pid, names.FIFO)
	if err != nil {
		return err
	}
	if !waits || c.init.exited() {
		return fmt.Errorf("process %d does not wait at the gate: %w", pid, unix.ESRCH)
	}
	if err = c.startHooks(); err == nil {
		err = passFIFO(filepath.Join(c.gate, gateFIFO))
	}
	if err == nil {
		b := builder{program: prog, execFirst: names.ExecFirst}
		err = b.execError(&plan{args: []string{names.Command}})
	}
	if err != nil {
		_ = c.init.Signal(unix.SIGKILL)
		return errors.Join(err, c.init.WaitEnd(endTimeout))
	}
	removeGate(c.gate)
	if err := c.poststart(); err != nil {
		_ = c.init.Signal(unix.SIGKILL)
		return errors.Join(err, c.init.WaitEnd(endTimeout))
	}
	return nil
}

// openProgram maps a waiting child's program, for reading.
func openProgram(path string, names gateNames) (*program, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open launch program", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != arenaSize || len(names.Ops) > maxOps {
		return nil, fmt.Errorf("launch program %s: %w", path, unix.EBADMSG)
	}
	mem, err := unix.Mmap(fd, 0, arenaSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map launch program: %w", err)
	}
	p := &program{mem: mem}
	for _, n := range names.Ops {
		p.names = append(p.names, opName{n, ""})
	}
	return p, nil
}

// passFIFO writes the byte the child waits for, and waits until the child has
// closed the FIFO: by execve or by its end.
func passFIFO(name string) error {
	// The reader comes first: with the child it makes the write safe from
	// SIGPIPE, and it is told when the last writer has gone.
	reader, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open gate", Path: name, Err: err}
	}
	defer unix.Close(reader)
	writer, err := unix.Open(name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open gate", Path: name, Err: err}
	}
	_, err = unix.Write(writer, []byte{'.'})
	unix.Close(writer)
	if err != nil {
		return &os.PathError{Op: "write to gate", Path: name, Err: err}
	}
	for late := time.Now().Add(launchTimeout); ; {
		events := []unix.PollFd{{Fd: int32(reader)}}
		n, err := unix.Poll(events, int(max(0, time.Until(late).Milliseconds())))
		if n == 0 && err == nil {
			return fmt.Errorf("process at %s has not come to its program: %w", name, os.ErrDeadlineExceeded)
		}
		if err == nil && events[0].Revents&unix.POLLHUP != 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for %s to close: %w", name, err)
		}
	}
}
