package launch

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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
	s.fd, err = newFilesystem("tmpfs", "tmpfs", []string{"mode=755", "size=64k"}, 0)
	if err != nil {
		return err
	}
	a.fds.add(s.fd)
	if err := a.fillCgroups(s); err != nil {
		return err
	}
	if err := s.opts.applyTo(s.fd, false); err != nil {
		return err
	}
	return a.attach(s.fd, target)
}

func (a *assembly) fillCgroups(s *source) error {
	for i := range a.host.Trees {
		t := &a.host.Trees[i]
		name := filepath.Base(t.Mount)
		if err := a.bindGroup(s, t.Mount+a.group.Path(), name); err != nil {
			return err
		}
		for _, c := range t.Controllers {
			// "cpu,cpuacct" is found by either name.
			if !t.Unified && c != name && strings.Contains(name, ",") && slices.Contains(strings.Split(name, ","), c) {
				if err := unix.Symlinkat(name, s.fd, c); err != nil && err != unix.EEXIST {
					return err
				}
			}
		}
	}
	return nil
}

// bindGroup shows one directory of the host's hierarchies.
func (a *assembly) bindGroup(s *source, dir, name string) error {
	mount, err := cloneHostPath(dir, false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := unix.Mkdirat(s.fd, name, 0o755); err != nil {
		return err
	}
	at, err := unix.Openat(s.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if err := s.opts.applyTo(mount, false); err != nil {
		return err
	}
	return a.attach(mount, at)
}
