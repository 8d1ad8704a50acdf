// Package stream serves exec, attach and port-forward to kubelet and crictl
// over SPDY and WebSockets. A [Server] owns its listener; the protocol is that
// of k8s.io/cri-streaming.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Server hands out URLs and serves them.
type Server struct {
	streams  streaming.Server
	listener net.Listener
	http     http.Server
}

// Listen makes a server on address, a host and port of which the port may be
// 0. With certificates it speaks TLS.
func Listen(address string, certificates *tls.Config, e *engine.Engine) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: config.Addr}
	if certificates != nil {
		config.BaseURL.Scheme = "https"
		l = tls.NewListener(l, certificates)
	}
	streams, err := streaming.NewServer(config, &runtime{engine: e})
	if err != nil {
		l.Close()
		return nil, err
	}
	s := &Server{streams: streams, listener: l}
	s.http.Handler = streams
	return s, nil
}

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends the server and its streams; the processes at their other end are
// killed as when a client goes.
func (s *Server) Close() error { return s.http.Close() }

// Exec gives the URL of a command.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.streams.GetExec(req)
}

// Attach gives the URL of a container's stdio.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.streams.GetAttach(req)
}

// PortForward gives the URL of a pod's ports.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.streams.GetPortForward(req)
}

// runtime is the engine as the streaming library wants it.
type runtime struct{ engine *engine.Engine }

// Exec runs a command; an exit code that is not zero is an error of the kind
// that the protocol passes on.
func (r *runtime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	sizes, stop := follow(resize)
	defer stop()
	code, err := r.engine.Exec(ctx, id, cmd, engineStreams(in, out, errOut, tty, sizes))
	if err == nil && code != 0 {
		return exitError(code)
	}
	return err
}

// Attach joins a container's stdio.
func (r *runtime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	sizes, stop := follow(resize)
	defer stop()
	return r.engine.Attach(ctx, id, engineStreams(in, out, errOut, tty, sizes))
}

// PortForward joins a stream to a pod's port.
func (r *runtime) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	return r.engine.PortForward(ctx, podID, int(port), stream)
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
// them.
func follow(resize <-chan remotecommand.TerminalSize) (sizes <-chan engine.Size, stop func()) {
	out, done, ended := make(chan engine.Size), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(out)
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case out <- engine.Size{Width: size.Width, Height: size.Height}:
				case <-done:
					return
				}
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
