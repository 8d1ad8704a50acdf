package api

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/pb"
)

// Files are the descriptors of a call: those that came with the request, and
// those that shall go with the answer, which the server closes once sent.
type Files struct {
	In  []int
	Out []int
}

// Take gives the next descriptor of the request, or -1 if there is none. The
// caller owns it.
func (f *Files) Take() int {
	if len(f.In) == 0 {
		return -1
	}
	fd := f.In[0]
	f.In = f.In[1:]
	return fd
}

// Method decodes its request with decode and gives the answer's message.
type Method func(ctx context.Context, decode func(msg any) error, files *Files) (any, error)

// Server answers ttrpc requests on unix sockets. Register before Serve.
type Server struct {
	services map[string]map[string]Method

	// Idle, if set before Serve, is called when no connection is left.
	Idle func()

	mu     sync.Mutex
	conns  map[*net.UnixConn]struct{}
	closed bool
	calls  sync.WaitGroup
}

// Register adds a service's methods.
func (s *Server) Register(service string, methods map[string]Method) {
	if s.services == nil {
		s.services = map[string]map[string]Method{}
	}
	s.services[service] = methods
}

// Serve accepts connections until the listener is closed.
func (s *Server) Serve(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		if !s.add(c) {
			c.Close()
			return nil
		}
		s.calls.Go(func() { s.serveConn(c) })
	}
}

func (s *Server) add(c *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.conns == nil {
		s.conns = map[*net.UnixConn]struct{}{}
	}
	s.conns[c] = struct{}{}
	return true
}

// Close takes no more requests, ends the contexts of the calls under way and
// waits until they are answered.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.CloseRead()
	}
	s.mu.Unlock()
	s.calls.Wait()
}

// serveConn reads requests; each is answered by a goroutine of its own, which
// this one waits for. The calls of a client that hangs up are cancelled.
func (s *Server) serveConn(c *net.UnixConn) {
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	var writing sync.Mutex
	for {
		f, err := readFrame(c)
		if err != nil {
			break
		}
		if f.kind != typeRequest {
			closeFds(f.fds)
			break
		}
		calls.Go(func() {
			out := s.answer(ctx, f)
			writing.Lock()
			defer writing.Unlock()
			if writeFrame(c, out) != nil {
				c.Close() // a frame sent by half makes the rest unreadable
			}
			closeFds(out.fds)
		})
	}
	cancel()
	calls.Wait()
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	if s.Idle != nil && !s.Connected() {
		s.Idle()
	}
}

// Connected reports whether a client has a connection.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) > 0
}

// answer runs one request.
func (s *Server) answer(ctx context.Context, f frame) frame {
	files := &Files{In: f.fds}
	defer func() { closeFds(files.In) }()
	var resp Response
	payload, err := s.call(ctx, f.data, files)
	if err != nil {
		resp.Status = &RPCStatus{Code: CodeOf(err), Message: err.Error()}
		closeFds(files.Out)
		files.Out = nil
	}
	resp.Payload = payload
	return frame{stream: f.stream, kind: typeResponse, data: pb.Marshal(&resp), fds: files.Out}
}

func (s *Server) call(ctx context.Context, data []byte, files *Files) ([]byte, error) {
	var req Request
	if err := pb.Unmarshal(data, &req); err != nil {
		return nil, Errorf(CodeInvalidArgument, "%v", err)
	}
	methods, ok := s.services[req.Service]
	if !ok {
		return nil, Errorf(CodeUnimplemented, "service %q is not served", req.Service)
	}
	method, ok := methods[req.Method]
	if !ok {
		return nil, Errorf(CodeUnimplemented, "method %s of %s is not served", req.Method, req.Service)
	}
	if req.TimeoutNano > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.TimeoutNano))
		defer cancel()
	}
	msg, err := method(ctx, func(msg any) error {
		if err := pb.Unmarshal(req.Payload, msg); err != nil {
			return Errorf(CodeInvalidArgument, "%v", err)
		}
		return nil
	}, files)
	if err != nil {
		return nil, err
	}
	return pb.Marshal(msg), nil
}
