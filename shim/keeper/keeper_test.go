package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// TestMain makes this binary a shim of containerd's convention too, whose one
// container is a few lines of output.
func TestMain(m *testing.M) {
	if verb := os.Args[len(os.Args)-1]; slices.Contains([]string{"start", "delete", "listen"}, verb) {
		if err := fakeShim(verb); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const fakeSocket = "fake.sock" // in the bundle, which is the working directory

func fakeShim(verb string) error {
	bundle, err := os.Getwd()
	if err != nil {
		return err
	}
	switch verb {
	case "delete":
		return os.WriteFile("deleted", nil, 0o600)
	case "start":
		cmd := exec.Command(os.Args[0], "-id", os.Args[slices.Index(os.Args, "-id")+1], "listen")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fakeSocket, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			return err
		}
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			return err
		}
		_, err = fmt.Printf("unix://%s\n", filepath.Join(bundle, fakeSocket))
		return err
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	f := &fake{ended: make(chan struct{}), quit: make(chan struct{})}
	var s api.Server
	s.Register(api.TaskV2, map[string]api.Method{"Create": f.create, "Start": f.start, "Wait": f.wait, "Kill": f.kill, "Delete": f.delete, "Shutdown": f.shutdown})
	go s.Serve(l.(*net.UnixListener))
	<-f.quit
	return nil
}

type fake struct {
	req         api.CreateTaskRequest
	out         *os.File
	code        uint32
	ended, quit chan struct{}
}

func (f *fake) create(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	if err := decode(&f.req); err != nil {
		return nil, err
	}
	if f.req.Options != nil && string(f.req.Options.Value) == "refuse" {
		return nil, api.Errorf(api.CodeInvalidArgument, "refused by the fake")
	}
	var err error
	f.out, err = os.OpenFile(f.req.Stdout, os.O_WRONLY, 0)
	return &api.CreateTaskResponse{Pid: uint32(os.Getpid())}, err
}

func (f *fake) start(context.Context, func(any) error, *api.Files) (any, error) {
	if f.req.Options != nil && string(f.req.Options.Value) == "die" {
		os.Exit(1)
	}
	fmt.Fprint(f.out, "one\ntwo\n")
	return &api.StartResponse{Pid: uint32(os.Getpid())}, nil
}

func (f *fake) wait(context.Context, func(any) error, *api.Files) (any, error) {
	<-f.ended
	return &api.WaitResponse{ExitStatus: f.code}, nil
}

func (f *fake) kill(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	if f.req.Options != nil && string(f.req.Options.Value) == "hang" {
		<-ctx.Done()
		<-f.ended
	}
	var req api.KillRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	f.code = 128 + req.Signal
	f.out.Close()
	close(f.ended)
	return &api.Empty{}, nil
}

func (f *fake) delete(context.Context, func(any) error, *api.Files) (any, error) {
	return &api.DeleteResponse{}, nil
}

func (f *fake) shutdown(context.Context, func(any) error, *api.Files) (any, error) {
	os.Remove(fakeSocket)
	close(f.quit)
	return &api.Empty{}, nil
}

// call runs a method of a service as its server would.
func call(method api.Method, req any) (any, error) {
	data := pb.Marshal(req)
	return method(context.Background(), func(msg any) error { return pb.Unmarshal(data, msg) }, &api.Files{})
}

// self is this program, which plays the shim; it is started in other directories.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// order is a request for a container of the fake shim, in a new bundle.
func order(t *testing.T, how string) *api.CreateTaskRequest {
	t.Helper()
	dir, err := os.MkdirTemp("", "keep") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	foreign := &api.Foreign{Binary: self(t), Options: &api.Any{TypeURL: "fake", Value: []byte(how)}}
	return &api.CreateTaskRequest{ID: "c", Bundle: dir, Stdout: api.LogScheme + filepath.Join(dir, "c.log"), Stderr: "-",
		Options: &api.Any{TypeURL: api.ForeignType, Value: pb.Marshal(foreign)}}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// needRoot skips a test that mounts, unless it was promised that it can.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("needs root: mounts and unmounts")
	}
	t.Skip("needs root: mounts and unmounts")
}

