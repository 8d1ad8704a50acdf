package stream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errClientGone is why a stream's context ends when its client hangs up.
var errClientGone = errors.New("the client is gone")

// farewell is how long a client may take to close a stream that has ended.
const farewell = 5 * time.Second

// defaultLinger is how long what a client sent before it hung up may take to
// reach the process.
const defaultLinger = 10 * time.Second

// upgrader is the ResponseWriter of a request that becomes a stream. The
// connection that it hands out ends the request's context when the client is
// gone, and is closed by the context's end.
type upgrader struct {
	http.ResponseWriter
	ctx           context.Context
	gone          context.CancelCauseFunc
	stall, linger time.Duration
	hurried       atomic.Bool  // what is still to be sent has a farewell's time
	tasks         atomic.Int32 // that the connection serves
	conn          *conn
}

// begin counts a task until the function returned is called. A library that
// closes the connection under one does so because the client is gone.
func (u *upgrader) begin() (end func()) {
	u.tasks.Add(1)
	return func() { u.tasks.Add(-1) }
}

// hurry has the client take what is still to be sent, or be gone: it was told
// that it is let go.
func (u *upgrader) hurry() {
	u.hurried.Store(true)
	if u.conn != nil {
		_ = u.conn.SetWriteDeadline(time.Now().Add(farewell)) // fails if it is closed
	}
}

// soonest gives a deadline, or a farewell's time in a hurry.
func (u *upgrader) soonest(t time.Time) time.Time {
	if limit := time.Now().Add(farewell); u.hurried.Load() && (t.IsZero() || t.After(limit)) {
		return limit
	}
	return t
}

// Hijack implements [http.Hijacker].
func (u *upgrader) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	raw, buf, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// The buffers belong to the bare connection: what was read ahead is kept,
	// and they are replaced.
	ahead := make([]byte, buf.Reader.Buffered())
	if _, err := buf.Read(ahead); err != nil && len(ahead) > 0 {
		raw.Close()
		return nil, nil, err
	}
	c := &conn{Conn: raw, up: u, ahead: ahead}
	c.unhook = context.AfterFunc(u.ctx, func() { raw.Close() })
	if c.hangup, err = watchHangup(raw); err != nil {
		raw.Close()
		return nil, nil, err
	}
	c.watched = make(chan struct{})
	go c.watch()
	u.conn = c
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// close releases what Hijack has taken. A socket that is closed with data
// unread resets the connection, and with it the exit code that is on its way:
// so the client may close first.
func (u *upgrader) close() {
	c := u.conn
	if c == nil {
		return
	}
	c.Close()
	if err := c.Conn.SetReadDeadline(time.Now().Add(farewell)); err == nil {
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	c.unhook()
	c.Conn.Close()
	c.hangup.Close()
	<-c.watched
}

// conn is a client's connection.
type conn struct {
	net.Conn
	up      *upgrader
	ahead   []byte // read with the request
	closed  atomic.Bool
	unhook  func() bool
	hangup  *os.File
	watched chan struct{}

	deadlines sync.Mutex // held while one is set
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if err != nil && !c.closed.Load() {
		c.up.gone(errClientGone)
	}
	return n, err
}

// Close says that nothing more will be sent, and ends the reading of those who
// share the connection.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	if c.up.tasks.Load() > 0 {
		c.up.gone(errClientGone)
	}
	past := time.Unix(1, 0)
	if err := errors.Join(c.SetWriteDeadline(time.Now().Add(farewell)), c.SetReadDeadline(past)); err != nil {
		return err
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// SetDeadline implements [net.Conn]: the libraries set one with each frame.
func (c *conn) SetDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	return c.Conn.SetDeadline(c.up.soonest(t))
}

// SetWriteDeadline implements [net.Conn].
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.deadlines.Lock()
	defer c.deadlines.Unlock()
	return c.Conn.SetWriteDeadline(c.up.soonest(t))
}

// Write gives a client that takes nothing up after a time.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.up.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil && !c.closed.Load() {
		c.up.gone(errClientGone)
	}
	return n, err
}

// watch ends the context when the client has hung up, even while nobody reads:
// a process that does not take its stdin keeps the protocol from reading on.
// What the client sent last, and nobody has read yet, gets some time to arrive.
func (c *conn) watch() {
	defer close(c.watched)
	raw, err := c.hangup.SyscallConn()
	if err != nil {
		return
	}
	var events [1]unix.EpollEvent
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	if err != nil {
		return // closed: the stream has ended
	}
	if c.unread() {
		select {
		case <-c.up.ctx.Done():
		case <-time.After(c.up.linger):
		}
	}
	c.up.gone(errClientGone)
}

// unread says whether the client sent more than was read. The end of SPDY's
// frames comes before the connection's, and nobody reads on then.
func (c *conn) unread() bool {
	n := 0
	if raw, err := rawConn(c.Conn); err == nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	}
	return n > 0
}

// rawConn gives the socket below a connection.
func rawConn(c net.Conn) (syscall.RawConn, error) {
	if encrypted, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = encrypted.NetConn()
	}
	socket, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.New("the connection is no socket")
	}
	return socket.SyscallConn()
}

// watchHangup gives a file that becomes readable when the other side of a
// connection has closed it: Go's own poller does not tell that from data.
func watchHangup(c net.Conn) (*os.File, error) {
	raw, err := rawConn(c)
	if err != nil {
		return nil, err
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	var addErr error
	err = raw.Control(func(fd uintptr) {
		addErr = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLRDHUP})
	})
	if err := errors.Join(err, os.NewSyscallError("epoll_ctl", addErr), os.NewSyscallError("fcntl", unix.SetNonblock(ep, true))); err != nil {
		unix.Close(ep)
		return nil, err
	}
	return os.NewFile(uintptr(ep), "hangup"), nil
}
