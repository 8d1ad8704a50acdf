package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/longshore/longshore/cni/plugin"
	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// networkLimit bounds what attaching or detaching a pod may take, whatever
// the daemon that asked for it has come to.
const networkLimit = 4 * time.Minute

// createSandbox makes a pod's namespaces and network, and writes the result
// record before it answers. Asked again, it answers with the record.
func (s *service) createSandbox(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	sandbox, err := decodeSandbox(decode)
	if err != nil {
		return nil, err
	}
	defer s.begin()()
	// Not the call's context: an operation that was begun is finished.
	ctx, cancel := context.WithTimeout(context.Background(), networkLimit)
	defer cancel()
	unlock := s.sandboxes.lock(sandbox.ID)
	defer unlock()
	result, err := recordedSandbox(sandbox)
	if err == nil && result == nil {
		result, err = makeSandbox(ctx, sandbox)
	}
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(result)
	return &api.SandboxResponse{Result: data}, err
}

func decodeSandbox(decode func(any) error) (*api.Sandbox, error) {
	var req api.SandboxRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	var sandbox api.Sandbox
	if err := json.Unmarshal(req.Config, &sandbox); err != nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "sandbox: %v", err)
	}
	return &sandbox, nil
}

// recordedSandbox gives the result of an earlier call, or nil.
func recordedSandbox(sandbox *api.Sandbox) (*api.SandboxResult, error) {
	var result api.SandboxResult
	err := atomicfile.ReadJSON(filepath.Join(sandbox.Dir, api.ResultFile), &result)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return &result, err
}

func makeSandbox(ctx context.Context, sandbox *api.Sandbox) (*api.SandboxResult, error) {
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() {
		if err := unmakeSandbox(ctx, sandbox); err != nil {
			fmt.Fprintf(os.Stderr, "longshore-shim: take back sandbox %s: %v\n", sandbox.ID, err)
		}
	})
	pid, err := launch.CreateSandbox(launch.SandboxConfig{
		Dir: sandbox.Dir, NewNet: sandbox.NewNet, NewIPC: sandbox.NewIPC, NewUTS: sandbox.NewUTS, NewPID: sandbox.NewPID,
		UIDMappings: idMappings(sandbox.UIDs), GIDMappings: idMappings(sandbox.GIDs),
		Hostname: sandbox.Hostname, Sysctls: sandbox.Sysctls, CgroupPath: sandbox.CgroupPath, Scope: scopeOf(sandbox), ShmSize: sandbox.ShmSize, MountLabel: sandbox.MountLabel,
	})
	if err != nil {
		return nil, classify(err)
	}
	if pid > 0 {
		go reap(pid) // ends with the pod, or with the shim, whose heir then reaps
	}
	result := &api.SandboxResult{InitPid: pid}
	if sandbox.Network != nil {
		added, err := plugin.Add(ctx, attachment(sandbox))
		if err != nil {
			return nil, fmt.Errorf("attach pod %s to its network: %w", sandbox.ID, err)
		}
		result.CNIResult, result.DNS = added.Raw, added.DNS.Servers
		for _, ip := range added.IPs {
			result.IPs = append(result.IPs, ip.Addr().String())
		}
	}
	if err := atomicfile.WriteJSON(filepath.Join(sandbox.Dir, api.ResultFile), result, atomicfile.Volatile); err != nil {
		return nil, err
	}
	taken.Keep()
	return result, nil
}

// reap waits for a pod's first process, so that its end leaves no zombie. It
// parks on a pidfd and takes no thread.
func reap(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(uintptr) bool {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
		return got == pid || err != nil && err != unix.EINTR
	})
}

// scopeOf gives the unit of the pod's cgroup, nil if systemd has none.
func scopeOf(sandbox *api.Sandbox) *systemd.Scope {
	if sandbox.Scope == nil {
		return nil
	}
	return &systemd.Scope{Name: sandbox.Scope.Name, Slice: sandbox.Scope.Slice, Description: sandbox.Scope.Description}
}

func idMappings(maps []api.IDMap) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(maps))
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Size})
	}
	return out
}

func attachment(sandbox *api.Sandbox) plugin.Attachment {
	n := sandbox.Network
	a := plugin.Attachment{
		ContainerID: sandbox.ID, NetNS: filepath.Join(sandbox.Dir, "net"), IfName: api.PodInterface,
		Conflist: n.Conflist, Args: n.Args, BinDirs: n.BinDirs, CacheDir: n.CacheDir, DataDir: n.DataDir, CgroupPath: n.CgroupPath,
	}
	if b := n.Bandwidth; b != nil {
		a.Bandwidth = &plugin.Bandwidth{IngressRate: b.Ingress, EgressRate: b.Egress}
	}
	for _, m := range n.PortMappings {
		a.PortMappings = append(a.PortMappings, plugin.PortMapping{
			HostPort: int(m.HostPort), ContainerPort: int(m.ContainerPort), Protocol: m.Protocol, HostIP: m.HostIP,
		})
	}
	return a
}

