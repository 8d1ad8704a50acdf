package nri

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeRuntime is an engine of one pod; it notes what plugins want.
type fakeRuntime struct {
	later   chan []*api.ContainerEviction
	updated chan []*api.ContainerUpdate
}

func (r *fakeRuntime) State() ([]*api.PodSandbox, []*api.Container) {
	return []*api.PodSandbox{{Id: "p"}}, nil
}

func (r *fakeRuntime) Update(_ context.Context, u []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	r.updated <- u
	return u, nil
}

func (r *fakeRuntime) Later(_ []*api.ContainerUpdate, evictions []*api.ContainerEviction) {
	if len(evictions) > 0 {
		r.later <- evictions
	}
}

// bare is a plugin on the wire itself, so that it can answer as no stub would.
type bare struct {
	api.PluginService // panics for what a test does not expect

	create    func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error)
	synced    chan struct{}
	changes   chan api.Event // of the call for all events that older plugins have
	runtime   *ttrpc.Client
	closeOnce sync.Once
}

func (b *bare) Configure(context.Context, *api.ConfigureRequest) (*api.ConfigureResponse, error) {
	var events api.EventMask
	events.Set(api.Event_CREATE_CONTAINER, api.Event_START_CONTAINER)
	return &api.ConfigureResponse{Events: int32(events)}, nil
}

func (b *bare) Synchronize(context.Context, *api.SynchronizeRequest) (*api.SynchronizeResponse, error) {
	b.closeOnce.Do(func() { close(b.synced) })
	return &api.SynchronizeResponse{}, nil
}

func (b *bare) CreateContainer(ctx context.Context, req *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	return b.create(ctx, req)
}

func (b *bare) StartContainer(context.Context, *api.StartContainerRequest) (*api.StartContainerResponse, error) {
	return nil, status.Error(codes.Unimplemented, "StartContainer")
}

func (b *bare) StateChange(_ context.Context, ev *api.StateChangeEvent) (*api.Empty, error) {
	b.changes <- ev.Event
	return &api.Empty{}, nil
}

