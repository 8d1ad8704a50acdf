package engine

import (
	"fmt"
	"path"
	"strings"

	"github.com/longshore/longshore/internal/systemd"
)

// Where pods and containers have their cgroups. Without systemd, the client
// names a path and the shims make groups below it. With systemd, the client names
// a slice; systemd makes one scope for the pod below it and gives it away, and
// the containers' groups are in the scope: one call of systemd per pod, limits
// that systemd does not rewrite, and groups that stay until their counts of
// OOM kills have been read.

// sliceOf gives the slice of a new pod, "" without systemd. It refuses a
// parent of the wrong kind, as a client with another driver names it.
func (e *Engine) sliceOf(cfg *PodConfig) (string, error) {
	parent := cfg.CgroupParent
	if strings.Contains(parent, "..") {
		return "", fmt.Errorf("%w: cgroup parent %q", ErrInvalid, parent)
	}
	if !e.cfg.SystemdCgroups {
		if strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/") {
			return "", fmt.Errorf("%w: cgroup parent %q is a slice of systemd, and pods.cgroup_driver is cgroupfs", ErrInvalid, parent)
		}
		return "", nil
	}
	if parent == "" {
		parent = e.cfg.CgroupParent
	}
	slice := path.Base(parent) // some name the slices that it is in as well
	if _, err := systemd.SlicePath(slice); err != nil {
		return "", fmt.Errorf("%w: cgroup parent, with pods.cgroup_driver systemd: %w", ErrInvalid, err)
	}
	return slice, nil
}

// scopeName is the unit of a pod.
func scopeName(podID string) string { return "longshore-" + podID + ".scope" }

// podCgroup is a cgroup of the pod's own: for its first process, with systemd
// for its containers too, and also if the client names no parent.
func (e *Engine) podCgroup(p Pod) string {
	if p.Slice != "" {
		return path.Join(e.parentCgroup(p), scopeName(p.ID))
	}
	parent := p.Config.CgroupParent
	if parent == "" {
		parent = e.cfg.CgroupParent
	}
	return path.Join("/", parent, p.ID)
}

// containerCgroup is where a pod's container goes.
func (e *Engine) containerCgroup(p Pod, id string) string {
	if p.Slice != "" || p.Config.CgroupParent == "" {
		return path.Join(e.podCgroup(p), id)
	}
	return path.Join("/", p.Config.CgroupParent, id)
}

// parentCgroup is the path of the cgroup that the client made for the pod, ""
// if it named none.
func (e *Engine) parentCgroup(p Pod) string {
	if p.Slice == "" {
		return p.Config.CgroupParent
	}
	dir, err := systemd.SlicePath(p.Slice)
	if err != nil {
		return "" // sliceOf and readPod let no such name pass
	}
	return path.Join("/", dir)
}

// usageCgroup is the one that holds all that the pod uses.
func (e *Engine) usageCgroup(p Pod) string {
	if p.Config.CgroupParent == "" {
		return e.podCgroup(p)
	}
	return e.parentCgroup(p)
}

// CgroupDriver names who makes cgroups: "systemd" or "cgroupfs".
func (e *Engine) CgroupDriver() string {
	if e.cfg.SystemdCgroups {
		return "systemd"
	}
	return "cgroupfs"
}
