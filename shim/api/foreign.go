package api

// ForeignType is the type by which [Foreign] travels in the options of a
// [CreateTaskRequest].
const ForeignType = "longshore.shim.v1.Foreign"

// Foreign tells a keeper by which runtime's shim a container is to be made.
type Foreign struct {
	Binary  string `pb:"1"` // absolute path of the shim
	Publish string `pb:"2"` // absolute path of what it may run to publish an event
	Options *Any   `pb:"3"` // for the runtime; nil: none
	Cgroup  string `pb:"4"` // of the container
	// Sandbox is the bundle of the pod's sandbox container, whose shim makes this
	// container too; "" for a shim of its own.
	Sandbox string `pb:"5"`
}

// MarkLimit is the resource limit by whose soft value the processes of one exec
// are known, which another runtime's shim does not keep together: it is inherited
// by whatever they start, and as the time in microseconds that a realtime process
// may run without a system call (getrlimit(2)) a mark limits nothing.
const MarkLimit = "RLIMIT_RTTIME"

// firstMark is the smallest mark: some 146 thousand years.
const firstMark = 1 << 62

// Mark makes a mark of a random number.
func Mark(random uint64) uint64 { return firstMark | random>>2 }

// IsMark reports whether a limit is a mark.
func IsMark(limit uint64) bool { return limit >= firstMark && limit < 2*firstMark }

// ForeignNamespace is containerd's name for what Kubernetes runs. Shims name
// their state by it.
const ForeignNamespace = "k8s.io"

// ForeignFile is in a bundle for as long as another runtime's shim may hold
// something of the container: a [ForeignRecord].
const ForeignFile = "foreign.json"

// ForeignRecord is what a keeper notes before it acts, so that another can
// clear away after it.
type ForeignRecord struct {
	Binary  string `json:"binary"`
	Publish string `json:"publish,omitempty"`
	Address string `json:"address,omitempty"` // a path; "" until the shim has said where it listens
	Version int    `json:"version,omitempty"` // of the task API
	Shared  bool   `json:"shared,omitempty"`  // the shim is the sandbox container's
}

// CleanRequest clears away what another runtime's shim has left of the
// container in a bundle, whose keeper is gone.
type CleanRequest struct {
	ID     string `pb:"1"`
	Bundle string `pb:"2"`
}

// EventService is where shims of containerd's convention publish.
const EventService = "containerd.services.events.ttrpc.v1.Events"

// ForwardRequest carries one event (Forward of [EventService]).
type ForwardRequest struct {
	Envelope *Envelope `pb:"1"`
}

// Envelope is an event with its topic.
type Envelope struct {
	Timestamp *Timestamp `pb:"1"`
	Namespace string     `pb:"2"`
	Topic     string     `pb:"3"`
	Event     *Any       `pb:"4"`
}

// TopicOOM is the topic of [TaskOOM].
const TopicOOM = "/tasks/oom"

// TaskOOM says that the kernel has killed a process of a container for memory.
type TaskOOM struct {
	ContainerID string `pb:"1"`
}
