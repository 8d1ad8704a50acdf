package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// HandlerFeatures is what a runtime handler can do, as it was found out.
type HandlerFeatures struct {
	RecursiveReadOnly bool
	UserNamespaces    bool
}

// probeLimit bounds what a shim may take to say what it can.
const probeLimit = 5 * time.Second

// probe finds out what handlers can do; those that cannot run are left out.
func (e *Engine) probe(byName map[string]Handler, shimDirs []string) map[string]HandlerFeatures {
	own := sync.OnceValue(func() HandlerFeatures { return e.ownFeatures() })
	features := map[string]HandlerFeatures{}
	var mu sync.Mutex
	var probes sync.WaitGroup
	for name, h := range byName {
		probes.Go(func() {
			found, err := HandlerFeatures{}, error(nil)
			if h.foreign() {
				found, err = e.foreignFeatures(&h, shimDirs)
			} else {
				found = own()
			}
			if err != nil {
				logMissing(e.log, name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			features[name] = found
		})
	}
	probes.Wait()
	return features
}

// ownFeatures asks the kernel what our own shim can do with it.
func (e *Engine) ownFeatures() HandlerFeatures {
	var f HandlerFeatures
	// Linux 5.12. Without a mount to change, a kernel that has the call says EBADF.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	f.RecursiveReadOnly = !errors.Is(err, unix.ENOSYS)
	if err := probeIDMap(e.cfg.StateDir); err != nil {
		e.log.Warn("no user namespaces for pods", "err", err)
	} else {
		f.UserNamespaces = true
	}
	return f
}

// probeIDMap makes a user namespace and maps the ids of a directory's file
// system by it, as pods with user namespaces need it of their layers.
func probeIDMap(dir string) error {
	in, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hold.Close()
	cmd := exec.Command(selfBinary(), "publish") // it waits for an event on stdin
	cmd.Stdin = in
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstUserID, Size: userIDs}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps}
	err = cmd.Start()
	in.Close()
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	err = idMap(dir, cmd.Process.Pid)
	hold.Close()
	_ = cmd.Wait() // it was there for its namespace alone
	return err
}

func idMap(dir string, pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		return fmt.Errorf("map the ids of %s: %w", dir, os.NewSyscallError("mount_setattr", err))
	}
	return nil
}

// runtimeInfo is containerd.types.RuntimeInfo, as far as it is used.
type runtimeInfo struct {
	Name     string   `pb:"1"`
	Features *api.Any `pb:"4"`
}

// ociFeatures is what of an OCI runtime's features (runtime-spec, features.md)
// counts here.
type ociFeatures struct {
	MountOptions []string `json:"mountOptions"`
}

// maxInfo bounds what a shim may say of itself, in bytes.
const maxInfo = 1 << 20

// foreignFeatures asks a shim by "-info", which those of containerd 2 have.
// Others have no features; user namespaces none has, for our layers are not
// mapped for it.
func (e *Engine) foreignFeatures(h *Handler, shimDirs []string) (HandlerFeatures, error) {
	binary, err := h.shimPath(shimDirs)
	if err != nil {
		return HandlerFeatures{}, err
	}
	ctx, cancel := context.WithTimeout(e.life, probeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-info")
	cmd.WaitDelay = time.Second
	if options := h.options(e.cfg.runcDir()); options != nil {
		cmd.Stdin = bytes.NewReader(pb.Marshal(options))
	}
	out := &capped{max: maxInfo}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		e.log.Debug("shim does not say what it can", "shim", binary, "err", err)
		return HandlerFeatures{}, nil
	}
	return parseInfo(out.kept.Bytes()), nil
}

// parseInfo reads what a shim says; what is not understood is no feature.
func parseInfo(out []byte) HandlerFeatures {
	var info runtimeInfo
	if pb.Unmarshal(out, &info) != nil || info.Features == nil || !strings.HasSuffix(info.Features.TypeURL, "/features/Features") {
		return HandlerFeatures{}
	}
	var features ociFeatures
	if json.Unmarshal(info.Features.Value, &features) != nil {
		return HandlerFeatures{}
	}
	return HandlerFeatures{RecursiveReadOnly: slices.Contains(features.MountOptions, "rro")}
}
