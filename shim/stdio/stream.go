package stdio

import (
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// readSize is what one read(2) asks for: a pipe's capacity.
const readSize = 64 << 10

// An attached client may hold up the container for holdLimit while it takes
// minTaken bytes; then it is let go. The daemon, which keeps some output for the
// client, gives up sooner: this is for one that stands still itself.
const (
	holdLimit = 2 * time.Second
	minTaken  = 64 << 10
)

// client is one to which output goes as well.
type client struct {
	w     *os.File
	left  time.Duration // of holdLimit
	taken int           // bytes, since the limit began anew
}

// send writes all to the client. Only waiting counts for its limit.
func (c *client) send(data []byte) error {
	raw, err := c.w.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	var sent error
	if err := raw.Write(func(fd uintptr) bool { n, sent = unix.Write(int(fd), data); return true }); err != nil {
		return err
	}
	if n = max(n, 0); n == len(data) {
		return nil
	}
	if sent != nil && sent != unix.EAGAIN && sent != unix.EINTR {
		return sent
	}
	begun := time.Now()
	// A pipe or socket takes a deadline; anything else cannot stall.
	_ = c.w.SetWriteDeadline(begun.Add(c.left))
	n, err = c.w.Write(data[n:])
	_ = c.w.SetWriteDeadline(time.Time{})
	c.left -= time.Since(begun)
	if c.taken += n; c.taken >= minTaken {
		c.left, c.taken = holdLimit, 0
	}
	return err
}

// buffer is what one round of reading and formatting needs.
type buffer struct{ in, out []byte }

// buffers is shared by all streams of a shim: idle ones hold none.
var buffers = sync.Pool{New: func() any { return &buffer{in: make([]byte, readSize)} }}

// Stream copies one stream of a container.
type Stream struct {
	source *os.File
	format *formatter // nil: raw
	sink   io.Writer  // nil: nowhere

	mu       sync.Mutex // guards all below
	attached []*client
	ended    bool
}

// NewLogStream copies source to log as the stream of the given name. source
// must be in non-blocking mode.
func NewLogStream(source *os.File, name string, log *Log) *Stream {
	return &Stream{source: source, format: &formatter{name: name}, sink: log}
}

// NewRawStream copies source to sink unchanged; a nil sink drops it.
func NewRawStream(source *os.File, sink io.Writer) *Stream {
	return &Stream{source: source, sink: sink}
}

// Copy runs until the source ends, then lets attached clients go and closes
// the source.
func (s *Stream) Copy() error {
	err := s.copy()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.attached {
		c.w.Close()
	}
	s.attached = nil
	s.source.Close()
	return err
}

func (s *Stream) copy() error {
	raw, err := s.source.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		b := buffers.Get().(*buffer)
		defer buffers.Put(b)
		for {
			n, err := unix.Read(int(fd), b.in)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err == unix.EIO: // a terminal whose last slave has been closed
				return true
			case err != nil:
				failed = err
				return true
			case n == 0:
				return true
			}
			s.emit(b, n)
		}
	})
	s.flush()
	if failed != nil {
		return failed
	}
	return err
}

// emit passes on the first n bytes read.
func (s *Stream) emit(b *buffer, n int) {
	data := b.in[:n]
	switch {
	case s.format != nil:
		b.out = s.format.append(b.out[:0], data, time.Now())
		if len(b.out) > 0 {
			s.sink.Write(b.out) // a log's Write does not fail
		}
	case s.sink != nil:
		if _, err := s.sink.Write(data); err != nil {
			s.sink = nil // its reader has gone; the container must not stop
		}
	}
	s.toAttached(data)
}

func (s *Stream) flush() {
	if s.format == nil {
		return
	}
	if out := s.format.flush(nil, time.Now()); len(out) > 0 {
		s.sink.Write(out)
	}
}

func (s *Stream) toAttached(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.attached[:0]
	for _, c := range s.attached {
		if err := c.send(data); err != nil {
			c.w.Close()
			continue
		}
		kept = append(kept, c)
	}
	s.attached = kept
}

// Attach sends what comes from now on to w as well, which the stream closes
// at its end, when w has held up the container for two seconds and taken
// less than 64 KiB, or when nobody reads w any more. w must be in non-blocking mode.
func (s *Stream) Attach(w *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		w.Close()
		return
	}
	s.attached = append(s.attached, &client{w: w, left: holdLimit})
	go s.watch(w)
}

// watch detaches a client that goes while the container prints nothing: else
// each would hold a descriptor until it does. It ends when w is closed.
func (s *Stream) watch(w *os.File) {
	raw, err := w.SyscallConn()
	if err != nil {
		return
	}
	// A writing end never becomes readable; that its reader has gone is told to
	// those who wait for either.
	err = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.attached, func(c *client) bool { return c.w == w }); i >= 0 {
		s.attached = slices.Delete(s.attached, i, i+1)
		w.Close()
	}
}
