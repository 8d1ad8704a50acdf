package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Handler is a way to run pods, for which a RuntimeClass asks by name.
type Handler struct {
	Seccomp             string // of containers that say nothing: "unconfined", "runtime/default" or "", the engine's default
	UserNamespaces      bool   // pods that say nothing, and can, get a user namespace
	HostCgroupNamespace bool
	// ShimPerPod has one shim make all containers of a pod. Ours costs less
	// memory then than one for each, and if it dies all of them end. Another
	// runtime's makes a sandbox container first, see [Pod.Sandboxed]. A pod keeps
	// what it was made with.
	ShimPerPod bool

	// RuntimeType is "" for our own shim, or says which shim of containerd's
	// convention makes the containers: io.containerd.NAME.vN, or a path.
	RuntimeType string
	OCIRuntime  string // that containerd-shim-runc-v2 runs; "": runc
	ConfigPath  string // of the runtime's own configuration
	// Annotations are patterns (path.Match) of the pods' and containers'
	// annotations that the runtime gets.
	Annotations []string
}

// foreign reports whether another runtime's shim makes the containers.
func (h *Handler) foreign() bool { return h.RuntimeType != "" }

// runtimeTypes is containerd's form of a runtime's name.
var runtimeTypes = regexp.MustCompile(`^[a-z0-9]+(?:\.[a-z0-9]+)*\.([a-z0-9]+(?:-[a-z0-9]+)*)\.(v[0-9]+)$`)

// Check refuses a handler that cannot work.
func (h *Handler) Check() error {
	if !slices.Contains([]string{"", "unconfined", "runtime/default"}, h.Seccomp) {
		return fmt.Errorf("seccomp: %q is neither unconfined nor runtime/default", h.Seccomp)
	}
	if h.foreign() && !filepath.IsAbs(h.RuntimeType) && !runtimeTypes.MatchString(h.RuntimeType) {
		return fmt.Errorf("runtime_type: %q is neither an absolute path nor like io.containerd.runc.v2", h.RuntimeType)
	}
	if h.foreign() && h.UserNamespaces {
		return errors.New("user_namespaces: only our own shim has them")
	}
	if h.OCIRuntime != "" && !h.isRunc() {
		return errors.New("oci_runtime: only io.containerd.runc.v2 runs one")
	}
	if h.ConfigPath != "" && (!h.foreign() || h.isRunc() || !filepath.IsAbs(h.ConfigPath)) {
		return fmt.Errorf("config_path: %q is not an absolute path, or the runtime reads none", h.ConfigPath)
	}
	for _, pattern := range h.Annotations {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("annotations: %q: %w", pattern, err)
		}
	}
	return nil
}

// isRunc reports whether the shim is containerd's own, which has options of
// its own type.
func (h *Handler) isRunc() bool {
	return strings.HasPrefix(h.RuntimeType, "io.containerd.runc.") || strings.HasPrefix(filepath.Base(h.RuntimeType), "containerd-shim-runc-")
}

// WantsSandbox reports whether the runtime may have one thing, such as a virtual
// machine, for all containers of a pod: any other than runc.
func (h *Handler) WantsSandbox() bool { return h.foreign() && !h.isRunc() }

// shimPath finds the shim's binary, in dirs and then on PATH, by containerd's
// rule: io.containerd.NAME.vN is containerd-shim-NAME-vN.
func (h *Handler) shimPath(dirs []string) (string, error) {
	if filepath.IsAbs(h.RuntimeType) {
		return exec.LookPath(h.RuntimeType)
	}
	parts := runtimeTypes.FindStringSubmatch(h.RuntimeType)
	if parts == nil {
		return "", fmt.Errorf("runtime type %q", h.RuntimeType)
	}
	name := "containerd-shim-" + parts[1] + "-" + parts[2]
	for _, dir := range dirs {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: it is not in %s either", err, strings.Join(dirs, ", "))
	}
	return filepath.Abs(found)
}

// runcOptions is containerd.runc.v1.Options, as far as it is used.
type runcOptions struct {
	BinaryName string `pb:"6"`
	Root       string `pb:"7"` // of the runtime's state
}

// genericOptions is runtimeoptions.v1.Options.
type genericOptions struct {
	TypeURL    string `pb:"1"`
	ConfigPath string `pb:"2"`
}

