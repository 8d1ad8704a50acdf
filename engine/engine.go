package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/longshore/longshore/engine/criu"
	"github.com/longshore/longshore/engine/nri"
	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/client"
)

// Engine holds all pods and containers of a daemon.
type Engine struct {
	cfg         Config
	log         *slog.Logger
	images      *images.Store
	shims       *client.Pool
	workers     workers
	cgroups     *cgroup.Host
	events      bus
	layers      diskMeter // all writable layers
	host        hostFacts
	plugins     *nri.Host // nil without
	criu        *criu.Program
	handlers    handlers
	appArmor    appArmor
	sandboxRoot func() (string, error) // of sandbox containers, made when the first one is

	life context.Context // ends with the daemon; watchers live by it
	stop context.CancelFunc
	work sync.WaitGroup // operations and watchers

	mu         sync.Mutex // guards all below
	pods       map[string]*pod
	podKeys    map[PodKey]*pod
	containers map[string]*container
	ofPod      map[string]map[string]*container // the same by their pod's id
	podCIDRs   []string
}

// New makes an engine over a store of images and a pool of shims. Call
// [Engine.Recover] before anything else.
func New(cfg Config, store *images.Store, shims *client.Pool, log *slog.Logger) (*Engine, error) {
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Join(cfg.RunDir, "pods"), filepath.Join(cfg.RunDir, "containers"),
		filepath.Join(cfg.StateDir, "containers"), cfg.trashDir(), cfg.emptyDir(), cfg.checkpointDir(), cfg.CNI.CacheDir, cfg.CNI.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	facts, err := readHostFacts(host)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, log: log, images: store, shims: shims, cgroups: host, host: facts, criu: criu.New(cfg.Criu, filepath.Join(cfg.StateDir, "criu")),
		pods: map[string]*pod{}, podKeys: map[PodKey]*pod{}, containers: map[string]*container{}, ofPod: map[string]map[string]*container{}}
	e.workers.pool = shims
	e.sandboxRoot = sync.OnceValues(e.makeSandboxRoot)
	e.appArmor.enabled, e.appArmor.profile = facts.appArmor, cfg.AppArmorDefault
	e.life, e.stop = context.WithCancel(context.Background())
	if e.plugins, err = nri.New(cfg.NRI, cfg.Version, pluginRuntime{e}, log); err != nil {
		return nil, err
	}
	e.SetHandlers(cfg.Handlers, cfg.ShimDirs)
	return e, nil
}

// Close waits for the operations under way and lets go of the shims. No
// container is touched.
func (e *Engine) Close() {
	e.mu.Lock()
	e.stop() // from here on plugins begin nothing
	e.mu.Unlock()
	e.work.Wait()
	e.plugins.Close() // operations under way have been asked about
	e.workers.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		c.disconnect()
	}
	for _, p := range e.pods {
		p.shim.close()
		if p.sandbox != nil {
			p.sandbox.disconnect()
		}
	}
}

// newID makes an id: 64 hexadecimal digits, as clients expect.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// do runs an operation to its end, whatever the caller's patience: the caller
// gets its result or, if ctx ends first, the context's cause.
func (e *Engine) do(ctx context.Context, op func(ctx context.Context) error) error {
	done := make(chan error, 1)
	e.work.Go(func() { done <- op(context.WithoutCancel(ctx)) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lookup finds an object by its id, or by a prefix of it that no other has.
func lookup[T any](kind, id string, all map[string]T) (T, error) {
	if found, ok := all[id]; ok {
		return found, nil
	}
	var match T
	matches := 0
	if id != "" {
		for full, v := range all {
			if strings.HasPrefix(full, id) {
				match = v
				matches++
			}
		}
	}
	switch matches {
	case 1:
		return match, nil
	case 0:
		return match, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	}
	return match, fmt.Errorf("%s %q: %w: %d ids begin so", kind, id, ErrInvalid, matches)
}

func (e *Engine) findPod(id string) (*pod, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return lookup("pod", id, e.pods)
}

func (e *Engine) findContainer(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return lookup("container", id, e.containers)
}

// containersOf gives a pod's containers.
func (e *Engine) containersOf(podID string) []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.ofPod[podID]))
}

