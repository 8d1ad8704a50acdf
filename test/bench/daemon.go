package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/longshore/longshore/test/node"
)

// ownDaemon starts a private daemon in a cgroup of its own and imports the
// guest image, which hack/bench.sh has packed beside the binaries.
func ownDaemon(ctx context.Context, o *options) (end func(), err error) {
	dir, err := os.MkdirTemp("", "lsb")
	if err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	n, err := node.New(dir, bin)
	if err != nil {
		return nil, err
	}
	n.Quiet = true
	// As on a real node, where /run is a tmpfs.
	if n.Run, err = os.MkdirTemp("/dev/shm", "lsb"); err != nil {
		return nil, err
	}
	if err := n.Start(ctx); err != nil {
		return nil, err
	}
	end = func() {
		if err := errors.Join(n.Clear(context.WithoutCancel(ctx)), n.Close()); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Remove(o.Cgroup)
		os.RemoveAll(dir)
		os.RemoveAll(n.Run)
	}
	o.Endpoint = n.Socket()
	o.Cgroup = filepath.Join("/sys/fs/cgroup/cpuacct", fmt.Sprintf("longshore-bench-%d", os.Getpid()))
	if err := joinCgroup(o.Cgroup, n.Pid()); err != nil {
		o.Cgroup = "" // a cgroup v2 machine: measured by -cgroup alone
	}
	cmd := n.Command("image", "import", "--config", n.Path("config.toml"), filepath.Join(bin, "image.tar"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		end()
		return nil, fmt.Errorf("import: %w: %s", err, out.String())
	}
	return end, nil
}

// joinCgroup moves the daemon and the idle shims it has started.
func joinCgroup(dir string, daemon int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	pids := []string{strconv.Itoa(daemon)}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", daemon, daemon))
	if err == nil {
		for _, pid := range bytes.Fields(children) {
			pids = append(pids, string(pid))
		}
	}
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0); err != nil {
			return err
		}
	}
	return nil
}
