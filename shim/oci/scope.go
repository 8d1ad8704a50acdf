package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/systemd"
	"golang.org/x/sys/unix"
)

// errNoSystemd says that nobody can make the cgroup that was asked for.
var errNoSystemd = errors.New("--systemd-cgroup: systemd does not run here")

// defaultSlice is where runc puts a container of --systemd-cgroup that names
// no slice.
const defaultSlice = "system.slice"

// scopeOf reads systemd's form of linux.cgroupsPath, "slice:prefix:name".
// "slice::name.slice" names a group that is a slice itself, which its caller has
// made: then there is no scope and path is the slice's.
func scopeOf(cgroupsPath, id string) (scope *systemd.Scope, path string, err error) {
	if cgroupsPath == "" {
		cgroupsPath = ":longshore:" + id
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || parts[2] == "" {
		return nil, "", fmt.Errorf("linux.cgroupsPath %q is not slice:prefix:name", cgroupsPath)
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = defaultSlice
	}
	if strings.HasSuffix(name, ".slice") {
		if path, err = systemd.SlicePath(name); err != nil {
			return nil, "", fmt.Errorf("linux.cgroupsPath: %w", err)
		}
		return nil, path, nil
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	scope = &systemd.Scope{Name: name + ".scope", Slice: slice, Description: "container " + id}
	if path, err = scope.Path(); err != nil {
		return nil, "", fmt.Errorf("linux.cgroupsPath %q: %w", cgroupsPath, err)
	}
	return scope, path, nil
}

// Groups of a scope. The container's is one of its own, because systemd may
// write to the scope's when it reads its configuration again, and because
// cgroup2 lets a group have processes or groups with controllers, not both.
const (
	containerGroup = "/container"
	callerGroup    = "/caller"
)

// enterScope has systemd make the scope with this process in it, since a scope
// needs one. leave goes back, once the container's process is there.
func enterScope(scope systemd.Scope) (leave func() error, err error) {
	if !systemd.Running() {
		return nil, errNoSystemd
	}
	path, err := scope.Path()
	if err != nil {
		return nil, err
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	before, err := host.PlaceOf("self")
	if err != nil {
		return nil, err
	}
	scope.PID = os.Getpid()
	if err := systemd.StartScope(context.Background(), scope); err != nil {
		return nil, err
	}
	caller, err := host.New(path+callerGroup, nil)
	if err == nil {
		err = caller.Add(scope.PID)
	}
	leave = func() error {
		if err := before.Add(scope.PID); err != nil {
			return err
		}
		return caller.Remove()
	}
	if err != nil {
		return nil, errors.Join(err, before.Add(scope.PID))
	}
	return leave, nil
}

// leaveScope has systemd forget the container's scope.
func (ct *container) leaveScope() error {
	if ct.Scope == "" {
		return nil
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	if pids, err := group.Procs(); err != nil || len(pids) > 0 {
		return errors.Join(err, fmt.Errorf("scope %s: %w", ct.Scope, unix.EBUSY))
	}
	return systemd.StopScope(context.Background(), ct.Scope)
}
