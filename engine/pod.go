package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	nriapi "github.com/containerd/nri/pkg/api"
	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
)

// pod is a pod that the engine holds.
type pod struct {
	id      string
	op      semaphore     // one operation at a time
	settled chan struct{} // closed once the pod is made, or cannot be
	failed  error         // why it could not be made; valid after settled
	shim    podShim
	cpu     rate
	sandbox *container // the sandbox container, nil for none; guarded by the engine's mu

	mu  sync.Mutex // guards rec
	rec Pod
}

func (p *pod) snapshot() Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// podFile is a pod's record in its directory.
const podFile = "pod.json"

// updatePod changes a pod's record on disk and then in memory.
func (e *Engine) updatePod(p *pod, change func(*Pod)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.rec
	change(&next)
	if next.State != p.rec.State && !may(podMoves, p.rec.State, next.State) {
		return fmt.Errorf("pod %s: %w: %s to %s", p.id, ErrState, p.rec.State, next.State)
	}
	if err := atomicfile.WriteJSON(filepath.Join(e.cfg.podDir(p.id), podFile), &next, atomicfile.Volatile); err != nil {
		return err
	}
	p.rec = next
	return nil
}

// RunPod makes a pod's sandbox and gives it once it is ready. A call for a pod
// that is being made, or is ready, gives that one.
func (e *Engine) RunPod(ctx context.Context, cfg PodConfig) (Pod, error) {
	if err := e.checkPod(&cfg); err != nil {
		return Pod{}, err
	}
	p, isNew, err := e.claimPod(cfg)
	if err != nil {
		return Pod{}, err
	}
	if isNew {
		e.work.Go(func() { e.makePod(context.WithoutCancel(ctx), p) })
	}
	select {
	case <-p.settled:
	case <-ctx.Done():
		return Pod{}, context.Cause(ctx)
	}
	if p.failed != nil {
		return Pod{}, p.failed
	}
	return p.snapshot(), nil
}

// claimPod finds the pod of an identity or makes a new one for it.
func (e *Engine) claimPod(cfg PodConfig) (*pod, bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.podKeys[cfg.PodKey]; ok {
		if s := p.snapshot(); s.State != PodCreating && s.State != PodReady {
			return nil, false, fmt.Errorf("pod %s/%s attempt %d: %w: %s is %s", cfg.Namespace, cfg.Name, cfg.Attempt, ErrExists, s.ID, s.State)
		}
		return p, false, nil
	}
	slice, err := e.sliceOf(&cfg)
	if err != nil {
		return nil, false, err
	}
	h, err := e.handler(cfg.Handler)
	if err != nil {
		return nil, false, err
	}
	if !cfg.Namespaces.HostUsers {
		if err := e.giveUserNamespace(&h, &cfg); err != nil {
			return nil, false, err
		}
	}
	id := newID()
	p := &pod{id: id, op: newSemaphore(), settled: make(chan struct{}),
		rec: Pod{ID: id, Config: cfg, State: PodCreating, CreatedAt: time.Now(), Slice: slice, SharedShim: h.ShimPerPod && !h.foreign(), Sandboxed: h.ShimPerPod && h.foreign()}}
	e.pods[id], e.podKeys[cfg.PodKey] = p, p
	return p, true, nil
}

// makePod settles a new pod.
func (e *Engine) makePod(ctx context.Context, p *pod) {
	defer close(p.settled)
	if err := e.sandbox(ctx, p); err != nil {
		p.failed = err
		defer e.forgetPod(p)
		// A shim that failed has taken back what it made; one that died has not.
		if errors.Is(err, client.ErrGone) {
			if err := e.removeSandbox(ctx, p); err != nil {
				// Its record stays: the next daemon takes back what was being made.
				e.log.Warn("sandbox of a failed pod stays", "pod", p.id, "err", err)
				return
			}
		}
		if err := os.RemoveAll(e.cfg.podDir(p.id)); err != nil {
			e.log.Warn("directory of a failed pod stays", "pod", p.id, "err", err)
		}
		return
	}
	e.log.Info("pod is ready", "pod", p.id, "name", p.rec.Config.Name, "namespace", p.rec.Config.Namespace)
	e.publish(Event{PodID: p.id, ContainerID: p.id, Kind: EventCreated, At: time.Now()})
	e.publish(Event{PodID: p.id, ContainerID: p.id, Kind: EventStarted, At: time.Now()})
}