// optionsType is the name of the runtime's own options, which some compare:
// that of the runtime with ".options".
func (h *Handler) optionsType() string {
	if !filepath.IsAbs(h.RuntimeType) {
		return h.RuntimeType + ".options"
	}
	name := strings.TrimPrefix(filepath.Base(h.RuntimeType), "containerd-shim-")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		name = name[:i] + "." + name[i+1:]
	}
	return "io.containerd." + name + ".options"
}

// options are what the shim gets with each container; nil: none.
func (h *Handler) options(runcDir string) *api.Any {
	switch {
	case h.isRunc():
		return &api.Any{TypeURL: "containerd.runc.v1.Options",
			Value: pb.Marshal(&runcOptions{BinaryName: h.OCIRuntime, Root: runcDir})}
	case h.ConfigPath != "":
		return &api.Any{TypeURL: "runtimeoptions.v1.Options", Value: pb.Marshal(&genericOptions{TypeURL: h.optionsType(), ConfigPath: h.ConfigPath})}
	}
	return nil
}

// handlers are the ways to run pods that are configured at the moment.
type handlers struct {
	mu       sync.Mutex // guards all below
	shimDirs []string   // where shims of other runtimes are looked for, before PATH
	byName   map[string]Handler
	features map[string]HandlerFeatures // of those that can run
	probed   chan struct{}              // closed once features is valid
}

// SetHandlers replaces the runtime handlers, and finds out in the background
// what they can do. What runs goes on; names are those of RuntimeClasses, and
// the default one, "", is always there.
func (e *Engine) SetHandlers(set map[string]Handler, shimDirs []string) {
	byName := maps.Clone(set)
	if byName == nil {
		byName = map[string]Handler{}
	}
	if _, ok := byName[""]; !ok {
		byName[""] = Handler{}
	}
	probed := make(chan struct{})
	e.handlers.mu.Lock()
	e.handlers.byName, e.handlers.shimDirs, e.handlers.probed = byName, shimDirs, probed
	e.handlers.mu.Unlock()
	e.work.Go(func() {
		defer close(probed)
		features := e.probe(byName, shimDirs)
		e.handlers.mu.Lock()
		defer e.handlers.mu.Unlock()
		if e.handlers.probed == probed {
			e.handlers.features = features
		}
	})
}

// handler gives a runtime handler by its name.
func (e *Engine) handler(name string) (Handler, error) {
	e.handlers.mu.Lock()
	defer e.handlers.mu.Unlock()
	h, ok := e.handlers.byName[name]
	if !ok {
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(e.handlers.byName)), func(s string) bool { return s == "" })
		return h, fmt.Errorf("%w: runtime handler %q is not configured; there are %q", ErrInvalid, name, names)
	}
	return h, nil
}

func (e *Engine) shimDirs() []string {
	e.handlers.mu.Lock()
	defer e.handlers.mu.Unlock()
	return e.handlers.shimDirs
}

// Handlers gives the runtime handlers that can run, with the default one "",
// and what each can do. It waits for the probing that a start or a change of
// configuration begins.
func (e *Engine) Handlers() map[string]HandlerFeatures {
	e.handlers.mu.Lock()
	probed := e.handlers.probed
	e.handlers.mu.Unlock()
	if probed != nil {
		<-probed
	}
	e.handlers.mu.Lock()
	defer e.handlers.mu.Unlock()
	return maps.Clone(e.handlers.features)
}

// checkHandler refuses a pod that its handler cannot run.
func (e *Engine) checkHandler(cfg *PodConfig) error {
	h, err := e.handler(cfg.Handler)
	if err != nil {
		return err
	}
	if !h.foreign() {
		return nil
	}
	if cfg.Namespaces.User != nil {
		return fmt.Errorf("%w: runtime handler %q has no user namespaces", ErrInvalid, cfg.Handler)
	}
	if _, err := h.shimPath(e.shimDirs()); err != nil {
		return fmt.Errorf("%w: runtime handler %q: %w", ErrInvalid, cfg.Handler, err)
	}
	return nil
}

// User ids of pods that get a user namespace by their handler: ranges of
// userIDs ids from firstUserID on, above what kubelet gives (65536 for each of
// its pods) and below 2^31, where some tools see negative numbers.
const (
	firstUserID = 1 << 29
	userIDs     = 1 << 16
	maxUserPods = 1 << 12
)

