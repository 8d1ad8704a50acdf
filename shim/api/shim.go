package api

// The messages of [ShimService]. Payloads that are configuration travel as
// JSON of the types named, so that a record, a log and the wire read alike.

// RunRequest runs a process in a container with its stdio made by the caller,
// and answers once execve(2) has happened. Process is the JSON of an OCI
// process. The frame carries the descriptors of stdin, stdout and stderr, in
// this order, of those whose flag is set; with a terminal it carries none, and
// the answer carries the terminal's master, of which the shim keeps no copy:
// when the caller closes it, or dies, the terminal hangs up. With Tree, Kill
// with All ends the process and everything that it has left behind, and so does
// the end of the connection on which its Wait is called.
//
// The process is forgotten once its end was told, or by Delete, which a running
// one survives.
type RunRequest struct {
	ID      string `pb:"1"`
	ExecID  string `pb:"2"`
	Process []byte `pb:"3"`
	Stdin   bool   `pb:"4"`
	Stdout  bool   `pb:"5"`
	Stderr  bool   `pb:"6"`
	Tree    bool   `pb:"7"`
}

// RunResponse answers Run.
type RunResponse struct {
	Pid uint32 `pb:"1"`
}

// AttachRequest joins a container's stdio. The frame carries descriptors that
// shall receive stdout and stderr, of those whose flag is set; with Stdin the
// answer carries one that feeds the container's stdin.
type AttachRequest struct {
	ID     string `pb:"1"`
	Stdin  bool   `pb:"2"`
	Stdout bool   `pb:"3"`
	Stderr bool   `pb:"4"`
}

// SandboxRequest makes or removes a pod's sandbox; Config is the JSON of a
// [Sandbox].
type SandboxRequest struct {
	Config []byte `pb:"1"`
}

// SandboxResponse answers CreateSandbox; Result is the JSON of a
// [SandboxResult].
type SandboxResponse struct {
	Result []byte `pb:"1"`
}

// DialRequest connects to a port inside a network namespace; the answer
// carries the connected socket.
type DialRequest struct {
	NetNS string `pb:"1"`
	Port  uint32 `pb:"2"`
}

// NetDevRequest asks what the interfaces of a network namespace have sent and
// received.
type NetDevRequest struct {
	NetNS string `pb:"1"`
}

// NetDevResponse answers NetDev with the kernel's /proc/net/dev.
type NetDevResponse struct {
	Text []byte `pb:"1"`
}

// PodInterface is the name of the interface that a pod's network makes in the
// pod.
const PodInterface = "eth0"

// Sandbox is what a shim needs to make a pod's namespaces and network, and to
// take them down again.
type Sandbox struct {
	ID         string            `json:"id"`
	Dir        string            `json:"dir"` // pins and the result record lie here
	NewNet     bool              `json:"newNet,omitempty"`
	NewIPC     bool              `json:"newIPC,omitempty"`
	NewUTS     bool              `json:"newUTS,omitempty"`
	NewPID     bool              `json:"newPID,omitempty"`
	UIDs       []IDMap           `json:"uids,omitempty"` // of a user namespace that owns the others
	GIDs       []IDMap           `json:"gids,omitempty"`
	Hostname   string            `json:"hostname,omitempty"`
	Sysctls    map[string]string `json:"sysctls,omitempty"`
	CgroupPath string            `json:"cgroupPath,omitempty"`
	Scope      *Scope            `json:"scope,omitempty"`      // nil: the shim makes the cgroup
	ShmSize    int64             `json:"shmSize,omitempty"`    // bytes; 0: no shared memory mount
	MountLabel string            `json:"mountLabel,omitempty"` // SELinux's, of the shared memory; "": the kernel's choice
	Network    *Network          `json:"network,omitempty"`    // nil: no network is attached
}

// Scope is the unit by which systemd makes a sandbox's cgroup.
type Scope struct {
	Name        string `json:"name"`
	Slice       string `json:"slice"`
	Description string `json:"description"`
}

// IDMap maps a range of ids of a user namespace.
type IDMap struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Size      uint32 `json:"size"`
}

// Network says how the sandbox's shim attaches the pod.
type Network struct {
	Conflist     []byte        `json:"conflist"`
	BinDirs      []string      `json:"binDirs,omitempty"`
	CacheDir     string        `json:"cacheDir"`
	DataDir      string        `json:"dataDir"`
	Args         [][2]string   `json:"args,omitempty"`
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	CgroupPath   string        `json:"cgroupPath,omitempty"`
	Bandwidth    *Bandwidth    `json:"bandwidth,omitempty"`
}

// Bandwidth limits a pod's traffic, in bits per second; 0 is no limit.
type Bandwidth struct {
	Ingress uint64 `json:"ingress,omitempty"`
	Egress  uint64 `json:"egress,omitempty"`
}

// PortMapping forwards a port of the host to the pod.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// SandboxResult is what came of it; the shim writes it to [ResultFile] before
// it answers, so that a daemon which died meanwhile finds it.
type SandboxResult struct {
	InitPid   int      `json:"initPid,omitempty"` // of a pod with a shared pid namespace
	IPs       []string `json:"ips,omitempty"`     // the primary one first
	DNS       []string `json:"dns,omitempty"`
	CNIResult []byte   `json:"cniResult,omitempty"`
}

// ResultFile is the record of a [SandboxResult] in the sandbox's directory.
const ResultFile = "result.json"

// ExitFile is the exit record in a container's bundle.
const ExitFile = "exit.json"

// Exit is a container's exit record. The shim writes it before it tells
// anyone, and it survives shim and daemon.
type Exit struct {
	Pid        int    `json:"pid"`
	Code       int    `json:"code"`             // exit code, or 128 and the signal's number
	Signal     int    `json:"signal,omitempty"` // that ended it
	OOMKilled  bool   `json:"oomKilled,omitempty"`
	ExitedAtNS int64  `json:"exitedAtNS"` // nanoseconds since 1970
	Message    string `json:"message,omitempty"`
}

// PrepareRequest makes ready on the node what containers start from: Template
// is where the empty mount namespace is pinned.
type PrepareRequest struct {
	Template string `pb:"1"`
}

// RestoreFile in a bundle is the JSON of a [Restore]; RestoreOptionsFile has the
// options for criu: the message criu_opts of its protocol without the directories.
const (
	RestoreFile        = "restore.json"
	RestoreOptionsFile = "restore.options"
)

// Descriptors of the program that restores: the node's null device, the
// process's streams, or the null device for those that it has not, the
// network namespace, the socket of criu's protocol, and the pid namespace.
const (
	RestoreNull = 3 + iota
	RestoreStdin
	RestoreStdout
	RestoreStderr
	RestoreNetNS
	RestoreSocket
	RestorePIDNS
)

// Restore says how a container is restored from a checkpoint: in the control
// group, with the mounts made, in their order, for it alone, criu is executed.
type Restore struct {
	Program string         `json:"program"`       // criu's path
	Images  string         `json:"images"`        // directory of what it restores
	Env     []string       `json:"env,omitempty"` // NAME=VALUE
	Cgroup  string         `json:"cgroup"`        // below each hierarchy's root
	Mounts  []RestoreMount `json:"mounts,omitempty"`
	NetNS   string         `json:"netNS,omitempty"` // path of its pin
	PIDNS   string         `json:"pidNS,omitempty"` // likewise; of a shared one
	// NewCgroup gives it a cgroup namespace whose root that group is.
	NewCgroup bool `json:"newCgroup,omitempty"`
}

// RestoreMount is a mount of the program that restores.
type RestoreMount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target"` // is made if it is not there
	Options []string `json:"options,omitempty"`
}
