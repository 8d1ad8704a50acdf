// Package launch turns an OCI runtime spec into a running process.
//
// A container is set up by a launch program: a flat array of system calls in
// an arena outside the Go heap, which a small assembly loop carries out in the
// cloned child until execve. The child never returns to Go, so it works from a
// multi-threaded process, needs no second binary, and can join user and pid
// namespaces. The caller of [Create] owns the [Container] and ends it with
// [Container.Close]; every [Process] is reaped by whoever calls [Process.Wait],
// and by nobody else.
//
// Division of labour. The parent assembles the root filesystem as one detached
// tree: each path that an image or a client can shape is resolved once, by
// openat2(2) inside that tree, and mounted by file descriptor, before any
// process can see the tree. The child makes what must be made inside its
// namespaces (procfs, sysfs, mqueue, cgroup), hands those mounts over its
// socket, and gets the finished root back. It then drops its privileges and
// waits at the gate: a byte starts the program, end of file (the parent died)
// ends the child.
//
// Invariants: every descriptor is close-on-exec and the child really closes
// those it does not need; it is not in a pid namespace with processes that could
// trace it before it has given up all that these lack; nothing a container can
// shape is resolved twice; a
// child that fails stores the operation and the errno in the arena, so that
// every error has a name; no failure leaves a zombie, a mount or a cgroup.
package launch
