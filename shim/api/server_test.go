package api

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// serve runs a server on a socket and gives a way to connect.
func serve(t *testing.T, methods map[string]Method) func() *net.UnixConn {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	var s Server
	s.Register("test", methods)
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.Close()
		done.Wait()
	})
	return func() *net.UnixConn {
		c, err := net.DialUnix("unix", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func TestDescriptorsTravelBothWays(t *testing.T) {
	dial := serve(t, map[string]Method{"Swap": func(_ context.Context, decode func(any) error, files *Files) (any, error) {
		var req TaskRequest
		if err := decode(&req); err != nil {
			return nil, err
		}
		w := os.NewFile(uintptr(files.Take()), "in")
		defer w.Close()
		if _, err := w.WriteString("hello " + req.ID); err != nil {
			return nil, err
		}
		fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		files.Out = []int{fd}
		return &StartResponse{Pid: 7}, err
	}})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var resp StartResponse
	fds, err := Call(dial(), "test", "Swap", &TaskRequest{ID: "x"}, []int{int(w.Fd())}, &resp)
	w.Close()
	if err != nil || resp.Pid != 7 || len(fds) != 1 {
		t.Fatalf("Call = %v, %+v, %v", fds, resp, err)
	}
	closeFds(fds)
	var buf [16]byte
	if n, _ := r.Read(buf[:]); string(buf[:n]) != "hello x" {
		t.Errorf("through the pipe: %q", buf[:n])
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	dial := serve(t, map[string]Method{"Fail": func(context.Context, func(any) error, *Files) (any, error) {
		return nil, Errorf(CodeNotFound, "container %q is not here", "c")
	}})
	for method, code := range map[string]int32{"Fail": CodeNotFound, "Other": CodeUnimplemented} {
		_, err := Call(dial(), "test", method, &Empty{}, nil, &Empty{})
		if CodeOf(err) != code {
			t.Errorf("%s: %v, want code %d", method, err, code)
		}
	}
}

func TestHangingUpCancelsTheCall(t *testing.T) {
	ended := make(chan struct{})
	dial := serve(t, map[string]Method{"Hang": func(ctx context.Context, _ func(any) error, _ *Files) (any, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	c := dial()
	if err := writeFrame(c, frame{stream: 1, kind: typeRequest, data: []byte{0x0a, 4, 't', 'e', 's', 't', 0x12, 4, 'H', 'a', 'n', 'g'}}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-ended
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 'x'})
	f.Add([]byte{0xff, 0, 0, 1, 0, 0, 0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*net.UnixConn
		for i, fd := range pair {
			file := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			conns[i] = c.(*net.UnixConn)
			defer c.Close()
		}
		if len(b) > 0 {
			if _, err := conns[0].Write(b); err != nil {
				t.Fatal(err)
			}
		}
		conns[0].CloseWrite()
		var s Server
		s.Register("test", map[string]Method{})
		s.serveConn(conns[1])
	})
}
