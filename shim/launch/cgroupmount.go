package launch

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/safepath"
)

// cgroups mounts /sys/fs/cgroup for a host with hierarchies of version 1: a
// small tmpfs with a directory for each, in which the container finds its own
// group and no other.
func (a *assembly) cgroups(s *source) error {
	target, err := safepath.MkdirAll(a.root, s.spec.Destination, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	s.fd, err = newFilesystem("tmpfs", "tmpfs", a.labelled([]string{"mode=755", "size=64k"}), 0)
	if err != nil {
		return err
	}
	a.fds.add(s.fd)
	if err := a.nameCgroups(s.fd); err != nil {
		return err
	}
	if err := s.opts.applyTo(s.fd, false); err != nil {
		return err
	}
	if err := a.attach(s.fd, target); err != nil {
		return err
	}
	for i := range a.host.Trees {
		if err := a.bindGroup(s, &a.host.Trees[i]); err != nil {
			return err
		}
	}
	return nil
}

// nameCgroups makes a directory for each of the host's hierarchies, and links by
// which "cpu,cpuacct" is found by either name.
func (a *assembly) nameCgroups(dir int) error {
	for i := range a.host.Trees {
		t := &a.host.Trees[i]
		name := filepath.Base(t.Mount)
		if err := unix.Mkdirat(dir, name, 0o755); err != nil {
			return err
		}
		for _, c := range t.Controllers {
			if !t.Unified && c != name && strings.Contains(name, ",") && slices.Contains(strings.Split(name, ","), c) {
				if err := unix.Symlinkat(name, dir, c); err != nil && err != unix.EEXIST {
					return err
				}
			}
		}
	}
	return nil
}

// bindGroup shows the container's group in one of the host's hierarchies.
func (a *assembly) bindGroup(s *source, t *cgroup.Tree) error {
	mount, err := cloneHostPath(t.Mount+a.group.Path(), false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := s.opts.applyTo(mount, false); err != nil {
		return err
	}
	at, err := unix.Openat(s.fd, filepath.Base(t.Mount), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return a.attach(mount, at)
}