// sandbox records the intent, lets a shim make the sandbox, and records the
// result.
func (e *Engine) sandbox(ctx context.Context, p *pod) error {
	cfg := p.snapshot().Config
	var conflist []byte
	if cfg.Namespaces.Network != ModeHost {
		network, err := e.network()
		if err != nil {
			return err
		}
		conflist = network.Raw
	}
	dir := e.cfg.podDir(p.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := e.writePodFiles(dir, &cfg); err != nil {
		return err
	}
	var result api.SandboxResult
	err := e.workers.with(func(s *client.Shim) error {
		if err := e.updatePod(p, func(r *Pod) { r.Shim, r.Conflist = s.Addr(), conflist }); err != nil {
			return err
		}
		data, err := json.Marshal(e.sandboxOf(p.snapshot()))
		if err != nil {
			return err
		}
		if data, err = s.CreateSandbox(ctx, data); err != nil {
			return err
		}
		return json.Unmarshal(data, &result)
	})
	if err != nil {
		return fmt.Errorf("make sandbox of pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	if err := e.makeSandboxContainer(ctx, p); err != nil {
		return errors.Join(fmt.Errorf("make pod %s/%s: %w", cfg.Namespace, cfg.Name, err), e.removeSandbox(ctx, p))
	}
	err = e.announcePod(ctx, p, func(r *Pod) {
		r.State, r.IPs, r.InitPid, r.CNIResult, r.Shim = PodReady, result.IPs, result.InitPid, result.CNIResult, ""
	})
	if err != nil {
		e.withdrawPod(ctx, p.snapshot())
		return errors.Join(fmt.Errorf("make pod %s/%s: %w", cfg.Namespace, cfg.Name, err), e.endSandboxContainer(ctx, p), e.removeSandbox(ctx, p))
	}
	return nil
}

// sandboxOf says what a shim has to make, or to remove, for a pod.
func (e *Engine) sandboxOf(p Pod) *api.Sandbox {
	cfg := &p.Config
	ns := cfg.Namespaces
	s := &api.Sandbox{
		ID: p.ID, Dir: e.cfg.podDir(p.ID), Sysctls: cfg.Sysctls, CgroupPath: e.podCgroup(p),
		NewNet: ns.Network != ModeHost, NewUTS: ns.Network != ModeHost, NewIPC: ns.IPC != ModeHost, NewPID: ns.PID == ModePod && !p.Sandboxed,
	}
	if p.Slice != "" {
		s.Scope = &api.Scope{Name: scopeName(p.ID), Slice: p.Slice, Description: "pod " + cfg.Namespace + "/" + cfg.Name}
	}
	if s.NewUTS {
		s.Hostname = cfg.Hostname
	}
	if s.NewIPC {
		s.ShmSize = e.cfg.ShmSize
		if e.host.seLinux && cfg.SELinux != nil {
			s.MountLabel = fileLabel(cfg.SELinux)
		}
	}
	if ns.User != nil {
		s.UIDs, s.GIDs = apiMap(ns.User.UIDs), apiMap(ns.User.GIDs)
	}
	if s.NewNet {
		s.Network = &api.Network{
			Conflist: p.Conflist, BinDirs: e.cfg.CNI.BinDirs, CacheDir: e.cfg.CNI.CacheDir, DataDir: e.cfg.CNI.DataDir,
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", cfg.Namespace}, {"K8S_POD_NAME", cfg.Name},
				{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", cfg.UID}},
			PortMappings: hostPorts(cfg.Ports), CgroupPath: e.parentCgroup(p),
		}
	}
	return s
}

func apiMap(maps []IDMap) []api.IDMap {
	out := make([]api.IDMap, 0, len(maps))
	for _, m := range maps {
		out = append(out, api.IDMap{Container: m.Container, Host: m.Host, Size: m.Size})
	}
	return out
}

// hostPorts gives the mappings that name a port of the host.
func hostPorts(ports []PortMapping) []api.PortMapping {
	var out []api.PortMapping
	for _, m := range ports {
		if m.HostPort > 0 {
			out = append(out, api.PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: m.Protocol, HostIP: m.HostIP})
		}
	}
	return out
}

// checkPod refuses what cannot be a pod.
func (e *Engine) checkPod(cfg *PodConfig) error {
	if cfg.Name == "" || cfg.UID == "" || cfg.Namespace == "" {
		return fmt.Errorf("%w: a pod needs a name, a namespace and a uid", ErrInvalid)
	}
	if err := e.checkHandler(cfg); err != nil {
		return err
	}
	if _, err := e.sliceOf(cfg); err != nil {
		return err
	}
	for _, m := range cfg.Ports {
		if m.HostPort < 0 || m.HostPort > 65535 || m.HostPort > 0 && (m.ContainerPort < 1 || m.ContainerPort > 65535) {
			return fmt.Errorf("%w: port mapping %d to %d", ErrInvalid, m.HostPort, m.ContainerPort)
		}
	}
	if len(cfg.Hostname) > 64 || strings.ContainsFunc(cfg.Hostname, unicode.IsControl) {
		return fmt.Errorf("%w: hostname %q is longer than 64 bytes, or not a name", ErrInvalid, cfg.Hostname)
	}
	if cfg.LogDir != "" && !filepath.IsAbs(cfg.LogDir) {
		return fmt.Errorf("%w: log directory %q is not absolute", ErrInvalid, cfg.LogDir)
	}
	if err := e.checkLabel(cfg.SELinux); err != nil {
		return err
	}
	if cfg.DNS != nil {
		for _, word := range slices.Concat(cfg.DNS.Servers, cfg.DNS.Searches, cfg.DNS.Options) {
			if strings.ContainsFunc(word, unicode.IsSpace) {
				return fmt.Errorf("%w: %q cannot be in a line of resolv.conf", ErrInvalid, word)
			}
		}
	}
	if cfg.Hostname == "" && cfg.Namespaces.Network != ModeHost {
		cfg.Hostname = e.host.hostname
	}
	return nil
}

// StopPod ends a pod's containers at once and takes its sandbox down. It is
// idempotent; a pod that is not there is stopped.
func (e *Engine) StopPod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error { return e.stopPod(ctx, p) })
}