func TestKeeperLogsRecordsAndLeavesNothing(t *testing.T) {
	needRoot(t)
	s := New("@keeper")
	req := order(t, "")
	if _, err := call(s.create, req); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(req.Bundle, api.ForeignFile)) {
		t.Error("no record says that another shim has a container")
	}
	id := &api.ProcessRequest{ID: "c"}
	if _, err := call(s.start, id); err != nil {
		t.Fatal(err)
	}
	oom := &api.Any{Value: pb.Marshal(&api.TaskOOM{ContainerID: "c"})}
	if _, err := call(s.forward, &api.ForwardRequest{Envelope: &api.Envelope{Topic: api.TopicOOM, Event: oom}}); err != nil {
		t.Fatal(err)
	}
	if _, err := call(s.kill, &api.KillRequest{ID: "c", Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	resp, err := call(s.wait, id)
	if err != nil || resp.(*api.WaitResponse).ExitStatus != 137 {
		t.Errorf("Wait: %v, %v", resp, err)
	}
	log, err := os.ReadFile(filepath.Join(req.Bundle, "c.log"))
	if err != nil || !bytes.Contains(log, []byte(" stdout F one\n")) || !bytes.Contains(log, []byte(" stdout F two\n")) {
		t.Errorf("log %q, %v", log, err)
	}
	var exit api.Exit
	if data, err := os.ReadFile(filepath.Join(req.Bundle, api.ExitFile)); err != nil || json.Unmarshal(data, &exit) != nil || exit.Code != 137 || !exit.OOMKilled {
		t.Errorf("exit record %s, %v", data, err)
	}
	if _, err := call(s.delete, id); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{api.ForeignFile, fakeSocket, "stdio-1", "stdio-2", "deleted"} {
		if exists(filepath.Join(req.Bundle, name)) {
			t.Errorf("%s is left", name)
		}
	}
	s.DaemonGone()
	<-s.Ending()
}

func TestShimThatRefusesOrDiesIsClearedAway(t *testing.T) {
	needRoot(t)
	s := New("@keeper")
	req := order(t, "refuse")
	if _, err := call(s.create, req); err == nil || !strings.Contains(err.Error(), "refused by the fake") {
		t.Errorf("Create: %v", err)
	}
	if !exists(filepath.Join(req.Bundle, "deleted")) || exists(filepath.Join(req.Bundle, api.ForeignFile)) {
		t.Error("what a refused container held is not cleared away")
	}
	s = New("@keeper")
	req = order(t, "die")
	if _, err := call(s.create, req); err != nil {
		t.Fatal(err)
	}
	id := &api.ProcessRequest{ID: "c"}
	if _, err := call(s.start, id); err == nil {
		t.Error("Start of a shim that died succeeded")
	}
	if resp, err := call(s.wait, id); err != nil || resp.(*api.WaitResponse).ExitStatus != 137 {
		t.Errorf("Wait: %v, %v", resp, err)
	}
	if _, err := call(s.delete, id); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(req.Bundle, "deleted")) || exists(filepath.Join(req.Bundle, fakeSocket)) {
		t.Error("what a dead shim held is not cleared away")
	}
}

