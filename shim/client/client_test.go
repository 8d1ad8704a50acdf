package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/longshore/longshore/shim/api"
)

// fakeShim answers on a socket as a shim would.
func fakeShim(t *testing.T, task, own map[string]api.Method) *Shim {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var server api.Server
	server.Register(api.TaskV3, task)
	server.Register(api.ShimService, own)
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(l) })
	s, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		l.Close()
		server.Close()
		serving.Wait()
	})
	return s
}

// TestOurServerSpeaksTTRPC holds that the shim's own server and codec speak
// the wire of the library.
func TestOurServerSpeaksTTRPC(t *testing.T) {
	at := time.Unix(1700000000, 5)
	s := fakeShim(t, map[string]api.Method{
		"Create": func(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
			var req api.CreateTaskRequest
			if err := decode(&req); err != nil {
				return nil, err
			}
			if req.ID != "c" || len(req.Rootfs) != 1 || req.Rootfs[0].Options[1] != "b" {
				t.Errorf("request: %+v", req)
			}
			return &api.CreateTaskResponse{Pid: 42}, nil
		},
		"Wait": func(context.Context, func(any) error, *api.Files) (any, error) {
			return &api.WaitResponse{ExitStatus: 3, ExitedAt: api.TimestampOf(at)}, nil
		},
		"Start": func(context.Context, func(any) error, *api.Files) (any, error) {
			return nil, api.Errorf(api.CodeNotFound, "no such command")
		},
	}, nil)
	ctx := context.Background()
	pid, err := s.Create(ctx, &api.CreateTaskRequest{ID: "c", Rootfs: []*api.Mount{{Type: "overlay", Options: []string{"a", "b"}}}})
	if err != nil || pid != 42 {
		t.Errorf("Create = %d, %v", pid, err)
	}
	exit, err := s.Wait(ctx, "c", "")
	if err != nil || exit.Code != 3 || !exit.At.Equal(at) {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if err := s.Start(ctx, "c"); api.CodeOf(err) != api.CodeNotFound || err.Error() != "no such command" {
		t.Errorf("Start = %v", err)
	}
	if err := s.Pause(ctx, "c"); api.CodeOf(err) != api.CodeUnimplemented {
		t.Errorf("Pause = %v", err)
	}
}

func TestRunHandsOverStdio(t *testing.T) {
	s := fakeShim(t, nil, map[string]api.Method{
		"Run": func(_ context.Context, decode func(any) error, files *api.Files) (any, error) {
			var req api.RunRequest
			if err := decode(&req); err != nil {
				return nil, err
			}
			if req.Stdin || !req.Stdout || req.Stderr {
				t.Errorf("flags: %+v", req)
			}
			f := os.NewFile(uintptr(files.Take()), "stdout")
			defer f.Close()
			f.WriteString("output")
			return &api.RunResponse{Pid: 1}, nil
		},
	})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	master, err := s.Run(context.Background(), "c", "x", []byte("{}"), Stdio{Out: w}, false)
	w.Close()
	if err != nil || master != nil {
		t.Fatalf("Run = %v, %v", master, err)
	}
	var buf [16]byte
	if n, _ := r.Read(buf[:]); string(buf[:n]) != "output" {
		t.Errorf("read %q", buf[:n])
	}
}

func TestGoneShimIsErrGone(t *testing.T) {
	if _, err := Dial(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrGone) {
		t.Errorf("Dial = %v", err)
	}
	entered := make(chan struct{})
	s := fakeShim(t, map[string]api.Method{"Wait": func(ctx context.Context, _ func(any) error, _ *api.Files) (any, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-entered; cancel() }()
	if _, err := s.Wait(ctx, "c", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want the context's end", err)
	}
}
