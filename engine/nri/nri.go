package nri

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator"
	"github.com/containerd/ttrpc"
)

// Config says where plugins are and how long they may take.
type Config struct {
	Enabled             bool
	Socket              string        // where plugins register
	NoConnections       bool          // run the plugins of PluginDir only
	PluginDir           string        // plugins to start, named INDEX-NAME
	PluginConfigDir     string        // their configuration, INDEX-NAME.conf or NAME.conf
	RegistrationTimeout time.Duration // for a plugin that has connected
	RequestTimeout      time.Duration // for each request
	Validator           Validator
}

// Validator is what the built-in validator refuses of the plugins' adjustments.
type Validator = validator.DefaultValidatorConfig

// Runtime is what a host needs of its engine.
type Runtime interface {
	// State gives the pods and containers that a new plugin is told of.
	State() ([]*api.PodSandbox, []*api.Container)
	// Update changes containers as a plugin wants without being asked, and
	// gives the changes that failed. It is bounded in time.
	Update(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error)
	// Later does what a plugin wanted in its answer to a synchronization, or
	// beside its own updates; it does not wait.
	Later(updates []*api.ContainerUpdate, evictions []*api.ContainerEviction)
}

// Host connects plugins with an engine. A nil Host has no plugins.
type Host struct {
	cfg     Config
	log     *slog.Logger
	runtime Runtime
	nri     *adaptation.Adaptation
	plugins atomic.Int64 // built-in ones too

	mu     sync.Mutex // guards failed
	failed []failure

	creating  sync.Mutex // guards adjusters
	adjusters []string   // plugins that adjust the container of the request
}

// New prepares a host; version is the daemon's. [Host.Start] runs it. The
// library keeps time-outs and logger for the whole process, so there is one
// host in it.
func New(cfg Config, version string, runtime Runtime, log *slog.Logger) (*Host, error) {
	if !cfg.Enabled {
		return nil, nil
	}
	h := &Host{cfg: cfg, log: log, runtime: runtime}
	logTo(log)
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	options := []adaptation.Option{
		adaptation.WithSocketPath(cfg.Socket), adaptation.WithPluginPath(cfg.PluginDir), adaptation.WithPluginConfigPath(cfg.PluginConfigDir),
		adaptation.WithDefaultValidator(&cfg.Validator), adaptation.WithMetrics(meter{h}),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(noteEvictions)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(h.evictUnasked)}),
	}
	if cfg.NoConnections || h.taken() {
		options = append(options, adaptation.WithDisabledExternalConnections())
	}
	var err error
	if h.nri, err = adaptation.New("longshore", version, h.synchronize, runtime.Update, options...); err != nil {
		return nil, fmt.Errorf("plugin interface: %w", err)
	}
	return h, nil
}

// taken reports whether another runtime of the node answers on the socket,
// which the library would take from it.
func (h *Host) taken() bool {
	c, err := net.Dial("unix", h.cfg.Socket)
	if err != nil {
		return false
	}
	c.Close()
	h.log.Warn("plugins cannot connect: another runtime serves their socket", "socket", h.cfg.Socket)
	return true
}

// Start runs the plugins of the plugin directory, and listens for others.
func (h *Host) Start() error {
	if h == nil {
		return nil
	}
	if err := h.nri.Start(); err != nil {
		return fmt.Errorf("plugin interface: %w", err)
	}
	return nil
}

// Close stops listening and ends the plugins that it has started.
func (h *Host) Close() {
	if h != nil {
		h.nri.Stop()
	}
}

// Active reports whether any plugin is there to be told.
func (h *Host) Active() bool { return h != nil && h.plugins.Load() > 0 }

// Block keeps new plugins from being synchronized until the function that it
// gives is called, so that each of them hears of an object exactly once: when
// it joins, or as an event.
func (h *Host) Block() (unblock func()) {
	if h == nil {
		return func() {}
	}
	return h.nri.BlockPluginSync().Unblock
}

