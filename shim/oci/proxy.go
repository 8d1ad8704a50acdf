package oci

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// proxy connects the terminal of a process with ours. Its copying ends with
// [proxy.close], which waits for what the process has shown.
type proxy struct {
	master, in *os.File
	saved      *unix.Termios // of in, which is raw meanwhile; nil if it is no terminal
	shown      chan struct{}
	stop       [2]*os.File // a pipe, whose closing ends typing
	typing     sync.WaitGroup
}

func newProxy(master, in, out *os.File) (*proxy, error) {
	p := &proxy{master: master, in: in, shown: make(chan struct{})}
	var err error
	if p.stop[0], p.stop[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	if saved, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err == nil {
		raw := *saved
		makeRaw(&raw)
		if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &raw); err != nil {
			return nil, err
		}
		p.saved = saved
		p.resize()
	}
	go func() {
		defer close(p.shown)
		_, _ = io.Copy(out, master) // ends with EIO once the last process has let go
	}()
	p.typing.Go(p.typed)
	return p, nil
}

// typed copies our input. A read of a terminal cannot be interrupted: it comes
// only when there is something.
func (p *proxy) typed() {
	buf := make([]byte, 4096)
	in, stop := int(p.in.Fd()), int(p.stop[0].Fd())
	for {
		ready := []unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); err == unix.EINTR {
			continue
		} else if err != nil || ready[1].Revents != 0 {
			return
		}
		n, err := unix.Read(in, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			return
		}
		if _, err := p.master.Write(buf[:n]); err != nil {
			return
		}
	}
}

// makeRaw is cfmakeraw(3).
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB
	t.Cflag |= unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

// resize gives the process's terminal the size of ours.
func (p *proxy) resize() {
	size, err := unix.IoctlGetWinsize(int(p.in.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return
	}
	if raw, err := p.master.SyscallConn(); err == nil {
		// A process that does not know its width is no reason to stop.
		_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	}
}

// close restores our terminal once everything is shown.
func (p *proxy) close() {
	<-p.shown
	p.stop[1].Close()
	p.typing.Wait()
	p.stop[0].Close()
	if p.saved != nil {
		_ = unix.IoctlSetTermios(int(p.in.Fd()), unix.TCSETS, p.saved)
	}
	p.master.Close()
}
