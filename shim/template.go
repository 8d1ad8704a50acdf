package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/launch"
	"golang.org/x/sys/unix"
)

// templateEnv names where the node's template mount namespace is pinned.
const templateEnv = "LONGSHORE_TEMPLATE"

// template gives the pinned template, "" if there is none: the container then
// starts from a copy of the host's mounts.
func template() string {
	path := os.Getenv(templateEnv)
	var st unix.Statfs_t
	if path == "" || unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// prepare is the method Prepare. Two daemons' shims do not meet here: each has
// a directory of its own.
func (s *service) prepare(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.PrepareRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	defer s.begin()()
	dir := filepath.Dir(req.Template)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	err := launch.PinTemplate(req.Template)
	if errors.Is(err, unix.EINVAL) {
		// A mount namespace cannot be pinned on a mount that is shared with
		// others, as all are under systemd.
		if err = privateMount(dir); err == nil {
			err = launch.PinTemplate(req.Template)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", req.Template, err)
	}
	return &api.Empty{}, nil
}

// privateMount makes a directory a mount of its own, which shares nothing.
func privateMount(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: dir, Err: err}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: dir, Err: err}
	}
	return nil
}
