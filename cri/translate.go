package cri

import (
	"fmt"
	"strings"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podConfig translates what a client wants of a pod.
func podConfig(c *runtimeapi.PodSandboxConfig, handler string) (engine.PodConfig, error) {
	if c.GetMetadata() == nil {
		return engine.PodConfig{}, fmt.Errorf("%w: a pod sandbox needs metadata", engine.ErrInvalid)
	}
	m, linux := c.Metadata, c.GetLinux()
	sec := linux.GetSecurityContext()
	if err := checkPodConfig(c); err != nil {
		return engine.PodConfig{}, err
	}
	out := engine.PodConfig{
		PodKey:   engine.PodKey{Name: m.Name, Namespace: m.Namespace, UID: m.Uid, Attempt: m.Attempt},
		Hostname: c.Hostname, LogDir: c.LogDirectory, Labels: c.Labels, Annotations: c.Annotations, Handler: handler,
		CgroupParent: linux.GetCgroupParent(), Sysctls: linux.GetSysctls(), Privileged: sec.GetPrivileged(),
		Overhead: resources(linux.GetOverhead()), Resources: resources(linux.GetResources()), SELinux: selinux(sec.GetSelinuxOptions()),
	}
	if d := c.DnsConfig; d != nil {
		out.DNS = &engine.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	for _, p := range c.PortMappings {
		out.Ports = append(out.Ports, engine.PortMapping{Protocol: strings.ToLower(p.Protocol.String()), ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIP: p.HostIp})
	}
	var err error
	out.Namespaces, err = namespaces(sec.GetNamespaceOptions())
	return out, err
}

// namespaces translates modes; those of a message that is not there are the
// pod's.
func namespaces(o *runtimeapi.NamespaceOption) (engine.Namespaces, error) {
	ns := engine.Namespaces{Network: mode(o.GetNetwork()), PID: mode(o.GetPid()), IPC: mode(o.GetIpc()), Target: o.GetTargetId()}
	user := o.GetUsernsOptions()
	switch {
	case user == nil || user.Mode == runtimeapi.NamespaceMode_NODE:
		ns.HostUsers = user != nil
		if len(user.GetUids())+len(user.GetGids()) > 0 {
			return ns, fmt.Errorf("%w: id mappings are given for the node's user namespace", engine.ErrInvalid)
		}
	case user.Mode == runtimeapi.NamespaceMode_POD:
		if len(user.Uids) != 1 || len(user.Gids) != 1 {
			return ns, fmt.Errorf("%w: a pod's user namespace needs one mapping of users and one of groups", engine.ErrInvalid)
		}
		if user.Uids[0].ContainerId != 0 || user.Gids[0].ContainerId != 0 {
			return ns, fmt.Errorf("%w: a pod's user namespace must map user 0 and group 0", engine.ErrInvalid)
		}
		ns.User = &engine.UserMap{UIDs: idMaps(user.Uids), GIDs: idMaps(user.Gids)}
	default:
		return ns, fmt.Errorf("%w: user namespace mode %s", engine.ErrInvalid, user.Mode)
	}
	return ns, nil
}

var modes = map[runtimeapi.NamespaceMode]engine.Mode{
	runtimeapi.NamespaceMode_POD: engine.ModePod, runtimeapi.NamespaceMode_CONTAINER: engine.ModeContainer,
	runtimeapi.NamespaceMode_NODE: engine.ModeHost, runtimeapi.NamespaceMode_TARGET: engine.ModeTarget,
}

func mode(m runtimeapi.NamespaceMode) engine.Mode { return modes[m] }

func namespaceOption(ns engine.Namespaces) *runtimeapi.NamespaceOption {
	back := func(m engine.Mode) runtimeapi.NamespaceMode {
		for cri, own := range modes {
			if own == m {
				return cri
			}
		}
		return runtimeapi.NamespaceMode_POD
	}
	o := &runtimeapi.NamespaceOption{Network: back(ns.Network), Pid: back(ns.PID), Ipc: back(ns.IPC), TargetId: ns.Target}
	if ns.User != nil {
		o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: criIDMaps(ns.User.UIDs), Gids: criIDMaps(ns.User.GIDs)}
	}
	return o
}

func idMaps(maps []*runtimeapi.IDMapping) []engine.IDMap {
	var out []engine.IDMap
	for _, m := range maps {
		out = append(out, engine.IDMap{Host: m.HostId, Container: m.ContainerId, Size: m.Length})
	}
	return out
}

func criIDMaps(maps []engine.IDMap) []*runtimeapi.IDMapping {
	var out []*runtimeapi.IDMapping
	for _, m := range maps {
		out = append(out, &runtimeapi.IDMapping{HostId: m.Host, ContainerId: m.Container, Length: m.Size})
	}
	return out
}

func selinux(o *runtimeapi.SELinuxOption) *engine.SELinux {
	if o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() == "" {
		return nil
	}
	return &engine.SELinux{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func resources(r *runtimeapi.LinuxContainerResources) *engine.Resources {
	if r == nil {
		return nil
	}
	out := &engine.Resources{CPUPeriod: r.CpuPeriod, CPUQuota: r.CpuQuota, CPUShares: r.CpuShares, MemoryLimit: r.MemoryLimitInBytes,
		SwapLimit: r.MemorySwapLimitInBytes, OOMScoreAdj: r.OomScoreAdj, CpusetCPUs: r.CpusetCpus, CpusetMems: r.CpusetMems, Unified: r.Unified}
	for _, h := range r.HugepageLimits {
		if out.HugePages == nil {
			out.HugePages = map[string]uint64{}
		}
		out.HugePages[h.PageSize] = h.Limit
	}
	return out
}

func linuxResources(r *engine.Resources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{CpuPeriod: r.CPUPeriod, CpuQuota: r.CPUQuota, CpuShares: r.CPUShares, MemoryLimitInBytes: r.MemoryLimit,
		MemorySwapLimitInBytes: r.SwapLimit, OomScoreAdj: r.OOMScoreAdj, CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems, Unified: r.Unified}
	for size, limit := range r.HugePages {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size, Limit: limit})
	}
	return out
}

// containerConfig translates what a client wants of a container.
func containerConfig(c *runtimeapi.ContainerConfig) (engine.ContainerConfig, error) {
	if c.GetMetadata() == nil || c.GetImage() == nil {
		return engine.ContainerConfig{}, fmt.Errorf("%w: a container needs metadata and an image", engine.ErrInvalid)
	}
	if err := checkContainerConfig(c); err != nil {
		return engine.ContainerConfig{}, err
	}
	out := engine.ContainerConfig{
		Name: c.Metadata.Name, Attempt: c.Metadata.Attempt, Image: c.Image.Image, UserImage: c.Image.UserSpecifiedImage, ImageNotes: c.Image.Annotations,
		ImageHandler: c.Image.RuntimeHandler,
		Command:      c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Labels: c.Labels, Annotations: c.Annotations, LogPath: c.LogPath,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.Tty, Resources: resources(c.GetLinux().GetResources()), StopSignal: signalName(c.StopSignal),
	}
	for _, kv := range c.Envs {
		out.Env = append(out.Env, engine.EnvVar{Name: kv.Key, Value: kv.Value})
	}
	for _, d := range c.Devices {
		out.Devices = append(out.Devices, engine.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
	}
	for _, d := range c.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, d.GetName())
	}
	for _, m := range c.Mounts {
		out.Mounts = append(out.Mounts, mount(m))
	}
	var err error
	out.Security, err = security(c.GetLinux().GetSecurityContext())
	return out, err
}

var propagations = map[runtimeapi.MountPropagation]string{
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

func mount(m *runtimeapi.Mount) engine.Mount {
	return engine.Mount{ContainerPath: m.ContainerPath, HostPath: m.HostPath, ReadOnly: m.Readonly, RecursiveReadOnly: m.RecursiveReadOnly,
		Propagation: propagations[m.Propagation], Options: m.MountOptions, Relabel: m.SelinuxRelabel,
		UIDs: idMaps(m.UidMappings), GIDs: idMaps(m.GidMappings), ImageSubPath: m.ImageSubPath,
		Image: m.GetImage().GetImage(), UserImage: m.GetImage().GetUserSpecifiedImage(), ImageNotes: m.GetImage().GetAnnotations(),
		ImageHandler: m.GetImage().GetRuntimeHandler()}
}

func criMount(m engine.Mount, refs map[string]string) *runtimeapi.Mount {
	out := &runtimeapi.Mount{ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.ReadOnly, RecursiveReadOnly: m.RecursiveReadOnly,
		MountOptions: m.Options, SelinuxRelabel: m.Relabel, UidMappings: criIDMaps(m.UIDs), GidMappings: criIDMaps(m.GIDs), ImageSubPath: m.ImageSubPath}
	for cri, own := range propagations {
		if own == m.Propagation {
			out.Propagation = cri
		}
	}
	if m.Image != "" {
		out.Image = &runtimeapi.ImageSpec{Image: m.Image, UserSpecifiedImage: m.UserImage, Annotations: m.ImageNotes,
			RuntimeHandler: m.ImageHandler, ImageRef: refs[m.ContainerPath]}
	}
	return out
}

func security(s *runtimeapi.LinuxContainerSecurityContext) (engine.Security, error) {
	caps := s.GetCapabilities()
	out := engine.Security{
		AddCapabilities: caps.GetAddCapabilities(), DropCapabilities: caps.GetDropCapabilities(), AddAmbient: caps.GetAddAmbientCapabilities(),
		Privileged: s.GetPrivileged(), SELinux: selinux(s.GetSelinuxOptions()), RunAsUsername: s.GetRunAsUsername(),
		ReadOnlyRootfs: s.GetReadonlyRootfs(), Groups: s.GetSupplementalGroups(), NoNewPrivs: s.GetNoNewPrivs(),
		StrictGroups: s.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict,
		MaskedPaths:  s.GetMaskedPaths(), ReadonlyPaths: s.GetReadonlyPaths(),
		RunAsUser: optional(s.GetRunAsUser()), RunAsGroup: optional(s.GetRunAsGroup()),
	}
	var err error
	if out.Seccomp, err = profile(s.GetSeccomp(), s.GetSeccompProfilePath()); err != nil {
		return out, err
	}
	if out.AppArmor, err = profile(s.GetApparmor(), s.GetApparmorProfile()); err != nil {
		return out, err
	}
	out.Namespaces, err = namespaces(s.GetNamespaceOptions())
	return out, err
}

func optional(v *runtimeapi.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// profile translates a security profile, or the string that older clients
// send.
func profile(p *runtimeapi.SecurityProfile, old string) (engine.Profile, error) {
	if p == nil {
		return oldProfile(old)
	}
	if p.LocalhostRef != "" && p.ProfileType != runtimeapi.SecurityProfile_Localhost {
		return engine.Profile{}, fmt.Errorf("%w: localhost_ref %q is given for a security profile of type %s", engine.ErrInvalid, p.LocalhostRef, p.ProfileType)
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return engine.Profile{Kind: engine.ProfileDefault}, nil
	case runtimeapi.SecurityProfile_Unconfined:
		return engine.Profile{Kind: engine.ProfileUnconfined}, nil
	case runtimeapi.SecurityProfile_Localhost:
		if p.LocalhostRef == "" {
			return engine.Profile{}, fmt.Errorf("%w: a localhost security profile needs a name", engine.ErrInvalid)
		}
		return engine.Profile{Kind: engine.ProfileLocalhost, Name: p.LocalhostRef}, nil
	}
	return engine.Profile{}, fmt.Errorf("%w: security profile type %s", engine.ErrInvalid, p.ProfileType)
}

func oldProfile(old string) (engine.Profile, error) {
	switch {
	case old == "":
		return engine.Profile{}, nil
	case old == "runtime/default" || old == "docker/default":
		return engine.Profile{Kind: engine.ProfileDefault}, nil
	case old == "unconfined":
		return engine.Profile{Kind: engine.ProfileUnconfined}, nil
	case strings.HasPrefix(old, "localhost/"):
		return engine.Profile{Kind: engine.ProfileLocalhost, Name: strings.TrimPrefix(old, "localhost/")}, nil
	}
	return engine.Profile{}, fmt.Errorf("%w: security profile %q", engine.ErrInvalid, old)
}

// signalName gives "SIGTERM", "SIGRTMIN+1", or "" for the runtime's default.
func signalName(s runtimeapi.Signal) string {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

// signalEnum translates back. A container always has a stop signal.
func signalEnum(name string) runtimeapi.Signal {
	if name == "" {
		return runtimeapi.Signal_SIGNAL_SIGTERM
	}
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	value, ok := runtimeapi.Signal_value["SIGNAL_"+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)]
	if !ok {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	return runtimeapi.Signal(value)
}
