package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// call runs a method of a service as its server would.
func call(method api.Method, req any) (any, error) {
	data := pb.Marshal(req)
	return method(context.Background(), func(msg any) error { return pb.Unmarshal(data, msg) }, &api.Files{})
}

func TestIdleShimEndsWithItsDaemon(t *testing.T) {
	s := newService()
	s.daemonGone()
	<-s.ending
}

func TestBusyShimFinishesFirst(t *testing.T) {
	s := newService()
	finish := s.begin()
	s.daemonGone()
	select {
	case <-s.ending:
		t.Fatal("ended while something was being made")
	default:
	}
	finish()
	<-s.ending
}

func TestUnknownContainerIsNotFound(t *testing.T) {
	s := newService()
	for name, method := range map[string]api.Method{"Start": s.start, "State": s.state, "Wait": s.wait, "Delete": s.delete} {
		if _, err := call(method, &api.ProcessRequest{ID: "c"}); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := call(s.run, &api.RunRequest{ID: "c"}); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("Run: %v", err)
	}
}

func TestCreateNamesWhatIsWrong(t *testing.T) {
	s := newService()
	dir := t.TempDir()
	if _, err := call(s.create, &api.CreateTaskRequest{ID: "c", Bundle: dir}); api.CodeOf(err) != api.CodeInvalidArgument || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("bundle without a specification: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"ociVersion":"1.3.0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call(s.create, &api.CreateTaskRequest{ID: "c", Bundle: dir}); api.CodeOf(err) != api.CodeInvalidArgument || !strings.Contains(err.Error(), "no process") {
		t.Errorf("specification without a process: %v", err)
	}
}

func TestExitOf(t *testing.T) {
	for _, test := range []struct {
		status       unix.WaitStatus
		err          error
		code, signal int
	}{
		{0, nil, 0, 0}, {7 << 8, nil, 7, 0}, {9, nil, 137, 9}, {15, nil, 143, 15}, {0, errors.New("lost"), 255, 0},
	} {
		if got := exitOf(1, test.status, test.err); got.Code != test.code || got.Signal != test.signal {
			t.Errorf("%v: code %d, signal %d", test, got.Code, got.Signal)
		}
	}
}

func TestStreamsCarryOutputToTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s, err := openStreams(false, "-", api.LogScheme+path, "")
	if err != nil {
		t.Fatal(err)
	}
	out, in := s.child.Stdout, s.child.Stdin
	dupOut, dupIn := dup(out), dup(in)
	s.begin(nil)
	fd, err := s.stdinFD()
	if err != nil {
		t.Fatal(err)
	}
	writer := os.NewFile(uintptr(fd), "stdin")
	io.WriteString(writer, "fed")
	writer.Close()
	s.closeStdin()
	if got, _ := io.ReadAll(dupIn); string(got) != "fed" {
		t.Errorf("the process read %q", got)
	}
	io.WriteString(dupOut, "said\n")
	dupOut.Close()
	if err := s.drain(); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(path); !strings.HasSuffix(string(data), " stdout F said\n") {
		t.Errorf("log holds %q", data)
	}
}

func TestKeyedMutexSerialisesByName(t *testing.T) {
	var k keyedMutex
	var wg sync.WaitGroup
	inside := map[string]int{"a": 0, "b": 0}
	var mu sync.Mutex
	for i := range 40 {
		name := []string{"a", "b"}[i%2]
		wg.Go(func() {
			defer k.lock(name)()
			mu.Lock()
			inside[name]++
			if inside[name] > 1 {
				t.Errorf("two are inside %s", name)
			}
			mu.Unlock()
			mu.Lock()
			inside[name]--
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(k.held) != 0 {
		t.Errorf("%d names are still held", len(k.held))
	}
}

func TestConnectedShimOutlivesItsDaemon(t *testing.T) {
	s := newService()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Call(c, api.TaskV3, "State", &api.TaskRequest{ID: "c"}, nil, &api.Empty{}); api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
	s.daemonGone()
	select {
	case <-s.ending:
		t.Fatal("ended while a daemon was connected")
	default:
	}
	c.Close()
	<-s.ending
	l.Close()
	s.server.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestDeletedBeforeItWasMade: what a dead daemon asked for is not made once the
// next one has given it up.
func TestDeletedBeforeItWasMade(t *testing.T) {
	s := newService()
	req := &api.ProcessRequest{ID: "c"}
	create := &api.CreateTaskRequest{ID: "c", Bundle: t.TempDir()}
	if _, err := call(s.delete, req); api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
	if _, err := call(s.create, create); !strings.Contains(err.Error(), "config.json") {
		t.Errorf("the same daemon: %v", err)
	}
	s.orphan = true
	if _, err := call(s.delete, req); api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
	if _, err := call(s.create, create); api.CodeOf(err) != api.CodeFailedPrecondition {
		t.Errorf("the next daemon: %v", err)
	}
}

// TestCallsWaitForAContainerThatIsBeingMade, and a second Create is refused.
func TestCallsWaitForAContainerThatIsBeingMade(t *testing.T) {
	s := newService()
	made, err := s.claim("c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call(s.create, &api.CreateTaskRequest{ID: "c"}); api.CodeOf(err) != api.CodeAlreadyExists {
		t.Errorf("a second time: %v", err)
	}
	found := make(chan error, 1)
	go func() {
		_, err := s.find("c")
		found <- err
	}()
	select {
	case err := <-found:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	made(&container{id: "c"})
	if err := <-found; err != nil {
		t.Error(err)
	}
}
