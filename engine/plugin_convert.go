package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pluginPod describes a pod to plugins.
func (e *Engine) pluginPod(p Pod) *api.PodSandbox {
	cfg := &p.Config
	return &api.PodSandbox{
		Id: p.ID, Name: cfg.Name, Uid: cfg.UID, Namespace: cfg.Namespace, Labels: cfg.Labels, Annotations: cfg.Annotations,
		RuntimeHandler: cfg.Handler, Pid: uint32(p.InitPid), Ips: p.IPs,
		Linux: &api.LinuxPodSandbox{
			PodOverhead: pluginResources(cfg.Overhead), PodResources: pluginResources(cfg.Resources),
			CgroupParent: cfg.CgroupParent, CgroupsPath: e.podCgroup(p), Namespaces: e.pluginNamespaces(&p),
		},
	}
}

// pluginNamespaces gives the namespaces that a pod's containers share, while
// it has them.
func (e *Engine) pluginNamespaces(p *Pod) []*api.LinuxNamespace {
	if p.State == PodStopped || p.State == PodRemoving {
		return nil
	}
	in := &SpecInput{Pod: p.Config, PodDir: e.cfg.podDir(p.ID)}
	in.Config.Security.Namespaces.PID = ModePod
	spec := &specs.Spec{Linux: &specs.Linux{}}
	if err := addNamespaces(in, spec); err != nil {
		return nil
	}
	var all []*api.LinuxNamespace
	for _, ns := range api.FromOCILinuxNamespaces(spec.Linux.Namespaces) {
		if ns.Path != "" {
			all = append(all, ns)
		}
	}
	return all
}

func pluginResources(r *Resources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	return api.FromOCILinuxResources(linuxResources(r), nil)
}

// pluginStates are the states of a container as plugins know them; one that is
// being made has none.
var pluginStates = map[ContainerState]api.ContainerState{
	ContainerCreated:  api.ContainerState_CONTAINER_CREATED,
	ContainerStarting: api.ContainerState_CONTAINER_RUNNING, // they were told of its start
	ContainerRunning:  api.ContainerState_CONTAINER_RUNNING,
	ContainerExited:   api.ContainerState_CONTAINER_STOPPED,
	ContainerRemoving: api.ContainerState_CONTAINER_STOPPED,
}

// pluginContainer describes a container to plugins.
func pluginContainer(c Container, spec *specs.Spec) *api.Container {
	cfg := &c.Config
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: cfg.Name, State: pluginStates[c.State], Labels: maps.Clone(cfg.Labels),
		Annotations: maps.Clone(spec.Annotations), Pid: uint32(c.Pid),
		CreatedAt: unixNano(c.CreatedAt), StartedAt: unixNano(c.StartedAt), FinishedAt: unixNano(c.FinishedAt),
		ExitCode: int32(c.ExitCode), StatusReason: c.Reason, StatusMessage: c.Message,
		Mounts: api.FromOCIMounts(spec.Mounts), Hooks: api.FromOCIHooks(spec.Hooks),
		Image: &api.Image{Name: cfg.Image, ConfigDigest: c.ImageID},
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	maps.Copy(out.Annotations, cfg.Annotations)
	for _, name := range cfg.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: name})
	}
	out.Linux = &api.LinuxContainer{SeccompProfile: pluginProfile(cfg)}
	if p := spec.Process; p != nil {
		out.Args, out.Env = slices.Clone(p.Args), textEnv(p.Env) // copies: the library changes them
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		out.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		if p.Scheduler != nil {
			out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
	}
	if l := spec.Linux; l != nil {
		pluginLinux(out.Linux, l)
	}
	return out
}

func pluginLinux(out *api.LinuxContainer, l *specs.Linux) {
	out.Namespaces, out.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	out.Resources, out.CgroupsPath, out.Sysctl = api.FromOCILinuxResources(l.Resources, nil), l.CgroupsPath, maps.Clone(l.Sysctl)
	out.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		out.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if r := l.IntelRdt; r != nil {
		out.Rdt = &api.LinuxRdt{ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring)}
	}
}

// pluginProfile says by which profile a container is confined.
func pluginProfile(cfg *ContainerConfig) *api.SecurityProfile {
	switch p := cfg.Security.Seccomp; {
	case cfg.Security.Privileged || p.Kind == ProfileUnconfined:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	case p.Kind == ProfileDefault:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
	case p.Kind == ProfileLocalhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: p.Name}
	}
	return nil
}

// unixNano is 0 for a time that has not come.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
