// Package api is the wire between the daemon and its shims: containerd's task
// API, versions 2 and 3, over ttrpc, and beside it the few methods which that
// API lacks.
//
// The messages are plain structs encoded by internal/pb, and the server is our
// own, because a shim is paid for once per container: containerd's generated
// bindings link gRPC and the protobuf runtime into it. The bytes are the same,
// so containerd drives our shim and we drive other people's.
//
// PROTOCOL.md describes what is ours: file descriptors that travel with a
// frame, and the service [ShimService].
package api

// Services that a shim answers for.
const (
	TaskV2 = "containerd.task.v2.Task"
	TaskV3 = "containerd.task.v3.Task"
	// ShimService holds the methods that the task API lacks; see PROTOCOL.md.
	ShimService = "longshore.shim.v1.Shim"
)

// LogScheme prefixes a stdout URI that names a CRI log file for the shim to
// write itself: crilog:///var/log/pods/x/0.log.
const LogScheme = "crilog://"