// addContainer takes a container into the tables, where clients find it unless it
// is a sandbox container; mu is held.
func (e *Engine) addContainer(c *container) {
	if c.isSandbox {
		if p, ok := e.pods[c.podID]; ok {
			p.sandbox = c
		}
		return
	}
	e.containers[c.id] = c
	if e.ofPod[c.podID] == nil {
		e.ofPod[c.podID] = map[string]*container{}
	}
	e.ofPod[c.podID][c.id] = c
}

// dropContainer takes it out again; mu is held.
func (e *Engine) dropContainer(c *container) {
	if c.isSandbox {
		if p, ok := e.pods[c.podID]; ok && p.sandbox == c {
			p.sandbox = nil
		}
		return
	}
	delete(e.containers, c.id)
	delete(e.ofPod[c.podID], c.id)
	if len(e.ofPod[c.podID]) == 0 {
		delete(e.ofPod, c.podID)
	}
}

// Pod gives a pod by its id, unless it is still being made.
func (e *Engine) Pod(id string) (Pod, error) {
	p, err := e.findPod(id)
	if err != nil {
		return Pod{}, err
	}
	s := p.snapshot()
	if s.State == PodCreating {
		return Pod{}, fmt.Errorf("pod %q: %w: it is being made", id, ErrNotFound)
	}
	return s, nil
}

// Pods gives all pods that clients may see: not those still being made.
func (e *Engine) Pods() []Pod {
	e.mu.Lock()
	pods := make([]*pod, 0, len(e.pods))
	for _, p := range e.pods {
		pods = append(pods, p)
	}
	e.mu.Unlock()
	all := make([]Pod, 0, len(pods))
	for _, p := range pods {
		if s := p.snapshot(); s.State != PodCreating {
			all = append(all, s)
		}
	}
	return all
}

// Container gives a container by its id, unless it is still being made.
func (e *Engine) Container(id string) (Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	s := c.snapshot()
	if s.State == ContainerCreating {
		return Container{}, fmt.Errorf("container %q: %w: it is being made", id, ErrNotFound)
	}
	return s, nil
}

// Containers gives all containers that clients may see.
func (e *Engine) Containers() []Container {
	return snapshots(e.allContainers())
}

// ContainersOf gives those of one pod.
func (e *Engine) ContainersOf(podID string) []Container { return snapshots(e.containersOf(podID)) }

// snapshots leaves out containers that are still being made.
func snapshots(containers []*container) []Container {
	all := make([]Container, 0, len(containers))
	for _, c := range containers {
		if s := c.snapshot(); s.State != ContainerCreating {
			all = append(all, s)
		}
	}
	return all
}

// allContainers gives those still being made, too.
func (e *Engine) allContainers() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.containers))
}

// semaphore serialises the operations on one object; unlike a mutex it can be
// waited for within a context.
type semaphore chan struct{}

func newSemaphore() semaphore { return make(semaphore, 1) }

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s semaphore) release() { <-s }

// workers are the shims that make and remove sandboxes. One that has finished
// is kept for the next.
type workers struct {
	pool *client.Pool

	mu   sync.Mutex // guards idle
	idle []*client.Shim
}

// keptWorkers is how many idle ones are kept.
const keptWorkers = 2

// with lends a shim to f. A shim that is gone is not kept.
func (w *workers) with(f func(*client.Shim) error) error {
	s, err := w.get()
	if err != nil {
		return err
	}
	err = f(s)
	if errors.Is(err, client.ErrGone) {
		s.Close()
		return err
	}
	w.put(s)
	return err
}

// again is with for what may be done twice: a shim that dies at it is followed
// by another, of which the kept ones may all have died.
func (w *workers) again(f func(*client.Shim) error) error {
	err := w.with(f)
	for range keptWorkers {
		if !errors.Is(err, client.ErrGone) {
			break
		}
		err = w.with(f)
	}
	return err
}

func (w *workers) get() (*client.Shim, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := len(w.idle); n > 0; n = len(w.idle) {
		s := w.idle[n-1]
		w.idle = w.idle[:n-1]
		if !s.Gone() {
			return s, nil
		}
		s.Close()
	}
	return w.pool.Get()
}

func (w *workers) put(s *client.Shim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.idle) < keptWorkers {
		w.idle = append(w.idle, s)
		return
	}
	endShim(s)
}

func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.idle {
		endShim(s)
	}
	w.idle = nil
}

// endShim lets a shim that holds nothing end.
func endShim(s *client.Shim) {
	_ = s.Shutdown(context.Background()) // it ends with the daemon at the latest
	s.Close()
}