// connect registers a plugin and waits until it is one.
func connect(t *testing.T, h *Host, name string, create func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error)) *bare {
	t.Helper()
	b := &bare{create: create, synced: make(chan struct{}), changes: make(chan api.Event, 1)}
	conn, err := net.Dial("unix", h.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := multiplex.Multiplex(conn)
	l, err := mux.Listen(multiplex.PluginServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterPluginService(server, b)
	var serving sync.WaitGroup
	serving.Go(func() {
		_ = server.Serve(context.Background(), l) // ends with the connection
	})
	out, err := mux.Open(multiplex.RuntimeServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	b.runtime = ttrpc.NewClient(out)
	t.Cleanup(func() {
		mux.Close()
		server.Close()
		serving.Wait()
	})
	runtime := api.NewRuntimeClient(b.runtime)
	if _, err := runtime.RegisterPlugin(t.Context(), &api.RegisterPluginRequest{PluginName: name, PluginIdx: "10"}); err != nil {
		t.Fatal(err)
	}
	<-b.synced
	h.Block()() // until it is taken in
	if !h.Active() {
		t.Fatal("no plugin is active after one has joined")
	}
	return b
}

func newHost(t *testing.T) (*Host, *fakeRuntime) {
	t.Helper()
	r := &fakeRuntime{later: make(chan []*api.ContainerEviction, 1), updated: make(chan []*api.ContainerUpdate, 1)}
	dir := t.TempDir()
	h, err := New(Config{Enabled: true, Socket: filepath.Join(dir, "s"), PluginDir: filepath.Join(dir, "plugins"), PluginConfigDir: dir,
		RegistrationTimeout: 5 * time.Second, RequestTimeout: 2 * time.Second}, "1.0", r, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h, r
}

func ask(h *Host) (Answer, error) {
	return h.Create(context.Background(), &api.PodSandbox{Id: "p"}, &api.Container{Id: "c", PodSandboxId: "p"})
}

func TestNobodyIsActiveWithoutPlugins(t *testing.T) {
	h, _ := newHost(t)
	if h.Active() {
		t.Error("active without plugins")
	}
	var none *Host
	none.Block()()
	if none.Active() || none.Start() != nil {
		t.Error("a disabled host is not idle")
	}
	none.Close()
}

func TestEvictionsComeWithAnswers(t *testing.T) {
	h, _ := newHost(t)
	connect(t, h, "evictor", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{Adjust: &api.ContainerAdjustment{Args: []string{"x"}},
			Evict: []*api.ContainerEviction{{ContainerId: "other", Reason: "room"}}}, nil
	})
	answer, err := ask(h)
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Evictions) != 1 || answer.Evictions[0].ContainerId != "other" || answer.Evictions[0].Reason != "room" {
		t.Errorf("evictions = %v", answer.Evictions)
	}
	if len(answer.Plugins) != 1 || answer.Plugins[0] != "10-evictor" {
		t.Errorf("plugins = %q", answer.Plugins)
	}
}

func TestEvictionsComeUnasked(t *testing.T) {
	h, r := newHost(t)
	b := connect(t, h, "unasked", nil)
	resp, err := api.NewRuntimeClient(b.runtime).UpdateContainers(t.Context(), &api.UpdateContainersRequest{
		Update: []*api.ContainerUpdate{{ContainerId: "a"}}, Evict: []*api.ContainerEviction{{ContainerId: "other"}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Failed) != 1 || resp.Failed[0].ContainerId != "a" {
		t.Errorf("failed = %v", resp.Failed)
	}
	if u := <-r.updated; len(u) != 1 {
		t.Errorf("updates = %v", u)
	}
	if evict := <-r.later; len(evict) != 1 || evict[0].ContainerId != "other" {
		t.Errorf("evictions = %v", evict)
	}
}

func TestAnErrorNamesItsPlugin(t *testing.T) {
	h, _ := newHost(t)
	connect(t, h, "refuser", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		return nil, errors.New("not today")
	})
	_, err := ask(h)
	if err == nil || !strings.Contains(err.Error(), "plugin 10-refuser, CreateContainer: ") || !strings.Contains(err.Error(), "not today") {
		t.Errorf("error = %v", err)
	}
	if !h.Active() {
		t.Error("a plugin that refuses was dropped")
	}
}

func TestAHangingPluginIsDropped(t *testing.T) {
	h, _ := newHost(t)
	release := make(chan struct{})
	connect(t, h, "sleeper", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		<-release
		return &api.CreateContainerResponse{}, nil
	})
	defer close(release)
	if _, err := ask(h); err != nil {
		t.Errorf("a request fails for a plugin that hangs: %v", err)
	}
	if h.Active() {
		t.Error("a plugin that hangs is still asked")
	}
}

func TestAnAnswerThatIsTooLargeIsRefused(t *testing.T) {
	h, _ := newHost(t)
	connect(t, h, "talker", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{Adjust: &api.ContainerAdjustment{Args: []string{strings.Repeat("x", 8<<20)}}}, nil
	})
	if answer, err := ask(h); err == nil && len(answer.Adjust.GetArgs()) > 0 {
		t.Error("8 MiB of arguments are taken")
	}
}

func TestOlderPluginsHearOfStateChanges(t *testing.T) {
	h, _ := newHost(t)
	b := connect(t, h, "old", nil)
	if err := h.Tell(t.Context(), api.Event_START_CONTAINER, &api.PodSandbox{Id: "p"}, &api.Container{Id: "c"}); err != nil {
		t.Fatal(err)
	}
	if ev := <-b.changes; ev != api.Event_START_CONTAINER {
		t.Errorf("event = %s", ev)
	}
}

func TestNoiseIsNoPlugin(t *testing.T) {
	h, _ := newHost(t)
	for _, noise := range []string{"", "GET / HTTP/1.0\r\n\r\n", strings.Repeat("\xff", 1<<16), strings.Repeat("\x00", 1<<16)} {
		conn, err := net.Dial("unix", h.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, noise) // the host may have hung up
		conn.Close()
	}
	// Whoever comes next is served.
	connect(t, h, "polite", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{}, nil
	})
	if _, err := ask(h); err != nil {
		t.Error(err)
	}
}

func TestASocketInUseIsLeftAlone(t *testing.T) {
	h, _ := newHost(t)
	other, err := New(h.cfg, "1.0", &fakeRuntime{}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	connect(t, h, "loyal", func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
		return &api.CreateContainerResponse{}, nil
	})
}