// removeSandbox takes down whatever is there of a sandbox: the network, the
// first process of a shared pid namespace, the pins and the cgroup.
func (s *service) removeSandbox(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	sandbox, err := decodeSandbox(decode)
	if err != nil {
		return nil, err
	}
	defer s.begin()()
	ctx, cancel := context.WithTimeout(context.Background(), networkLimit)
	defer cancel()
	unlock := s.sandboxes.lock(sandbox.ID)
	defer unlock()
	ns, nsErr := os.Open(filepath.Join(sandbox.Dir, "net"))
	if err := unmakeSandbox(ctx, sandbox); err != nil {
		if nsErr == nil {
			ns.Close()
		}
		return nil, err
	}
	if nsErr == nil && sandbox.Network != nil {
		finish := s.begin()
		go func() { // the shim does not end before it
			defer finish()
			defer ns.Close()
			if err := plugin.DeleteInterface(ns, api.PodInterface); err != nil {
				fmt.Fprintf(os.Stderr, "longshore-shim: sandbox %s: %v\n", sandbox.ID, err)
			}
		}()
	} else if nsErr == nil {
		ns.Close()
	}
	return &api.Empty{}, nil
}

func unmakeSandbox(ctx context.Context, sandbox *api.Sandbox) error {
	var errs []error
	if sandbox.Network != nil {
		a := attachment(sandbox)
		a.NetNSGoes = true
		if err := plugin.Del(ctx, a); err != nil {
			errs = append(errs, fmt.Errorf("detach pod %s from its network: %w", sandbox.ID, err))
		}
	}
	if err := removeCgroup(ctx, sandbox); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // the pins stay, so that it can be tried again
	}
	return launch.RemoveSandbox(sandbox.Dir)
}

// removeCgroup ends what runs in the pod's cgroup, which is its first process
// at most, and removes it.
func removeCgroup(ctx context.Context, sandbox *api.Sandbox) error {
	path := sandbox.CgroupPath
	if path == "" {
		return nil
	}
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	group := host.Load(path)
	if err := group.Kill(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end the processes of %s: %w", path, err)
	}
	if err := group.WaitEmpty(ctx); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("wait for the processes of %s: %w", path, err)
	}
	if sandbox.Scope != nil {
		if err := systemd.StopScope(ctx, sandbox.Scope.Name); err != nil {
			return err
		}
	}
	return group.Remove()
}

// dial connects to a port inside a network namespace, on the loopback
// addresses, for a port-forward. The thread that entered is thrown away.
func (s *service) dial(_ context.Context, decode func(any) error, files *api.Files) (any, error) {
	var req api.DialRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	var fd int
	var err error
	onOwnThread(func() { fd, err = dialIn(req.NetNS, int(req.Port)) })
	if err != nil {
		return nil, err
	}
	files.Out = []int{fd}
	return &api.Empty{}, nil
}

// onOwnThread runs f on a thread that ends afterwards, with whatever namespace
// f has entered. The main thread never ends, and would keep the namespace: if
// the scheduler offers it, it is held until another has done the work.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func dialIn(netns string, port int) (int, error) {
	if netns != "" {
		if err := enterNet(netns); err != nil {
			return -1, err
		}
	}
	fd, err := connect(unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		return fd, nil
	}
	v6 := &unix.SockaddrInet6{Port: port}
	v6.Addr[15] = 1
	if fd, v6err := connect(unix.AF_INET6, v6); v6err == nil {
		return fd, nil
	}
	return -1, api.Errorf(api.CodeFailedPrecondition, "connect to port %s of the pod: %v", strconv.Itoa(port), err)
}

// enterNet moves the thread into a network namespace; see [onOwnThread].
func enterNet(netns string) error {
	ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: netns, Err: err}
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netns, err)
	}
	return nil
}

// netDev reads what the interfaces of a network namespace have counted, for a
// pod without a process through which the daemon could.
func (s *service) netDev(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.NetDevRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	var text []byte
	var err error
	onOwnThread(func() {
		if err = enterNet(req.NetNS); err == nil {
			text, err = os.ReadFile("/proc/thread-self/net/dev")
		}
	})
	return &api.NetDevResponse{Text: text}, err
}

// dialLimit bounds a connection to a pod's port.
const dialLimit = 10 * time.Second

func connect(family int, to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// It bounds connect(2) as well: a pod may drop what comes to a port.
	limit := unix.NsecToTimeval(dialLimit.Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err == nil { // who gets the socket waits as long as it likes
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
