package api

import "time"

// The messages of containerd's task API; field numbers are those of its
// runtime/task/v3/shim.proto, which are the same in version 2.

// Status is the state of a process (containerd.v1.types.Status).
type Status int32

// The states of a process.
const (
	StatusUnknown Status = iota
	StatusCreated
	StatusRunning
	StatusStopped
	StatusPaused
	StatusPausing
)

// Timestamp is google.protobuf.Timestamp.
type Timestamp struct {
	Seconds int64 `pb:"1"`
	Nanos   int32 `pb:"2"`
}

// TimestampOf converts a time; the zero time is nil.
func TimestampOf(t time.Time) *Timestamp {
	if t.IsZero() {
		return nil
	}
	return &Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}

// Time converts back; nil is the zero time.
func (t *Timestamp) Time() time.Time {
	if t == nil {
		return time.Time{}
	}
	return time.Unix(t.Seconds, int64(t.Nanos))
}

// Any is google.protobuf.Any: bytes and the name of their type.
type Any struct {
	TypeURL string `pb:"1"`
	Value   []byte `pb:"2"`
}

// Mount is one mount of a root file system.
type Mount struct {
	Type    string   `pb:"1"`
	Source  string   `pb:"2"`
	Target  string   `pb:"3"`
	Options []string `pb:"4"`
}

// Empty is google.protobuf.Empty.
type Empty struct{}

// CreateTaskRequest makes a container of the bundle, stopped before its
// program. Stdin, Stdout and Stderr are paths of FIFOs, or a URI; "" is
// /dev/null.
type CreateTaskRequest struct {
	ID               string   `pb:"1"`
	Bundle           string   `pb:"2"`
	Rootfs           []*Mount `pb:"3"`
	Terminal         bool     `pb:"4"`
	Stdin            string   `pb:"5"`
	Stdout           string   `pb:"6"`
	Stderr           string   `pb:"7"`
	Checkpoint       string   `pb:"8"`
	ParentCheckpoint string   `pb:"9"`
	Options          *Any     `pb:"10"`
}

// CreateTaskResponse gives the container's first process, in the shim's pid
// namespace.
type CreateTaskResponse struct {
	Pid uint32 `pb:"1"`
}

// ProcessRequest names a process: the container's first, or one of Exec. It
// is the shape of State, Start, Delete and Wait.
type ProcessRequest struct {
	ID     string `pb:"1"`
	ExecID string `pb:"2"`
}

// TaskRequest names a container: Pids, Pause, Resume, Stats, Connect.
type TaskRequest struct {
	ID string `pb:"1"`
}

// StartResponse answers Start.
type StartResponse struct {
	Pid uint32 `pb:"1"`
}

// DeleteResponse answers Delete.
type DeleteResponse struct {
	Pid        uint32     `pb:"1"`
	ExitStatus uint32     `pb:"2"`
	ExitedAt   *Timestamp `pb:"3"`
}

// ExecProcessRequest adds a process to a container; Start runs it. Spec holds
// the JSON of an OCI process.
type ExecProcessRequest struct {
	ID       string `pb:"1"`
	ExecID   string `pb:"2"`
	Terminal bool   `pb:"3"`
	Stdin    string `pb:"4"`
	Stdout   string `pb:"5"`
	Stderr   string `pb:"6"`
	Spec     *Any   `pb:"7"`
}

// ResizePtyRequest sets a terminal's size in characters.
type ResizePtyRequest struct {
	ID     string `pb:"1"`
	ExecID string `pb:"2"`
	Width  uint32 `pb:"3"`
	Height uint32 `pb:"4"`
}

// StateResponse answers State.
type StateResponse struct {
	ID         string     `pb:"1"`
	Bundle     string     `pb:"2"`
	Pid        uint32     `pb:"3"`
	Status     int32      `pb:"4"`
	Stdin      string     `pb:"5"`
	Stdout     string     `pb:"6"`
	Stderr     string     `pb:"7"`
	Terminal   bool       `pb:"8"`
	ExitStatus uint32     `pb:"9"`
	ExitedAt   *Timestamp `pb:"10"`
	ExecID     string     `pb:"11"`
}

// KillRequest signals a process, or with All every process of the container.
type KillRequest struct {
	ID     string `pb:"1"`
	ExecID string `pb:"2"`
	Signal uint32 `pb:"3"`
	All    bool   `pb:"4"`
}

// CloseIORequest closes the shim's end of a process's stdin.
type CloseIORequest struct {
	ID     string `pb:"1"`
	ExecID string `pb:"2"`
	Stdin  bool   `pb:"3"`
}

// ProcessInfo names one process of a container.
type ProcessInfo struct {
	Pid uint32 `pb:"1"`
}

// PidsResponse answers Pids.
type PidsResponse struct {
	Processes []*ProcessInfo `pb:"1"`
}

// UpdateTaskRequest changes limits; Resources holds the JSON of an OCI
// LinuxResources.
type UpdateTaskRequest struct {
	ID          string            `pb:"1"`
	Resources   *Any              `pb:"2"`
	Annotations map[string]string `pb:"3"`
}

// WaitResponse answers Wait, once the process is gone. ExitStatus is the exit
// code, or 128 and the signal's number.
type WaitResponse struct {
	ExitStatus uint32     `pb:"1"`
	ExitedAt   *Timestamp `pb:"2"`
}

// ConnectResponse answers Connect.
type ConnectResponse struct {
	ShimPid uint32 `pb:"1"`
	TaskPid uint32 `pb:"2"`
	Version string `pb:"3"`
}

// ShutdownRequest ends the shim once it holds no container, or at once.
type ShutdownRequest struct {
	ID  string `pb:"1"`
	Now bool   `pb:"2"`
}
