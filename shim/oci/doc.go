// Package oci answers the command line of an OCI runtime: create, start, state,
// kill, delete and what callers such as Podman's monitor, containerd's go-runc
// and Docker use besides, with the flags and the outputs of runc.
//
// A command is one process, which ends. What stays of a container is its
// processes, its cgroup and a directory below the root of all state (--root):
// state.json and a copy of the specification, written before each act they
// announce, so that a command that dies leaves nothing unknown. One without
// state.json is what a command that died at its beginning or its end has left:
// the name is free, and delete --force takes it away. The directory belongs to
// whoever holds its lock; state, list, ps, kill and exec only read.
//
// Invariants: whether a container waits, runs or has ended is asked of the
// kernel each time, never remembered; a process is known by its id and its
// start time, so that no signal reaches a stranger; commands that start
// processes in a container run from a read-only view of their binary.
package oci