// TestKillEndsAShimThatDoesNothing: SIGKILL ends a container in any case.
func TestKillEndsAShimThatDoesNothing(t *testing.T) {
	needRoot(t)
	defer func(before time.Duration) { endLimit = before }(endLimit)
	s := New("@keeper")
	req := order(t, "hang")
	req.ID = "hang" + strconv.Itoa(os.Getpid())
	if _, err := call(s.create, req); err != nil {
		t.Fatal(err)
	}
	id := &api.ProcessRequest{ID: req.ID}
	if _, err := call(s.start, id); err != nil {
		t.Fatal(err)
	}
	endLimit = 50 * time.Millisecond
	if _, err := call(s.kill, &api.KillRequest{ID: req.ID, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if resp, err := call(s.wait, id); err != nil || resp.(*api.WaitResponse).ExitStatus != 137 {
		t.Errorf("Wait: %v, %v", resp, err)
	}
	endLimit = 10 * time.Second
	if _, err := call(s.delete, id); err != nil {
		t.Fatal(err)
	}
}

// TestContainerThatNobodyWantsIsNotKept: the daemon died while it was made, and
// the next one has said to end.
func TestContainerThatNobodyWantsIsNotKept(t *testing.T) {
	needRoot(t)
	s := New("@keeper")
	release := s.begin() // as a Create that is under way
	if _, err := call(s.shutdown, &api.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	req := order(t, "")
	if _, err := call(s.create, req); api.CodeOf(err) != api.CodeFailedPrecondition {
		t.Errorf("Create: %v", err)
	}
	if exists(filepath.Join(req.Bundle, api.ForeignFile)) || exists(filepath.Join(req.Bundle, fakeSocket)) {
		t.Error("something is left")
	}
	release()
	<-s.Ending()
}

// TestKeeperEndsThoughSomethingStays: a removal that was not complete is not
// asked for again.
func TestKeeperEndsThoughSomethingStays(t *testing.T) {
	needRoot(t)
	s := New("@keeper")
	req := order(t, "die")
	if _, err := call(s.create, req); err != nil {
		t.Fatal(err)
	}
	id := &api.ProcessRequest{ID: "c"}
	if _, err := call(s.start, id); err == nil {
		t.Error("Start of a shim that died succeeded")
	}
	if _, err := call(s.wait, id); err != nil {
		t.Fatal(err)
	}
	s.made.shim.rec.Binary = "/nonexistent/shim"
	if _, err := call(s.delete, id); err == nil {
		t.Error("Delete without the shim's binary succeeded")
	}
	if _, err := call(s.shutdown, &api.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Ending():
	case <-time.After(10 * time.Second):
		t.Error("the keeper does not end")
	}
}

// TestCleanNeedsNoKeeper: another keeper clears away by the record.
func TestCleanNeedsNoKeeper(t *testing.T) {
	needRoot(t)
	req := order(t, "")
	if _, err := call(New("@first").create, req); err != nil {
		t.Fatal(err)
	}
	s := New("@second")
	for range 2 { // it is idempotent
		if _, err := call(s.clean, &api.CleanRequest{ID: "c", Bundle: req.Bundle}); err != nil {
			t.Fatal(err)
		}
	}
	if exists(filepath.Join(req.Bundle, fakeSocket)) || exists(filepath.Join(req.Bundle, api.ForeignFile)) {
		t.Error("something is left")
	}
}

// TestCleanFindsAShimByItsArguments: the keeper died before it could note where
// the shim listens.
func TestCleanFindsAShimByItsArguments(t *testing.T) {
	needRoot(t)
	req := order(t, "")
	req.ID = "lost" + strconv.Itoa(os.Getpid())
	s := New("@keeper")
	if _, err := call(s.create, req); err != nil {
		t.Fatal(err)
	}
	r := &remote{id: req.ID, bundle: req.Bundle, rec: api.ForeignRecord{Binary: self(t)}}
	if err := r.note(); err != nil {
		t.Fatal(err)
	}
	if _, err := call(New("@second").clean, &api.CleanRequest{ID: req.ID, Bundle: req.Bundle}); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", filepath.Join(req.Bundle, fakeSocket)); err == nil {
		t.Error("the shim goes on")
	}
}

// TestKillFindsWhoIsJustBeingStarted: while processes are looked for, one may
// start the next and end.
func TestKillFindsWhoIsJustBeingStarted(t *testing.T) {
	needRoot(t)
	bundle := t.TempDir()
	relay, fifo := filepath.Join(bundle, "relay"), filepath.Join(bundle, "fifo")
	script := "[ $2 = 0 ] && read never <fifo\nsh $0 $1 $(($2 - 1)) &\n"
	if err := errors.Join(os.WriteFile(relay, []byte(script), 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		r := &remote{id: fmt.Sprint("relay", os.Getpid(), "-", i), bundle: bundle, rec: api.ForeignRecord{Binary: "/bin/sh"}}
		first := exec.Command("sh", relay, r.id, "2")
		first.Dir = bundle
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // it may have ended, and the second too
			_ = first.Wait()
		}
		if err := r.kill(); err != nil {
			t.Fatal(err)
		}
		_ = first.Wait() // of the signal, if not earlier
		if found, err := r.killListed(); found || err != nil {
			t.Fatalf("somebody goes on: %v", err)
		}
	}
}

// TestInputWaitsForTheShim: what is written to a process is not lost because its
// shim opens the FIFO late.
func TestInputWaitsForTheShim(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "all of it"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	bundle := t.TempDir()
	f, err := openExec(bundle, "e", [3]*os.File{r})
	if err != nil {
		t.Fatal(err)
	}
	late, err := unix.Open(f.paths[0], unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(late)
	f.opened()
	ended := make(chan struct{})
	f.feed(r, func() { f.closeStdin(); close(ended) })
	select {
	case <-ended:
		t.Error("it has ended before anybody could read it")
	case <-time.After(50 * time.Millisecond):
	}
	got := make(chan string, 1)
	go func() {
		data, err := os.ReadFile(fmt.Sprint("/proc/self/fd/", late))
		got <- fmt.Sprint(string(data), err)
	}()
	select {
	case text := <-got:
		if text != "all of it<nil>" {
			t.Errorf("read %q", text)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("who reads it waits for ever")
	}
	<-ended
	if err := f.finish(); err != nil {
		t.Error(err)
	}
}

// TestInputThatNobodyReadsIsGivenUp: the shim has died first.
func TestInputThatNobodyReadsIsGivenUp(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f, err := openExec(t.TempDir(), "e", [3]*os.File{r})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	f.feed(r, func() { close(ended) })
	f.abandon()
	<-ended
}

func TestParseBootstrap(t *testing.T) {
	for out, want := range map[string]string{
		"unix:///run/s/abc\n": "/run/s/abc 2",
		`{"version":3,"address":"unix:///run/s/abc","protocol":"ttrpc"}`: "/run/s/abc 3",
		`{"version":2,"address":"unix:///run/s/abc","protocol":"ttrpc"}`: "/run/s/abc 2",
		"unix://\x00abstract": "@abstract 2",
	} {
		path, version, err := parseBootstrap([]byte(out))
		if got := fmt.Sprint(path, " ", version); err != nil || got != want {
			t.Errorf("%q: %q, %v", out, got, err)
		}
	}
	for _, out := range []string{"", "hello", "unix://", "unix://relative", "tcp://1.2.3.4:5", "{", `{"version":3}`, `{"version":4,"address":"unix:///a"}`,
		`{"version":3,"address":"unix:///a","protocol":"grpc"}`, "unix:///" + strings.Repeat("a", 200)} {
		if path, _, err := parseBootstrap([]byte(out)); err == nil {
			t.Errorf("%q was read as %q", out, path)
		}
	}
}

func FuzzParseBootstrap(f *testing.F) {
	f.Add([]byte("unix:///run/s/abc\n"))
	f.Add([]byte(`{"version":3,"address":"unix:///run/s/abc","protocol":"ttrpc"}`))
	f.Fuzz(func(t *testing.T, out []byte) {
		path, version, err := parseBootstrap(out)
		if err == nil && (path == "" || len(path) >= 108 || version < 2 || version > 3) {
			t.Errorf("%q gave %q, %d", out, path, version)
		}
	})
}

func TestBoundedOutput(t *testing.T) {
	b := &bounded{}
	if n, err := io.Copy(b, strings.NewReader(strings.Repeat("x", 3*maxOutput))); err != nil || n != 3*maxOutput || b.kept.Len() != maxOutput {
		t.Errorf("%d bytes, kept %d, %v", n, b.kept.Len(), err)
	}
}
