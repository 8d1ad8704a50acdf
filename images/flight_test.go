package images

import (
	"context"
	"errors"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/longshore/longshore/images/registrytest"
)

// gate lets a layer's request wait until it is opened.
func gate(reg *registrytest.Registry, part string) (reached chan struct{}, release func()) {
	reached, open := make(chan struct{}, 16), make(chan struct{})
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, part) {
			reached <- struct{}{}
			select {
			case <-open:
			case <-r.Context().Done():
			}
		}
		return false
	}
	return reached, sync.OnceFunc(func() { close(open) })
}

func TestPullsOfOneImageAreOne(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", two("1"))
	reg.Put(t, "app2", "1", two("2")) // shares the lower layer
	reached, release := gate(reg, digestOf(layout, 0))
	defer release()
	s := open(t, t.TempDir())
	ctx, leave := context.WithCancelCause(context.Background())
	errs := make(chan error, 8)
	pull := func(ctx context.Context, repo string) {
		_, err := s.Pull(ctx, reg.Host()+"/"+repo+":1", PullOptions{})
		errs <- err
	}
	go pull(ctx, "app")
	<-reached
	gone := errors.New("gone")
	for range 3 {
		go pull(context.Background(), "app")
	}
	waitFor(t, func() bool { return s.pulls.waiting("") == 4 })
	leave(gone) // the first one leaves: the others do not notice
	if err := <-errs; !errors.Is(err, gone) {
		t.Errorf("who left got %v", err)
	}
	go pull(context.Background(), "app2")
	waitFor(t, func() bool { return s.unpacks.waiting(layerName(digest.FromBytes(layout.Blobs[0]))) == 2 })
	release()
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := reg.Requests("GET /v2/app/blobs/") + reg.Requests("GET /v2/app2/blobs/"); n != 5 {
		t.Errorf("%d blobs were fetched, want 5", n)
	}
	if len(s.List()) != 2 {
		t.Errorf("%d images", len(s.List()))
	}
}

// waitFor waits for what no event announces.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for !cond() {
		runtime.Gosched()
		if t.Context().Err() != nil {
			t.Fatal("never happened")
		}
	}
}

// waiting counts who waits for calls whose key begins with prefix.
func (f *flights[T]) waiting(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for key, call := range f.calls {
		if strings.HasPrefix(key, prefix) {
			n += call.waiting
		}
	}
	return n
}

func TestPullNobodyWaitsForIsGivenUp(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", two("1"))
	reached, release := gate(reg, digestOf(layout, 0))
	defer release()
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := s.Pull(ctx, reg.Host()+"/app:1", PullOptions{})
		done <- err
	}()
	<-reached
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantEmpty(t, s)
}

func TestFailureOfOnePullDoesNotTakeAnothersLayers(t *testing.T) {
	reg := registrytest.New(t)
	good := reg.Put(t, "good", "1", two("good"))
	bad := reg.Put(t, "bad", "1", two("bad"))
	reached, open1 := gate(reg, digestOf(good, 1))
	defer open1()
	gated := reg.Intercept
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, digestOf(bad, 1)) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return gated(w, r)
	}
	s := open(t, t.TempDir())
	done := make(chan error)
	go func() {
		_, err := s.Pull(context.Background(), reg.Host()+"/good:1", PullOptions{})
		done <- err
	}()
	<-reached
	if _, err := s.Pull(context.Background(), reg.Host()+"/bad:1", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	open1()
	if err := <-done; err != nil {
		t.Error(err)
	}
	img, err := s.Get(reg.Host() + "/good:1")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := s.Rootfs(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if n := reg.Requests("GET /v2/good/blobs/" + digestOf(good, 0)); n > 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}

// The layer is in both registries; who joined the one that fails turns to its own.
func TestWhoJoinedAFailureUsesItsOwnSource(t *testing.T) {
	bad, good := registrytest.New(t), registrytest.New(t)
	layout := bad.Put(t, "app", "1", two("1"))
	good.Put(t, "app", "1", two("1"))
	reached, release := make(chan struct{}, 1), make(chan struct{})
	bad.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digestOf(layout, 0)) {
			return false
		}
		reached <- struct{}{}
		<-release
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	s := open(t, t.TempDir())
	pull := func(reg *registrytest.Registry, done chan error) {
		_, err := s.Pull(context.Background(), reg.Host()+"/app:1", PullOptions{})
		done <- err
	}
	badDone, goodDone := make(chan error), make(chan error)
	go pull(bad, badDone)
	<-reached
	go pull(good, goodDone)
	waitFor(t, func() bool { return s.unpacks.waiting(layerName(digest.FromBytes(layout.Blobs[0]))) == 2 })
	close(release)
	if err := <-badDone; !errors.Is(err, ErrUnauthorized) {
		t.Errorf("from the registry that refuses: %v", err)
	}
	if err := <-goodDone; err != nil {
		t.Errorf("from the one that does not: %v", err)
	}
}
