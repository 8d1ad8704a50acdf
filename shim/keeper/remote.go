package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// Limits of what another's shim may take. Some boot a virtual machine to start
// or to create.
const (
	slowLimit  = 4 * time.Minute
	quickLimit = 30 * time.Second
	endLimit   = 10 * time.Second
)

// maxOutput bounds what is read of a shim's output, in bytes.
const maxOutput = 64 << 10

// namespace is that of Kubernetes, under which containerd starts shims too:
// some shims name their state by it.
const namespace = "k8s.io"

// remote is the shim of another runtime.
type remote struct {
	id, bundle string
	events     string // path of the socket on which it may publish
	rec        api.ForeignRecord
}

// note writes the record.
func (r *remote) note() error {
	return atomicfile.WriteJSON(filepath.Join(r.bundle, api.ForeignFile), &r.rec, atomicfile.Volatile)
}

// start runs "SHIM start" as containerd does: its working directory is the
// bundle, and its output says where the shim that it leaves behind listens.
func (r *remote) start(ctx context.Context) error {
	out, err := r.run(ctx, "start")
	if err != nil {
		return err
	}
	path, version, err := parseBootstrap(out)
	if err != nil {
		return fmt.Errorf("%s start: %w", r.rec.Binary, err)
	}
	r.rec.Address, r.rec.Version = path, version
	if err := r.note(); err != nil {
		return err
	}
	var resp api.ConnectResponse
	if err := r.call(ctx, quickLimit, "Connect", &api.TaskRequest{ID: r.id}, &resp); err == nil { // many know it only with a container
		r.rec.Pid = int(resp.ShimPid)
	}
	return nil
}

// run runs a verb of the shim's binary.
func (r *remote) run(ctx context.Context, verb string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, slowLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.rec.Binary, "-namespace", namespace, "-id", r.id, "-address", r.events,
		"-publish-binary", r.rec.Publish, "-bundle", r.bundle, verb)
	cmd.Dir = r.bundle
	// What our own environment has for Go's runtime suits our shim alone.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TTRPC_ADDRESS=" + r.events, "GRPC_ADDRESS=" + r.events, "NAMESPACE=" + namespace, "MAX_SHIM_VERSION=3", "GOMAXPROCS=2"}
	out, errOut := &bounded{}, &bounded{}
	cmd.Stdout, cmd.Stderr = out, errOut
	cmd.WaitDelay = endLimit // what it leaves behind may hold its output open
	err := cmd.Run()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, fmt.Errorf("%s %s: %w: %s", r.rec.Binary, verb, err, bytes.TrimSpace(errOut.kept.Bytes()))
	}
	return out.kept.Bytes(), nil
}

// bounded keeps the beginning of what is written. The buffer is no embedded
// one: that would bring a ReadFrom that knows no bound.
type bounded struct{ kept bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), maxOutput-b.kept.Len())])
	return len(p), nil
}

