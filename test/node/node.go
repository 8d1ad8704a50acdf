package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is a daemon and the room it lives in.
type Node struct {
	Dir     string // everything of the daemon lies below
	Run     string // its run_dir; below Dir unless it shall be on a tmpfs
	Bin     string // directory of the binaries
	Cgroup  string // parent of the pods' cgroups, without leading slash
	Room    *Room
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	Extra   string // configuration to add
	Plugins string // configuration of plugins: how long they may take, and more
	Network string // more configuration of the network
	Quiet   bool   // log little, as in production
	Criu    string // the program criu; empty: the daemon looks for it

	RestoreImages bool // images may be checkpoints

	conn   *grpc.ClientConn
	daemon *exec.Cmd
}

// New prepares a node below dir, with the binaries in bin.
func New(dir, bin string) (*Node, error) {
	room, err := NewRoom()
	if err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, Plugins: "request_timeout = \"10s\"\n", Run: filepath.Join(dir, "run"), Bin: bin, Room: room, Cgroup: cgroupParent(dir)}
	for _, sub := range []string{"run", "lib", "net.d", "logs"} {
		if err := os.MkdirAll(n.Path(sub), 0o755); err != nil {
			return nil, err
		}
	}
	conn, err := grpc.NewClient("unix://"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	n.conn, n.Runtime, n.Images = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return n, nil
}

// cgroupParent is a name that no other node has: with systemd, which makes the
// pods' cgroups where it runs, that of a slice.
func cgroupParent(dir string) string {
	name := fmt.Sprintf("longshore_test_%s_%d", strings.ReplaceAll(filepath.Base(dir), "-", "_"), os.Getpid())
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		name += ".slice"
	}
	return name
}

// Path gives a path below the node's directory.
func (n *Node) Path(elem ...string) string { return filepath.Join(append([]string{n.Dir}, elem...)...) }

// Socket is where the daemon listens.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "longshore.sock") }

// PluginSocket is where plugins register.
func (n *Node) PluginSocket() string { return filepath.Join(n.Dir, "nri.sock") }

// WriteConfig writes the daemon's configuration and gives its path.
func (n *Node) WriteConfig() (string, error) {
	level := "debug"
	if n.Quiet {
		level = "warn"
	}
	config := fmt.Sprintf(`socket = %q
run_dir = %q
state_dir = %q
log_level = %q
%s
[pods]
cgroup_parent = %q
[network]
conf_dir = %q
cache_dir = %q
data_dir = %q
%s
[cdi]
spec_dirs = [%q, %q]
[nri]
socket = %q
plugin_dir = %q
plugin_config_dir = %q
%s`, n.Socket(), n.Run, n.Path("lib"), level, n.Extra, "/"+n.Cgroup, n.Path("net.d"), n.Path("lib", "cni"), n.Path("lib", "cni", "networks"), n.Network,
		n.Path("cdi"), n.Path("run", "cdi"), n.PluginSocket(), n.Path("nri"), n.Path("nri"), n.Plugins)
	config += fmt.Sprintf("[checkpoint]\nrestore_images = %v\n", n.RestoreImages)
	if n.Criu != "" {
		config += fmt.Sprintf("criu = %q\n", n.Criu)
	}
	path := n.Path("config.toml")
	return path, os.WriteFile(path, []byte(config), 0o644)
}

// Command gives a command of the longshore binary with the node's
// configuration. It must be started inside the room.
func (n *Node) Command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(n.Bin, "longshore"), args...)
}

// Start runs the daemon and waits until it answers. What it logs goes to
// daemon.log.
func (n *Node) Start(ctx context.Context) error {
	config, err := n.WriteConfig()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.Path("daemon.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon = n.Command("serve", "--config", config)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	n.Room.Do(func() { err = n.daemon.Start() })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	exited := make(chan struct{})
	daemon := n.daemon
	go func() { daemon.Wait(); close(exited); cancel() }()
	n.conn.ResetConnectBackoff()
	for {
		// A call may still go out on the connection to a daemon before, which
		// has just been killed, and end with it: ask again.
		_, err = n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			break
		}
	}
	select {
	case <-exited:
		tail, _ := os.ReadFile(n.Path("daemon.log"))
		return fmt.Errorf("the daemon ended: %s", tail)
	default:
		return err
	}
}

// Signal sends the daemon a signal and waits for its end.
func (n *Node) Signal(sig unix.Signal) error {
	if n.daemon == nil {
		return nil
	}
	pid := n.daemon.Process.Pid
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		ready, err := unix.Poll(fds, 30_000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case ready == 0:
			return fmt.Errorf("the daemon does not end")
		default:
			n.daemon = nil
			return nil
		}
	}
}

// Pid is the daemon's.
func (n *Node) Pid() int {
	if n.daemon == nil {
		return 0
	}
	return n.daemon.Process.Pid
}

// Clear stops and removes every pod.
func (n *Node) Clear(ctx context.Context) error {
	list, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		if _, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			return err
		}
		if _, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			return err
		}
	}
	return nil
}

// Close stops the daemon, removes the parent of its pods' cgroups and lets the
// room go. A process that is left then is an error, and ended.
func (n *Node) Close() error {
	n.conn.Close()
	err := errors.Join(n.Signal(unix.SIGTERM), n.nobodyLeft())
	n.Room.Close()
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + n.Cgroup, "/sys/fs/cgroup/" + n.Cgroup} {
		dirs, globErr := filepath.Glob(pattern)
		err = errors.Join(err, globErr)
		for _, dir := range dirs {
			err = errors.Join(err, os.Remove(dir))
		}
	}
	return err
}
