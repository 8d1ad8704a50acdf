// Package plugin is a plugin of the Node Resource Interface for tests. It
// writes a line for each event, and does what a file of acts says.
//
// A test runs its own binary again as the plugin: [Main] takes over if the
// environment names a file of acts. The plugin is on the stub that real ones
// are built on, and adds what the stub cannot say: evictions, silence, death.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Names of the environment that make a process a plugin. One that the daemon
// starts has its name and connection from the daemon.
const (
	EnvActs   = "LONGSHORE_TEST_PLUGIN" // file of acts
	EnvLog    = "LONGSHORE_TEST_PLUGIN_LOG"
	EnvName   = "LONGSHORE_TEST_PLUGIN_NAME" // INDEX-NAME
	EnvSocket = "LONGSHORE_TEST_PLUGIN_SOCKET"
)

// Act is what the plugin does at an event.
type Act struct {
	On     string                     // the event, e.g. CreateContainer
	Of     string                     // name of its container or pod; "" is any
	Adjust json.RawMessage            // a ContainerAdjustment
	Update map[string]json.RawMessage // name or id of a container -> LinuxResources
	Evict  []string                   // names or ids of containers
	// Unasked has updates and evictions asked for by a call of the plugin's
	// own, while the event waits for its answer.
	Unasked bool
	Do      string // "hang", "die", "refuse", "garbage"
}

// Main runs the plugin if this process shall be one, and does not return then.
func Main() {
	if os.Getenv(EnvActs) == "" {
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "plugin:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run() error {
	data, err := os.ReadFile(os.Getenv(EnvActs))
	if err != nil {
		return err
	}
	p := &plugin{ids: map[string]string{}}
	if err := json.Unmarshal(data, &p.acts); err != nil {
		return fmt.Errorf("%s: %w", os.Getenv(EnvActs), err)
	}
	if p.log, err = os.OpenFile(os.Getenv(EnvLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
		return err
	}
	options := []stub.Option{stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(p.addToRequest)},
		[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.addToAnswer)})}
	if name := os.Getenv(EnvName); name != "" {
		index, base, _ := strings.Cut(name, "-")
		options = append(options, stub.WithPluginName(base), stub.WithPluginIdx(index), stub.WithSocketPath(os.Getenv(EnvSocket)))
	}
	if p.stub, err = stub.New(p, options...); err != nil {
		return err
	}
	return p.stub.Run(context.Background())
}

type plugin struct {
	acts []Act
	log  *os.File
	stub stub.Stub

	mu    sync.Mutex        // guards all below
	ids   map[string]string // container name -> id
	evict []string          // for the answer or request under way
	spoil bool              // the answer under way is garbage
}

func (p *plugin) say(format string, args ...any) {
	fmt.Fprintf(p.log, format+"\n", args...) // one write a line
}

// act does what is wanted at an event of the object with that name.
func (p *plugin) act(event, name string) (adjust *api.ContainerAdjustment, updates []*api.ContainerUpdate, err error) {
	for _, a := range p.acts {
		if a.On != event || a.Of != "" && a.Of != name {
			continue
		}
		switch a.Do {
		case "hang":
			select {}
		case "die":
			os.Exit(0)
		case "refuse":
			return nil, nil, errors.New("refused by the test")
		case "garbage":
			p.mu.Lock()
			p.spoil = true
			p.mu.Unlock()
		}
		if a.Adjust != nil {
			adjust = &api.ContainerAdjustment{}
			if err := protojson.Unmarshal(a.Adjust, adjust); err != nil {
				return nil, nil, err
			}
		}
		wanted, err := p.updates(a.Update)
		if err != nil {
			return nil, nil, err
		}
		p.mu.Lock()
		p.evict = p.named(a.Evict)
		p.mu.Unlock()
		if !a.Unasked {
			updates = append(updates, wanted...)
			continue
		}
		failed, err := p.stub.UpdateContainers(wanted)
		for _, u := range failed {
			p.say("failed %s", u.ContainerId)
		}
		p.say("updated %v", err)
	}
	return adjust, updates, nil
}

// named gives the ids of containers; what no container is called is an id.
func (p *plugin) named(names []string) []string {
	var ids []string
	for _, name := range names {
		if id, ok := p.ids[name]; ok {
			name = id
		}
		ids = append(ids, name)
	}
	return ids
}