// synchronize tells a new plugin what there is. What it wants changed is done
// later: an operation that the change must wait for may itself wait for the
// plugin to have joined.
func (h *Host) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := h.runtime.State()
	updates, err := tell(ctx, pods, containers)
	if err == nil {
		h.runtime.Later(updates, nil)
	}
	return err
}

// Tell relays an event that has no answer. For one of a pod, c is nil.
func (h *Host) Tell(ctx context.Context, event api.Event, p *api.PodSandbox, c *api.Container) error {
	var err error
	switch event {
	case api.Event_RUN_POD_SANDBOX:
		err = h.nri.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: p})
	case api.Event_POST_UPDATE_POD_SANDBOX:
		err = h.nri.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: p})
	case api.Event_STOP_POD_SANDBOX:
		err = h.nri.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: p})
	case api.Event_REMOVE_POD_SANDBOX:
		err = h.nri.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: p})
	case api.Event_POST_CREATE_CONTAINER:
		err = h.nri.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: p, Container: c})
	case api.Event_START_CONTAINER:
		err = h.nri.StartContainer(ctx, &api.StartContainerRequest{Pod: p, Container: c})
	case api.Event_POST_START_CONTAINER:
		err = h.nri.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: p, Container: c})
	case api.Event_POST_UPDATE_CONTAINER:
		err = h.nri.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: p, Container: c})
	case api.Event_REMOVE_CONTAINER:
		err = h.nri.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: p, Container: c})
	default:
		return fmt.Errorf("plugin event %s has an answer", event)
	}
	return h.named(event, err)
}

// UpdatePod announces that a pod's limits change; an error of a plugin refuses
// it.
func (h *Host) UpdatePod(ctx context.Context, p *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	_, err := h.nri.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: p, OverheadLinuxResources: overhead, LinuxResources: resources})
	return h.named(api.Event_UPDATE_POD_SANDBOX, err)
}

// Others is what an answer wants of other containers.
type Others struct {
	Updates   []*api.ContainerUpdate
	Evictions []*api.ContainerEviction
}

// Answer is how a container that is being made shall be.
type Answer struct {
	Adjust  *api.ContainerAdjustment
	Plugins []string // those that adjust something, as INDEX-NAME
	Others
}

// Create asks how to adjust a container that is being made.
func (h *Host) Create(ctx context.Context, p *api.PodSandbox, c *api.Container) (Answer, error) {
	// The library makes one request at a time as well.
	h.creating.Lock()
	defer h.creating.Unlock()
	h.adjusters = nil
	ctx, evictions := collectEvictions(ctx)
	resp, err := h.nri.CreateContainer(ctx, &api.CreateContainerRequest{Pod: p, Container: c})
	if err != nil {
		return Answer{}, h.named(api.Event_CREATE_CONTAINER, err)
	}
	return Answer{Adjust: resp.GetAdjust(), Plugins: h.adjusters, Others: Others{Updates: resp.GetUpdate(), Evictions: evictions.take()}}, nil
}

// Update asks how to change a container's limits, and gives those that shall
// be set; nil is the ones asked for.
func (h *Host) Update(ctx context.Context, p *api.PodSandbox, c *api.Container, want *api.LinuxResources) (*api.LinuxResources, Others, error) {
	ctx, evictions := collectEvictions(ctx)
	resp, err := h.nri.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: p, Container: c, LinuxResources: want})
	if err != nil {
		return nil, Others{}, h.named(api.Event_UPDATE_CONTAINER, err)
	}
	var own *api.LinuxResources
	var updates []*api.ContainerUpdate
	for _, u := range resp.GetUpdate() {
		switch {
		case u == nil: // the library's way to say that nobody changes the container itself
		case u.GetContainerId() == c.GetId():
			own = u.GetLinux().GetResources()
		default:
			updates = append(updates, u)
		}
	}
	return own, Others{Updates: updates, Evictions: evictions.take()}, nil
}

// Stopped tells of a container's end, and gives what that means for others.
func (h *Host) Stopped(ctx context.Context, p *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	resp, err := h.nri.StopContainer(ctx, &api.StopContainerRequest{Pod: p, Container: c})
	return resp.GetUpdate(), h.named(api.Event_STOP_CONTAINER, err)
}
