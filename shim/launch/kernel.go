package launch

// kernel switches newer ways off; tests use it to walk the older ones.
var kernel struct {
	noDetachedTargets bool // move_mount onto detached mounts, Linux 6.15
	noWorkshop        bool // an error instead of assembling as for kernels before 6.15
	noIntoCgroup      bool // CLONE_INTO_CGROUP, Linux 5.7
	noOverlayFD       bool // overlay layers by descriptor, Linux 6.13
	noSharedMemory    bool // exec by a copy of the address space
}