// parseBootstrap reads what a shim says of itself: an address, or since
// version 3 a JSON object with one (containerd, core/runtime/v2/README.md).
func parseBootstrap(out []byte) (path string, version int, err error) {
	text := bytes.TrimSpace(out)
	params := struct {
		Version  int    `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}{Version: 2, Protocol: "ttrpc"}
	if bytes.HasPrefix(text, []byte("{")) {
		if err := leanjson.Unmarshal(text, &params); err != nil {
			return "", 0, err
		}
	} else {
		params.Address = string(text)
	}
	if params.Protocol != "ttrpc" {
		return "", 0, fmt.Errorf("the shim speaks %q, and only ttrpc is spoken here", params.Protocol)
	}
	if params.Version < 2 || params.Version > 3 {
		return "", 0, fmt.Errorf("the shim speaks version %d of the task API, and only 2 and 3 are spoken here", params.Version)
	}
	path, ok := strings.CutPrefix(params.Address, "unix://")
	if abstract, isAbstract := strings.CutPrefix(path, "\x00"); isAbstract {
		path = "@" + abstract
	}
	const maxPath = 108 // of a unix socket's address (unix(7))
	if !ok || path == "" || len(path) >= maxPath || path[0] != '/' && path[0] != '@' {
		return "", 0, fmt.Errorf("the shim listens at %.200q, which is no unix socket", params.Address)
	}
	return path, params.Version, nil
}

// errGone says that the shim does not answer any more.
var errGone = errors.New("the runtime's shim is gone")

func (r *remote) dial() (*net.UnixConn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: r.rec.Address, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	return c, nil
}

// call makes a call of the task API over a connection of its own. A limit of 0
// is none.
func (r *remote) call(ctx context.Context, limit time.Duration, method string, req, resp any) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, api.Errorf(api.CodeDeadlineExceeded, "%s of the runtime's shim took longer than %v", method, limit))
		defer cancel()
	}
	c, err := r.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	service := api.TaskV2
	if r.rec.Version == 3 {
		service = api.TaskV3
	}
	fds, err := api.Call(c, service, method, req, nil, resp)
	for _, fd := range fds { // it has none to give
		unix.Close(fd)
	}
	var answered *api.Error
	switch {
	case err == nil || errors.As(err, &answered) || errors.Is(err, pb.ErrMalformed):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

// end has the shim end itself, which it does once it holds no container, and
// waits for that. One that does not is killed.
func (r *remote) end(ctx context.Context) error {
	if r.rec.Address == "" {
		return nil
	}
	c, err := r.dial()
	if err != nil {
		return nil
	}
	defer c.Close()
	if err := r.call(ctx, endLimit, "Shutdown", &api.ShutdownRequest{ID: r.id}, &api.Empty{}); err != nil && !errors.Is(err, errGone) {
		return r.kill(err)
	}
	// It says nothing on this connection: what can be read is its end.
	if err := c.SetReadDeadline(time.Now().Add(endLimit)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return r.kill(fmt.Errorf("the runtime's shim has not ended in %v", endLimit))
	}
	return nil
}

// kill ends the shim's process if its number is known and still its own.
func (r *remote) kill(why error) error {
	if r.rec.Pid <= 1 {
		return why
	}
	pidfd, err := unix.PidfdOpen(r.rec.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return errors.Join(why, os.NewSyscallError("pidfd_open", err))
	}
	defer unix.Close(pidfd)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", r.rec.Pid))
	if err != nil || !bytes.Contains(line, []byte(r.id)) {
		return why
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return errors.Join(why, os.NewSyscallError("pidfd_send_signal", err))
	}
	return nil
}

// clean clears away what the shim may hold: its containers and processes, its
// own process, the root file system's mount, the record. It does so whatever of
// that there is.
func (r *remote) clean(ctx context.Context) error {
	var errs []error
	if r.rec.Address != "" {
		kill := r.call(ctx, endLimit, "Kill", &api.KillRequest{ID: r.id, Signal: uint32(unix.SIGKILL), All: true}, &api.Empty{})
		if kill == nil {
			_ = r.call(ctx, endLimit, "Wait", &api.ProcessRequest{ID: r.id}, &api.WaitResponse{}) // what it leaves is cleared below
		}
		_ = r.call(ctx, endLimit, "Delete", &api.ProcessRequest{ID: r.id}, &api.DeleteResponse{})
		errs = append(errs, r.end(ctx))
	}
	if _, err := r.run(ctx, "delete"); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, r.forget())
	return errors.Join(errs...)
}

// forget removes what the shim should have removed, the mount and the socket,
// and the record.
func (r *remote) forget() error {
	r.removeSocket()
	root := filepath.Join(r.bundle, rootDir)
	for { // one may be above another
		err := unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: root, Err: err}
		}
	}
	err := os.Remove(filepath.Join(r.bundle, api.ForeignFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// removeSocket unlinks the shim's socket if nobody listens on it any more.
func (r *remote) removeSocket() {
	info, err := os.Lstat(r.rec.Address)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := r.dial()
	if err == nil {
		c.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(r.rec.Address) // a tmpfs; the next shim has another name
	}
}

// rootDir is where a bundle's root file system is mounted.
const rootDir = "rootfs"