// giveUserNamespace gives a new pod a user namespace of its own if its handler
// says so and the pod can have one; mu is held.
func (e *Engine) giveUserNamespace(h *Handler, cfg *PodConfig) error {
	ns := &cfg.Namespaces
	if !h.UserNamespaces || ns.User != nil || cfg.Privileged || ns.Network == ModeHost || ns.PID == ModeHost || ns.IPC == ModeHost {
		return nil
	}
	taken := map[uint32]bool{}
	for _, p := range e.pods {
		if user := p.snapshot().Config.Namespaces.User; user != nil {
			taken[user.UIDs[0].Host] = true
		}
	}
	for i := range uint32(maxUserPods) {
		if first := firstUserID + i*userIDs; !taken[first] {
			m := []IDMap{{Host: first, Size: userIDs}}
			ns.User, cfg.OwnUsers = &UserMap{UIDs: m, GIDs: m}, true
			return nil
		}
	}
	return fmt.Errorf("pod %s/%s: all %d ranges of user ids are taken", cfg.Namespace, cfg.Name, maxUserPods)
}

// Annotations by which runtimes of containerd's convention learn of the pod
// (containerd, internal/cri/annotations).
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationPod       = "io.kubernetes.cri.sandbox-id"
	annotationPodName   = "io.kubernetes.cri.sandbox-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationUID       = "io.kubernetes.cri.sandbox-uid"
	annotationName      = "io.kubernetes.cri.container-name"
	annotationImage     = "io.kubernetes.cri.image-name"
	annotationLogDir    = "io.kubernetes.cri.sandbox-log-directory"
	// annotationGroup tells containerd-shim-runc-v2 which containers share one
	// shim. Each has its own, so that none depends on another's keeper, or all
	// have that of their pod's sandbox container.
	annotationGroup = "io.containerd.runc.v2.group"
)

// spreadMounts has another runtime leave the root's mount propagation as
// propagating mounts need it (config-linux.md, rootfsPropagation); ours does so
// by itself.
func (h *Handler) spreadMounts(spec *specs.Spec) {
	if !h.foreign() {
		return
	}
	for _, m := range spec.Mounts {
		if slices.Contains(m.Options, "rshared") {
			spec.Linux.RootfsPropagation = "rshared"
			return
		}
		if slices.Contains(m.Options, "rslave") {
			spec.Linux.RootfsPropagation = "rslave"
		}
	}
}

// annotate tells another runtime whose container it makes.
func (h *Handler) annotate(spec *specs.Spec, p *Pod, id string, cfg *ContainerConfig) {
	if !h.foreign() {
		return
	}
	h.annotatePod(spec, p, p.Config.Annotations, cfg.Annotations)
	image := cfg.UserImage
	if image == "" {
		image = cfg.Image
	}
	maps.Copy(spec.Annotations, map[string]string{annotationType: "container", annotationName: cfg.Name, annotationImage: image})
	if h.isRunc() && !p.Sandboxed {
		spec.Annotations[annotationGroup] = id
	}
}

// annotateSandbox tells another runtime that it makes a pod's sandbox container.
func (h *Handler) annotateSandbox(spec *specs.Spec, p *Pod) {
	h.annotatePod(spec, p, p.Config.Annotations)
	maps.Copy(spec.Annotations, map[string]string{annotationType: "sandbox", annotationLogDir: p.Config.LogDir})
}

// annotatePod tells another runtime of the pod, and what of others' annotations
// it shall know.
func (h *Handler) annotatePod(spec *specs.Spec, p *Pod, others ...map[string]string) {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for _, given := range others {
		for key, value := range given {
			if slices.ContainsFunc(h.Annotations, func(pattern string) bool { ok, _ := path.Match(pattern, key); return ok }) {
				spec.Annotations[key] = value
			}
		}
	}
	maps.Copy(spec.Annotations, map[string]string{annotationPod: p.ID, annotationPodName: p.Config.Name,
		annotationNamespace: p.Config.Namespace, annotationUID: p.Config.UID})
	if h.isRunc() {
		spec.Annotations[annotationGroup] = p.ID
	}
}

// logMissing says which handlers cannot run, and why.
func logMissing(log *slog.Logger, name string, err error) {
	log.Warn("runtime handler cannot run", "handler", name, "err", err)
}

// selfBinary is what another runtime's shim may run to publish an event.
func selfBinary() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return self
}