func (e *Engine) stopPod(ctx context.Context, p *pod) error {
	<-p.settled
	if p.failed != nil {
		return nil
	}
	if err := p.op.acquire(ctx); err != nil {
		return err
	}
	defer p.op.release()
	if state := p.snapshot().State; state == PodStopped || state == PodRemoving {
		return nil
	}
	before := p.snapshot()
	if err := e.endContainers(ctx, p); err != nil {
		return err
	}
	if err := e.endSandboxContainer(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	if before.State == PodReady { // or else a stop that was not finished has told them
		e.toldPod(ctx, nriapi.Event_STOP_POD_SANDBOX, before)
	}
	if err := e.removeSandbox(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	err := e.updatePod(p, func(r *Pod) { r.State, r.IPs, r.InitPid = PodStopped, nil, 0 })
	if err == nil {
		e.log.Info("pod is stopped", "pod", p.id)
		e.publish(Event{PodID: p.id, ContainerID: p.id, Kind: EventStopped, At: time.Now()})
	}
	return err
}

// endContainers ends a pod's containers and lets no other be made in it. One
// may be claimed until the pod is said to be stopping, so they are ended twice.
func (e *Engine) endContainers(ctx context.Context, p *pod) error {
	end := func() error {
		return e.each(e.containersOf(p.id), func(c *container) error { return e.stopContainer(ctx, c, 0) })
	}
	if err := end(); err != nil {
		return err
	}
	if err := e.updatePod(p, func(r *Pod) { r.State = PodStopping }); err != nil {
		return err
	}
	return end()
}

// each runs f for all containers at once and joins the errors.
func (e *Engine) each(all []*container, f func(*container) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() { errs[i] = f(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (e *Engine) removeSandbox(ctx context.Context, p *pod) error {
	data, err := json.Marshal(e.sandboxOf(p.snapshot()))
	if err != nil {
		return err
	}
	return e.workers.again(func(s *client.Shim) error { return s.RemoveSandbox(ctx, data) })
}

// RemovePod stops a pod if it is not stopped, and removes it and its
// containers. It is idempotent.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error { return e.removePod(ctx, p) })
}

func (e *Engine) removePod(ctx context.Context, p *pod) error {
	if err := e.stopPod(ctx, p); err != nil {
		return err
	}
	if p.failed != nil {
		return nil
	}
	if err := p.op.acquire(ctx); err != nil {
		return err
	}
	defer p.op.release()
	if p.snapshot().State == PodRemoving {
		return nil // the call that held the semaphore before has removed it
	}
	if err := e.each(e.containersOf(p.id), func(c *container) error { return e.removeContainer(ctx, c) }); err != nil {
		return err
	}
	if err := e.updatePod(p, func(r *Pod) { r.State = PodRemoving }); err != nil {
		return err
	}
	e.toldPod(ctx, nriapi.Event_REMOVE_POD_SANDBOX, p.snapshot())
	if err := os.RemoveAll(e.cfg.podDir(p.id)); err != nil {
		return err
	}
	last := p.snapshot()
	e.forgetPod(p)
	e.log.Info("pod is removed", "pod", p.id)
	e.publish(Event{PodID: p.id, ContainerID: p.id, Kind: EventDeleted, At: time.Now(), Pod: &last})
	return nil
}

func (e *Engine) forgetPod(p *pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pods, p.id)
	if e.podKeys[p.rec.Config.PodKey] == p {
		delete(e.podKeys, p.rec.Config.PodKey)
	}
}

// Files of a pod that its containers see unless they mount their own.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
)

// writePodFiles makes a pod's hostname, hosts and resolv.conf.
func (e *Engine) writePodFiles(dir string, cfg *PodConfig) error {
	hostname := cfg.Hostname
	if hostname == "" {
		hostname = e.host.hostname
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || cfg.Namespaces.Network != ModeHost {
		hosts = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	resolv, err := resolvConf(cfg.DNS)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{hostnameFile: []byte(hostname + "\n"), hostsFile: hosts, resolvFile: resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
		if e.host.seLinux && cfg.SELinux != nil {
			if err := setLabel(filepath.Join(dir, name), fileLabel(cfg.SELinux)); err != nil {
				return fmt.Errorf("label %s of pod: %w", name, err)
			}
		}
	}
	return nil
}

// resolvConf writes what the client wants, or takes the host's.
func resolvConf(dns *DNS) ([]byte, error) {
	if dns == nil || len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, s := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return []byte(b.String()), nil
}

// UpdatePodResources takes note of what a pod's cgroup, which the client
// owns, is to be set to, unless a plugin refuses it.
func (e *Engine) UpdatePodResources(ctx context.Context, id string, overhead, resources *Resources) error {
	p, err := e.findPod(id)
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error {
		if e.plugins.Active() {
			err := e.plugins.UpdatePod(ctx, e.pluginPod(p.snapshot()), pluginResources(overhead), pluginResources(resources))
			if err != nil {
				return fmt.Errorf("update pod %s: %w", p.id, err)
			}
		}
		err := e.updatePod(p, func(r *Pod) {
			if overhead != nil {
				r.Config.Overhead = overhead
			}
			if resources != nil {
				r.Config.Resources = resources
			}
		})
		if err == nil {
			e.toldPod(ctx, nriapi.Event_POST_UPDATE_POD_SANDBOX, p.snapshot())
		}
		return err
	})
}
