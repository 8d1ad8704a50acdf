package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
)

// mirrored are the registries that critest's images come from, and others that
// must never be asked.
var mirrored = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "quay.io"}

// newNode prepares a daemon that finds its images in our registry.
func newNode(dir, bin string) (*node.Node, error) {
	n, err := node.New(dir, bin)
	if err != nil {
		return nil, err
	}
	var config strings.Builder
	for _, host := range mirrored {
		fmt.Fprintf(&config, "[images.registries.%q]\nmirrors = [\"http://%s\"]\n", host, registryAddress)
	}
	// For -runtime-handler foreign: containers by the shim of another runtime.
	config.WriteString("[handlers.foreign]\nruntime_type = \"io.containerd.runc.v2\"\n")
	n.Extra = config.String()
	// One spec makes a segment of shared memory "on the node" and leaves it.
	n.Room.Do(func() { err = unix.Unshare(unix.CLONE_NEWIPC) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make ipc namespace: %w", err), n.Close())
	}
	return n, nil
}

// clearPods takes away the pods that failed specs have left and says what stays
// all the same.
func clearPods(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.Clear(ctx); err != nil {
		return fmt.Errorf("remove pods: %w", err)
	}
	left, err := n.Leaks()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind without pods:\n  %s", strings.Join(left, "\n  "))
	}
	return err
}

// end stops the daemon, keeps its log and removes the cgroup above its
// pods, which the daemon leaves as it would leave one that an operator made.
func end(n *node.Node, logs string) error {
	err := errors.Join(n.Close(), keepLog(n, logs))
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		dirs, _ := filepath.Glob(pattern + n.Cgroup) // the pattern is good
		for _, dir := range dirs {
			// Two names of one hierarchy find it gone the second time.
			if removeErr := os.Remove(dir); !errors.Is(removeErr, os.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}
	return err
}

// keepLog saves what the daemon said.
func keepLog(n *node.Node, to string) error {
	data, err := os.ReadFile(n.Path("daemon.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "daemon.log"), data, 0o644)
}