func (p *plugin) updates(wanted map[string]json.RawMessage) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*api.ContainerUpdate
	for name, resources := range wanted {
		u := &api.ContainerUpdate{ContainerId: p.named([]string{name})[0], Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{}}}
		if err := protojson.Unmarshal(resources, u.Linux.Resources); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

func (p *plugin) evictions() []*api.ContainerEviction {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*api.ContainerEviction
	for _, id := range p.evict {
		all = append(all, &api.ContainerEviction{ContainerId: id, Reason: "the test wants it"})
	}
	p.evict = nil
	return all
}

// addToAnswer puts evictions into an answer, or garbage in its place.
func (p *plugin) addToAnswer(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	p.mu.Lock()
	spoil := p.spoil
	p.spoil = false
	p.mu.Unlock()
	if spoil {
		return &api.OptionalString{Value: "a text where a message should be"}, nil
	}
	switch r := resp.(type) {
	case *api.CreateContainerResponse:
		r.Evict = p.evictions()
	case *api.UpdateContainerResponse:
		r.Evict = p.evictions()
	}
	return resp, err
}

// addToRequest puts evictions into a request of the plugin's own.
func (p *plugin) addToRequest(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	if req.Method == "UpdateContainers" {
		var r api.UpdateContainersRequest
		if err := proto.Unmarshal(req.Payload, &r); err != nil {
			return err
		}
		r.Evict = p.evictions()
		payload, err := proto.Marshal(&r)
		if err != nil {
			return err
		}
		req.Payload = payload
	}
	return call(ctx, req, resp)
}

func (p *plugin) know(c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[c.Name] = c.Id
}

// container notes an event of a container and acts.
func (p *plugin) container(event string, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.know(c)
	p.say("%s %s/%s %s", event, pod.Name, c.Name, c.State)
	return p.act(event, c.Name)
}

func (p *plugin) pod(event string, pod *api.PodSandbox) error {
	p.say("%s %s addresses=%t namespaces=%t", event, pod.Name, len(pod.Ips) > 0, len(pod.GetLinux().GetNamespaces()) > 0)
	_, _, err := p.act(event, pod.Name)
	return err
}

// Configure notes the configuration that a plugin has which the daemon starts.
func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	p.say("Configure %s %q", runtime, config)
	return 0, nil
}

// Synchronize notes what there is.
func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	names := map[string]string{}
	for _, pod := range pods {
		names[pod.Id] = pod.Name
		p.say("there is pod %s", pod.Name)
	}
	for _, c := range containers {
		p.know(c)
		p.say("there is container %s/%s %s %s", names[c.PodSandboxId], c.Name, c.State, strings.Join(c.Args, " "))
	}
	p.say("Synchronize")
	_, updates, err := p.act("Synchronize", "")
	return updates, err
}

// RunPodSandbox and the rest are the events.
func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.pod("RunPodSandbox", pod)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, r *api.LinuxResources) error {
	p.say("new limits of pod %s: %d", pod.Name, r.GetMemory().GetLimit().GetValue())
	return p.pod("UpdatePodSandbox", pod)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.pod("PostUpdatePodSandbox", pod)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.pod("StopPodSandbox", pod)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.pod("RemovePodSandbox", pod)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return p.container("CreateContainer", pod, c)
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	var env []string
	for _, e := range c.Env {
		if !strings.HasPrefix(e, "PATH=") && !strings.HasPrefix(e, "HOSTNAME=") {
			env = append(env, e)
		}
	}
	slices.Sort(env)
	p.say("environment of %s: %s", c.Name, strings.Join(env, " "))
	_, _, err := p.container("PostCreateContainer", pod, c)
	return err
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	_, _, err := p.container("StartContainer", pod, c)
	return err
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	_, _, err := p.container("PostStartContainer", pod, c)
	return err
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.say("new limits of %s: %d", c.Name, r.GetMemory().GetLimit().GetValue())
	_, updates, err := p.container("UpdateContainer", pod, c)
	return updates, err
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	_, _, err := p.container("PostUpdateContainer", pod, c)
	return err
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.say("exit of %s: %d", c.Name, c.ExitCode)
	_, updates, err := p.container("StopContainer", pod, c)
	return updates, err
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	_, _, err := p.container("RemoveContainer", pod, c)
	return err
}
