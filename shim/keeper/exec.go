package keeper

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// processType is the type of an OCI process in a request (typeurl).
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// take gives the next descriptor of a call as a file to which reads and writes
// park a goroutine, not a thread.
func take(files *api.Files, wanted bool) *os.File {
	if !wanted {
		return nil
	}
	fd := files.Take()
	if fd < 0 || unix.SetNonblock(fd, true) != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "stdio")
}

// run runs a process whose stdio the daemon holds, and gives the descriptor
// that stands for its terminal, -1 without one.
func (c *container) run(ctx context.Context, req *api.RunRequest, files *api.Files) (*process, int, error) {
	if _, state := c.init.snapshot(); state != api.StatusRunning {
		return nil, -1, api.Errorf(api.CodeFailedPrecondition, "container %s is not running", c.id)
	}
	var spec specs.Process
	if err := leanjson.Unmarshal(req.Process, &spec); err != nil {
		return nil, -1, api.Errorf(api.CodeInvalidArgument, "process: %v", err)
	}
	ends := [3]*os.File{take(files, req.Stdin), take(files, req.Stdout), take(files, req.Stderr)}
	client := -1
	if spec.Terminal {
		var err error
		if ends, client, err = terminal(); err != nil {
			return nil, -1, err
		}
	}
	p, err := c.exec(ctx, req, &spec, ends)
	if err != nil {
		for _, f := range ends {
			if f != nil {
				f.Close()
			}
		}
		if client >= 0 {
			unix.Close(client)
		}
		return nil, -1, err
	}
	return p, client, nil
}

// terminal makes what stands for a terminal whose master the other shim keeps: a
// socket pair. The daemon sets its size by ResizePty.
func terminal() (ends [3]*os.File, client int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return ends, -1, os.NewSyscallError("socketpair", err)
	}
	second, err := unix.FcntlInt(uintptr(pair[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return ends, -1, os.NewSyscallError("fcntl", err)
	}
	return [3]*os.File{os.NewFile(uintptr(pair[0]), "terminal"), os.NewFile(uintptr(second), "terminal"), nil}, pair[1], nil
}

// exec makes and starts a process of the task API.
func (c *container) exec(ctx context.Context, req *api.RunRequest, spec *specs.Process, ends [3]*os.File) (*process, error) {
	io, err := openExec(c.bundle, req.ExecID, ends)
	if err != nil {
		return nil, err
	}
	p := newProcess(req.ExecID, io, spec.Terminal)
	if p.tree = req.Tree; p.tree {
		p.mark = markOf(spec)
	}
	order := &api.ExecProcessRequest{ID: c.id, ExecID: req.ExecID, Terminal: spec.Terminal, Stdin: io.paths[0], Stdout: io.paths[1], Stderr: io.paths[2],
		Spec: &api.Any{TypeURL: processType, Value: req.Process}}
	if err := c.shim.call(ctx, quickLimit, "Exec", order, &api.Empty{}); err != nil {
		io.abandon()
		return nil, err
	}
	var resp api.StartResponse
	if err := c.shim.call(ctx, slowLimit, "Start", &api.ProcessRequest{ID: c.id, ExecID: req.ExecID}, &resp); err != nil {
		io.abandon()
		c.drop(p)
		return nil, err
	}
	io.opened()
	p.set(int(resp.Pid), api.StatusRunning)
	c.mu.Lock()
	c.execs[p.execID] = p
	c.mu.Unlock()
	if ends[0] != nil {
		io.feed(ends[0], func() { c.inputEnded(p) })
	}
	for _, f := range ends[1:] {
		if f != nil {
			io.mu.Lock()
			io.other = append(io.other, f)
			io.mu.Unlock()
		}
	}
	go c.watchExec(p)
	return p, nil
}

// inputEnded passes on that the client sends no more; with a terminal the
// client is gone, and the terminal hangs up.
func (c *container) inputEnded(p *process) {
	ctx := context.Background()
	if p.tty {
		if err := c.kill(ctx, p, unix.SIGHUP, false); err != nil {
			complain("hang up "+p.execID, err)
		}
		return
	}
	p.io.closeStdin()
	_ = c.shim.call(ctx, quickLimit, "CloseIO", &api.CloseIORequest{ID: c.id, ExecID: p.execID, Stdin: true}, &api.Empty{}) // it may have ended
}

// watchExec waits for a process's end and tells it.
func (c *container) watchExec(p *process) {
	var resp api.WaitResponse
	err := c.shim.call(context.Background(), 0, "Wait", &api.ProcessRequest{ID: c.id, ExecID: p.execID}, &resp)
	pid, _ := p.snapshot()
	exit := api.Exit{Pid: pid, Code: int(resp.ExitStatus), ExitedAtNS: time.Now().UnixNano()}
	if err != nil {
		exit.Code, exit.Message = 255, fmt.Sprintf("wait for it: %v", err)
	}
	if err := p.io.finish(); err != nil && exit.Message == "" {
		exit.Message = err.Error()
	}
	c.drop(p)
	p.finish(exit)
}

// drop has the shim forget a process that has ended.
func (c *container) drop(p *process) {
	_ = c.shim.call(context.Background(), quickLimit, "Delete", &api.ProcessRequest{ID: c.id, ExecID: p.execID}, &api.DeleteResponse{}) // it goes with the container at the latest
}

// abandon is for a process whose daemon has hung up: nobody will wait for it. One
// with a tree is ended, for nobody will end it when its time is over.
func (c *container) abandon(p *process) {
	c.forget(p)
	if !p.tree {
		return
	}
	if err := c.killTree(context.Background(), p); err != nil {
		complain("end process "+p.execID, err)
	}
}

// forget says that nobody will ask for a process any more.
func (c *container) forget(p *process) {
	if p == c.init {
		return
	}
	c.mu.Lock()
	if c.execs[p.execID] == p {
		delete(c.execs, p.execID)
	}
	c.mu.Unlock()
	p.giveUp()
}
