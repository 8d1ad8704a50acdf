package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/longshore/longshore/engine"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// command is an exec or attach as the protocols want it. The names and ids
// that their interfaces carry are kubelet's; ours is id.
type command struct {
	runner runner
	up     *upgrader
	id     string
	cmd    []string
}

// task is what a remote command's streams are joined to.
type task func(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error

// exec runs the command; an exit code that is not zero is an error of the kind
// that the protocol passes on.
func (c *command) exec(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	defer c.up.begin()()
	sizes, stop := follow(resize)
	defer stop()
	code, err := c.runner.Exec(ctx, c.id, c.cmd, engineStreams(in, out, errOut, tty, sizes))
	if err == nil && code != 0 {
		return exitError(code)
	}
	return unlessGone(ctx, err)
}

// unlessGone is err if there is someone to tell.
func unlessGone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// attach joins the container's stdio.
func (c *command) attach(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	defer c.up.begin()()
	sizes, stop := follow(resize)
	defer stop()
	err := c.runner.Attach(ctx, c.id, engineStreams(in, out, errOut, tty, sizes))
	if errors.Is(err, engine.ErrSlow) {
		c.up.hurry()
	}
	return unlessGone(ctx, err)
}

// ExecInContainer implements [remotecommand.Executor].
func (c *command) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c.exec(ctx, in, out, errOut, tty, resize)
}

// AttachContainer implements [remotecommand.Attacher].
func (c *command) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return c.attach(ctx, in, out, errOut, tty, resize)
}

// forwarder joins streams to a pod's ports. The library gives a context that
// never ends; the connection's does.
type forwarder struct {
	up     *upgrader
	runner runner
	pod    string
}

// PortForward implements [portforward.PortForwarder].
func (f *forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer f.up.begin()()
	return unlessGone(f.up.ctx, f.runner.PortForward(f.up.ctx, f.pod, int(port), stream))
}

// engineStreams takes care that a stream which is not there is nil, and not an
// interface that holds one.
func engineStreams(in io.Reader, out, errOut io.WriteCloser, tty bool, sizes <-chan engine.Size) engine.Streams {
	s := engine.Streams{Stdin: in, TTY: tty, Resize: sizes}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil && !tty {
		s.Stderr = errOut
	}
	return s
}

// follow translates terminal sizes until stop is called or the client ends
// them. Only the newest counts: one that nobody has taken gives way to the next,
// so that whoever takes none holds up nobody.
func follow(resize <-chan remotecommand.TerminalSize) (sizes <-chan engine.Size, stop func()) {
	out, done, ended := make(chan engine.Size), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(out)
		var newest engine.Size
		var to chan engine.Size // nil while there is nothing to give
		for from := resize; from != nil || to != nil; {
			select {
			case size, ok := <-from:
				if !ok {
					from = nil
					continue
				}
				newest, to = engine.Size{Width: size.Width, Height: size.Height}, out
			case to <- newest:
				to = nil
			case <-done:
				return
			}
		}
	}()
	return out, func() { close(done); <-ended }
}

// exitError is a command's exit code as k8s.io/utils/exec.ExitError.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("command terminated with exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }
