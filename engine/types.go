package engine

import (
	"time"
)

// Mode says whose namespace is used.
type Mode string

// The modes of a namespace.
const (
	ModePod       Mode = "pod"
	ModeContainer Mode = "container"
	ModeHost      Mode = "host"
	ModeTarget    Mode = "target" // that of another container
)

// Namespaces says which namespaces a pod or container lives in.
type Namespaces struct {
	Network Mode     `json:"network"`
	PID     Mode     `json:"pid"`
	IPC     Mode     `json:"ipc"`
	Target  string   `json:"target,omitempty"` // a container's id, with ModeTarget
	User    *UserMap `json:"user,omitempty"`   // nil: the host's user namespace

	HostUsers bool `json:"hostUsers,omitempty"` // the host's user namespace is asked for, and not only had
}

// UserMap maps the ids of a user namespace.
type UserMap struct {
	UIDs []IDMap `json:"uids"`
	GIDs []IDMap `json:"gids"`
}

// IDMap maps a range of ids.
type IDMap struct {
	Host      uint32 `json:"host"`
	Container uint32 `json:"container"`
	Size      uint32 `json:"size"`
}

// PodKey is a pod's identity; it keys its operations.
type PodKey struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`
}

// PodConfig is what a client wants of a pod.
type PodConfig struct {
	PodKey
	Hostname     string            `json:"hostname,omitempty"`
	LogDir       string            `json:"logDir,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"`
	Ports        []PortMapping     `json:"ports,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Overhead     *Resources        `json:"overhead,omitempty"`
	Resources    *Resources        `json:"resources,omitempty"`
	Namespaces   Namespaces        `json:"namespaces"`
	Privileged   bool              `json:"privileged,omitempty"`
	SELinux      *SELinux          `json:"selinux,omitempty"`
	Handler      string            `json:"handler,omitempty"`
	OwnUsers     bool              `json:"ownUsers,omitempty"` // the user namespace is our doing: the client maps no mounts for it
}

// DNS is what goes into a pod's resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// PortMapping forwards a port of the host to a pod.
type PortMapping struct {
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"`
	HostIP        string `json:"hostIP,omitempty"`
}

// SELinux is a process label in parts.
type SELinux struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// Resources limits a container. Zero is "not set".
type Resources struct {
	CPUPeriod   int64             `json:"cpuPeriod,omitempty"` // microseconds
	CPUQuota    int64             `json:"cpuQuota,omitempty"`  // microseconds
	CPUShares   int64             `json:"cpuShares,omitempty"`
	MemoryLimit int64             `json:"memoryLimit,omitempty"` // bytes
	SwapLimit   int64             `json:"swapLimit,omitempty"`   // bytes, of memory and swap together
	OOMScoreAdj int64             `json:"oomScoreAdj,omitempty"`
	CpusetCPUs  string            `json:"cpusetCPUs,omitempty"`
	CpusetMems  string            `json:"cpusetMems,omitempty"`
	HugePages   map[string]uint64 `json:"hugePages,omitempty"` // page size -> bytes
	Unified     map[string]string `json:"unified,omitempty"`   // cgroup v2 files
}

// ContainerConfig is what a client wants of a container.
type ContainerConfig struct {
	Name         string            `json:"name"`
	Attempt      uint32            `json:"attempt"`
	Image        string            `json:"image"`               // the reference to run
	UserImage    string            `json:"userImage,omitempty"` // as the user wrote it
	ImageNotes   map[string]string `json:"imageNotes,omitempty"`
	ImageHandler string            `json:"imageHandler,omitempty"` // the runtime handler that it was pulled for
	Command      []string          `json:"command,omitempty"`
	Args         []string          `json:"args,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	Env          []EnvVar          `json:"env,omitempty"`
	Mounts       []Mount           `json:"mounts,omitempty"`
	Devices      []Device          `json:"devices,omitempty"`
	CDIDevices   []string          `json:"cdiDevices,omitempty"` // qualified names, VENDOR/CLASS=NAME
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	LogPath      string            `json:"logPath,omitempty"` // relative to the pod's log directory
	Stdin        bool              `json:"stdin,omitempty"`
	StdinOnce    bool              `json:"stdinOnce,omitempty"`
	TTY          bool              `json:"tty,omitempty"`
	Resources    *Resources        `json:"resources,omitempty"`
	Security     Security          `json:"security"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Restore      string            `json:"restore,omitempty"` // directory of the checkpoint whose process it shall have
}

// EnvVar is an environment variable. Its value need not be UTF-8: the process
// gets the very bytes.
type EnvVar struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Mount makes a directory or file of the host, or an image, visible.
type Mount struct {
	ContainerPath     string   `json:"containerPath"`
	HostPath          string   `json:"hostPath,omitempty"`
	ReadOnly          bool     `json:"readOnly,omitempty"`
	RecursiveReadOnly bool     `json:"recursiveReadOnly,omitempty"`
	Propagation       string   `json:"propagation,omitempty"` // "", "rslave" or "rshared"
	Options           []string `json:"options,omitempty"`
	Relabel           bool     `json:"relabel,omitempty"`
	UIDs              []IDMap  `json:"uids,omitempty"`
	GIDs              []IDMap  `json:"gids,omitempty"`
	Image             string   `json:"image,omitempty"`
	UserImage         string   `json:"userImage,omitempty"`    // as the user wrote it
	ImageHandler      string   `json:"imageHandler,omitempty"` // the runtime handler that it was pulled for
	ImageSubPath      string   `json:"imageSubPath,omitempty"`

	ImageNotes map[string]string `json:"imageNotes,omitempty"`
}

// Device makes a device of the host visible.
type Device struct {
	ContainerPath string `json:"containerPath"`
	HostPath      string `json:"hostPath"`
	Permissions   string `json:"permissions"` // of "rwm"
}

// Security is what a container's process may do.
type Security struct {
	AddCapabilities  []string   `json:"addCapabilities,omitempty"`
	DropCapabilities []string   `json:"dropCapabilities,omitempty"`
	AddAmbient       []string   `json:"addAmbient,omitempty"`
	Privileged       bool       `json:"privileged,omitempty"`
	Namespaces       Namespaces `json:"namespaces"`
	SELinux          *SELinux   `json:"selinux,omitempty"`
	RunAsUser        *int64     `json:"runAsUser,omitempty"`
	RunAsGroup       *int64     `json:"runAsGroup,omitempty"`
	RunAsUsername    string     `json:"runAsUsername,omitempty"`
	ReadOnlyRootfs   bool       `json:"readOnlyRootfs,omitempty"`
	Groups           []int64    `json:"groups,omitempty"`
	StrictGroups     bool       `json:"strictGroups,omitempty"` // not those of the image
	NoNewPrivs       bool       `json:"noNewPrivs,omitempty"`
	MaskedPaths      []string   `json:"maskedPaths,omitempty"`
	ReadonlyPaths    []string   `json:"readonlyPaths,omitempty"`
	Seccomp          Profile    `json:"seccomp"`
	AppArmor         Profile    `json:"appArmor"`
}

// Profile names a security profile.
type Profile struct {
	Kind ProfileKind `json:"kind,omitempty"`
	Name string      `json:"name,omitempty"` // with ProfileLocalhost
}

// ProfileKind says where a profile comes from.
type ProfileKind string

// The kinds of profiles.
const (
	ProfileUnset      ProfileKind = ""
	ProfileDefault    ProfileKind = "default"
	ProfileUnconfined ProfileKind = "unconfined"
	ProfileLocalhost  ProfileKind = "localhost"
)

// User is who a container's process runs as.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Pod is a pod as it was at one moment.
type Pod struct {
	ID        string    `json:"id"`
	Config    PodConfig `json:"config"`
	State     PodState  `json:"state"`
	CreatedAt time.Time `json:"createdAt"`
	IPs       []string  `json:"ips,omitempty"` // the primary one first
	InitPid   int       `json:"initPid,omitempty"`
	Slice     string    `json:"slice,omitempty"` // systemd's, that the pod's scope is in; "" if systemd made no cgroup
	CNIResult []byte    `json:"cniResult,omitempty"`
	Conflist  []byte    `json:"conflist,omitempty"` // of the network it was attached to
	Shim      string    `json:"shim,omitempty"`     // socket of the shim that works on it

	SharedShim bool `json:"sharedShim,omitempty"` // one shim of ours has all its containers; see [Handler.ShimPerPod]
	Sandboxed  bool `json:"sandboxed,omitempty"`  // another runtime's shim has all its containers, and a sandbox container besides
}

// Container is a container as it was at one moment.
type Container struct {
	ID         string            `json:"id"`
	PodID      string            `json:"podID"`
	Sandbox    bool              `json:"sandbox,omitempty"` // the sandbox container; see [Pod.Sandboxed]
	Config     ContainerConfig   `json:"config"`
	ImageID    string            `json:"imageID"`
	ImageRef   string            `json:"imageRef"` // repository@digest, or the id of an image without any
	State      ContainerState    `json:"state"`
	CreatedAt  time.Time         `json:"createdAt"`
	StartedAt  time.Time         `json:"startedAt,omitzero"`
	FinishedAt time.Time         `json:"finishedAt,omitzero"`
	ExitCode   int               `json:"exitCode"`
	Reason     string            `json:"reason,omitempty"`
	Message    string            `json:"message,omitempty"`
	Pid        int               `json:"pid,omitempty"`
	User       User              `json:"user"`
	LogPath    string            `json:"logPath,omitempty"` // absolute
	Resources  *Resources        `json:"resources,omitempty"`
	StopSignal string            `json:"stopSignal,omitempty"`
	CgroupPath string            `json:"cgroupPath"`
	Shim       string            `json:"shim,omitempty"` // its socket
	Layers     []string          `json:"layers,omitempty"`
	MountNotes map[string]string `json:"mountNotes,omitempty"` // container path -> image id, of image mounts
	Restore    string            `json:"restore,omitempty"`    // directory of the checkpoint whose process it gets
	Base       string            `json:"base,omitempty"`       // the image to use where Config.Image is a checkpoint
	Capture    *Capture          `json:"capture,omitempty"`    // it stands still for a checkpoint
}
