// Package stream serves exec, attach and port-forward to kubelet and crictl.
// A [Server] owns its listener, its tokens and every connection; what a
// connection asks for is done by the engine.
//
// SPDY and the WebSocket protocols up to version 4 are those of
// k8s.io/cri-streaming. Version 5 of the remote command protocol, which can
// close stdin alone, and SPDY tunnelled through a WebSocket are made here on
// the pieces of k8s.io/streaming.
//
// Invariant: the context of a request ends when its client is gone, and the
// connection is closed when the context ends. So nothing waits for a client
// that is no more.
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
	"sync"
	"time"

	"github.com/longshore/longshore/engine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

const (
	// creationLimit is how long a SPDY client may take to open its streams, as
	// in kubelet.
	creationLimit = remotecommand.DefaultStreamCreationTimeout
	// headerLimit is how long a client may take to send its request.
	headerLimit = 10 * time.Second
	// maxHeader bounds a request's header, in bytes.
	maxHeader = 64 << 10
)

// Config is what a server needs to know.
type Config struct {
	// Address is the host and port to listen on; port 0 takes a free one.
	Address string
	// Certificates makes the server speak TLS; nil: it does not.
	Certificates *tls.Config
	// Idle is how long a connection may carry nothing, and a client take
	// nothing of what is sent to it, before it is closed.
	Idle time.Duration
}

// runner is what the server needs of the engine.
type runner interface {
	Exec(ctx context.Context, id string, cmd []string, s engine.Streams) (int, error)
	Attach(ctx context.Context, id string, s engine.Streams) error
	PortForward(ctx context.Context, podID string, port int, stream io.ReadWriteCloser) error
}

// Server hands out URLs and serves them.
type Server struct {
	runner   runner
	tokens   tokens
	idle     time.Duration
	linger   time.Duration
	base     url.URL
	listener net.Listener
	http     http.Server

	life context.Context // ends with the server, and every stream with it
	stop context.CancelFunc

	mu      sync.Mutex // guards closed, and serving against growing after it
	closed  bool
	serving sync.WaitGroup
}

// Listen makes a server of an engine's streams.
func Listen(cfg Config, e runner) (*Server, error) {
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s := &Server{runner: e, idle: cfg.Idle, linger: defaultLinger, base: url.URL{Scheme: "http", Host: l.Addr().String()}, listener: l}
	if cfg.Certificates != nil {
		s.base.Scheme = "https"
		s.listener = tls.NewListener(l, cfg.Certificates)
	}
	s.life, s.stop = context.WithCancel(context.Background())
	routes := http.NewServeMux()
	for kind, serve := range map[string]func(*upgrader, *http.Request, any){
		"exec": s.serveExec, "attach": s.serveAttach, "portforward": s.servePortForward,
	} {
		handler := s.handler(kind, serve)
		routes.HandleFunc("GET /"+kind+"/{token}", handler)
		routes.HandleFunc("POST /"+kind+"/{token}", handler)
	}
	s.http = http.Server{Handler: routes, ReadHeaderTimeout: headerLimit, MaxHeaderBytes: maxHeader}
	return s, nil
}

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends the server and its streams, and returns when they have ended; to
// the processes at their other end it is as when the client goes.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	err := s.http.Close()
	s.serving.Wait()
	return err
}

// Exec gives the URL of a command.
func (s *Server) Exec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := checkStreams(req.Stdin, req.Stdout, req.Stderr, req.Tty); err != nil {
		return nil, err
	}
	address, err := s.url("exec", req)
	return &runtimeapi.ExecResponse{Url: address}, err
}

// Attach gives the URL of a container's stdio.
func (s *Server) Attach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(req.Stdin, req.Stdout, req.Stderr, req.Tty); err != nil {
		return nil, err
	}
	address, err := s.url("attach", req)
	return &runtimeapi.AttachResponse{Url: address}, err
}

// PortForward gives the URL of a pod's ports.
func (s *Server) PortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	address, err := s.url("portforward", req)
	return &runtimeapi.PortForwardResponse{Url: address}, err
}

// checkStreams refuses what the CRI rules out (api.proto, ExecRequest).
func checkStreams(stdin, stdout, stderr, tty bool) error {
	if tty && stderr {
		return status.Error(codes.InvalidArgument, "tty and stderr exclude each other: a terminal has one output")
	}
	if !stdin && !stdout && !stderr {
		return status.Error(codes.InvalidArgument, "one of stdin, stdout and stderr must be set")
	}
	return nil
}

// url gives an address at which req is served once.
func (s *Server) url(kind string, req any) (string, error) {
	token, err := s.tokens.add(kind, req)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(kind, token).String(), nil
}

// handler trades a request's token for what was asked for, and serves that
// within a context that ends with the connection.
func (s *Server) handler(kind string, serve func(*upgrader, *http.Request, any)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked, ok := s.tokens.take(kind, r.PathValue("token"))
		if !ok {
			http.NotFound(w, r)
			return
		}
		if !s.begin() {
			http.Error(w, "the server is stopping", http.StatusServiceUnavailable)
			return
		}
		defer s.serving.Done()
		ctx, cancel := context.WithCancelCause(s.life)
		defer cancel(nil)
		up := &upgrader{ResponseWriter: w, ctx: ctx, gone: cancel, stall: s.idle, linger: s.linger}
		defer up.close()
		serve(up, r.WithContext(ctx), asked)
	}
}

func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.serving.Add(1)
	}
	return !s.closed
}

func (s *Server) serveExec(w *upgrader, r *http.Request, asked any) {
	req := asked.(*runtimeapi.ExecRequest)
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	c := &command{runner: s.runner, up: w, id: req.ContainerId, cmd: req.Cmd}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, opts, c.exec)
		return
	}
	remotecommand.ServeExec(w, r, c, "", "", "", nil, opts, s.idle, creationLimit, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w *upgrader, r *http.Request, asked any) {
	req := asked.(*runtimeapi.AttachRequest)
	opts := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
	c := &command{runner: s.runner, up: w, id: req.ContainerId}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, opts, c.attach)
		return
	}
	remotecommand.ServeAttach(w, r, c, "", "", "", opts, s.idle, creationLimit, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w *upgrader, r *http.Request, asked any) {
	req := asked.(*runtimeapi.PortForwardRequest)
	f := &forwarder{up: w, runner: s.runner, pod: req.PodSandboxId}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.serveTunnel(w, r, f)
		return
	}
	s.forward(w, r, f, &portforward.V4Options{Ports: req.Port})
}

func (s *Server) forward(w http.ResponseWriter, r *http.Request, f *forwarder, opts *portforward.V4Options) {
	portforward.ServePortForward(w, r, f, "", "", opts, s.idle, creationLimit, portforward.SupportedProtocols)
}
