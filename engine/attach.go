package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/longshore/longshore/shim/client"
)

// Attach joins the client's streams to a container's, until the container ends
// or the client goes.
func (e *Engine) Attach(ctx context.Context, id string, s Streams) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	rec := c.snapshot()
	if rec.State != ContainerRunning && rec.State != ContainerCreated {
		return fmt.Errorf("attach to container %s: %w: it is %s", c.id, ErrState, rec.State)
	}
	shim, err := c.connection()
	if err != nil {
		return err
	}
	if s.Stdin != nil && !rec.Config.Stdin {
		s.Stdin = nil // as other runtimes: the rest is attached all the same
	}
	x := &execution{shim: shim, id: c.id}
	defer x.close()
	return e.attach(ctx, c, x, s)
}

func (e *Engine) attach(ctx context.Context, c *container, x *execution, s Streams) error {
	rec := c.snapshot()
	if rec.Config.TTY {
		s.Stderr = nil
	}
	late := make(chan struct{})
	var once sync.Once
	var child client.Stdio
	var err error
	for to, end := range map[**os.File]io.Writer{&child.Out: s.Stdout, &child.Err: s.Stderr} {
		if end == nil {
			continue
		}
		r := &relay{to: end, ended: c.exited, late: late, fell: func() { once.Do(func() { close(late) }) }}
		if *to, err = r.begin(x); err != nil {
			closeFiles(child.Out, child.Err)
			return err
		}
	}
	stdin, err := x.shim.Attach(ctx, c.id, s.Stdin != nil, child.Out, child.Err)
	closeFiles(child.Out, child.Err)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	if s.Resize != nil && rec.Config.TTY {
		go x.resize(ctx, s.Resize)
	}
	ended := make(chan struct{})
	if stdin != nil {
		x.open = append(x.open, stdin)
		go func() {
			defer close(ended)
			_, err := io.Copy(stdin, s.Stdin)
			if err == nil && rec.Config.StdinOnce && !rec.Config.TTY {
				_ = x.shim.CloseStdin(context.WithoutCancel(ctx), c.id) // it may have ended
			}
			stdin.Close()
		}()
	}
	copied := make(chan struct{})
	go func() { x.copies.Wait(); close(copied) }()
	if s.Stdout == nil && s.Stderr == nil {
		copied = nil
	}
	select {
	case <-late:
	case <-copied:
	case <-c.exited:
		x.drain()
	case <-waitFor(s, stdin, ended):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if isClosed(late) {
		e.log.Warn("attached client is let go: it took too little", "container", c.id)
		return fmt.Errorf("attach to container %s: %w", c.id, ErrSlow)
	}
	return nil
}

// waitFor gives the end of stdin if that is all the client has attached.
func waitFor(s Streams, stdin *os.File, ended chan struct{}) chan struct{} {
	if s.Stdout == nil && s.Stderr == nil && stdin != nil {
		return ended
	}
	return nil
}

// An attached client that takes less than the container prints has maxBacklog
// bytes of each stream kept for it. Once those are full it keeps the daemon
// waiting, and with it in the end the container. So a client on a slow line gets
// all; one that takes less than minTaken bytes while it is waited for for
// holdLimit is let go.
const (
	maxBacklog = 1 << 20
	minTaken   = 64 << 10
	holdLimit  = time.Second
)

// relay passes one stream of a container on to an attached client.
type relay struct {
	to    io.Writer
	ended <-chan struct{} // closed when the container has: nothing waits for the client any more
	late  <-chan struct{} // closed when the client is let go
	fell  func()          // closes late

	mu    sync.Mutex // guards kept, taken, over and gone
	kept  []byte     // read, and not yet taken
	taken int        // bytes, since the limit began anew
	over  bool       // the source has ended
	gone  bool       // the client has

	more chan struct{} // holds a token when kept has grown, or over is set
	room chan struct{} // holds one when kept was taken, or gone is set
}

// begin makes the stream's pipe, of which it gives the container's end, and
// copies until the source ends and the client has all of it, or is let go.
func (r *relay) begin(x *execution) (*os.File, error) {
	child, source, err := x.pipe(0)
	if err != nil {
		return nil, err
	}
	r.more, r.room = make(chan struct{}, 1), make(chan struct{}, 1)
	given := make(chan struct{})
	go func() { // ends with the client's connection at the latest
		defer close(given)
		r.give()
	}()
	x.copies.Go(func() {
		r.read(source)
		select {
		case <-given:
		case <-r.late:
		}
	})
	return child, nil
}

// read keeps what the source gives, until it ends or the client is let go.
func (r *relay) read(source *os.File) {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	left := holdLimit
	keep := func(p []byte) (err error) {
		left, err = r.keep(p, left)
		return err
	}
	for {
		n, err := source.Read(buf[:])
		if n > 0 && keep(buf[:n]) != nil {
			source.Close() // the shim lets it go as well
			r.fell()
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			copyRest(writerFunc(keep), source, buf[:])
		}
		if err != nil {
			r.mu.Lock()
			r.over = true
			r.mu.Unlock()
			signal(r.more)
			return
		}
	}
}

// keep adds to the backlog, once there is room. It gives what is left of the
// time that the client may be waited for, or [ErrSlow] when it is over.
func (r *relay) keep(p []byte, left time.Duration) (time.Duration, error) {
	for {
		r.mu.Lock()
		fits := r.gone || len(r.kept)+len(p) <= maxBacklog
		if fits && !r.gone {
			r.kept = append(r.kept, p...)
		}
		r.mu.Unlock()
		if fits {
			signal(r.more)
			return left, nil
		}
		begun := time.Now()
		if err := r.wait(left); err != nil {
			return 0, err
		}
		if left -= time.Since(begun); r.moved() {
			left = holdLimit
		}
	}
}

// moved reports whether the client has taken enough for its limit to begin anew.
func (r *relay) moved() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken < minTaken {
		return false
	}
	r.taken = 0
	return true
}

// wait waits for room: for a time, but for as long as it takes once the container
// has ended.
func (r *relay) wait(left time.Duration) error {
	limit := time.NewTimer(left)
	defer limit.Stop()
	select {
	case <-r.room:
		return nil
	case <-r.late:
		return ErrSlow
	case <-limit.C:
	case <-r.ended:
	}
	if !isClosed(r.ended) {
		return ErrSlow
	}
	select {
	case <-r.room:
		return nil
	case <-r.late:
		return ErrSlow
	}
}

// give writes the backlog to the client. A client that takes no more does not
// stop the container.
func (r *relay) give() {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		n, over := r.take(buf[:])
		if n == 0 && over {
			return
		}
		if n == 0 {
			select {
			case <-r.more:
				continue
			case <-r.late:
				return
			}
		}
		if _, err := r.to.Write(buf[:n]); err != nil || isClosed(r.late) {
			r.mu.Lock()
			r.gone, r.kept = true, nil
			r.mu.Unlock()
			signal(r.room)
			return
		}
	}
}

// take gives the oldest of what is kept, and whether the source has ended.
func (r *relay) take(buf []byte) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := copy(buf, r.kept)
	if r.kept = append(r.kept[:0], r.kept[n:]...); len(r.kept) == 0 {
		r.kept = nil
	}
	r.taken += n
	signal(r.room)
	return n, r.over
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// signal puts a token into a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// writerFunc is a function as an [io.Writer].
type writerFunc func(p []byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}
