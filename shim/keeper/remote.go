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
	"slices"
	"strconv"
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
)

// endLimit is for what ends something; shorter in tests.
var endLimit = 10 * time.Second

// maxOutput bounds what is read of a shim's output, in bytes.
const maxOutput = 64 << 10

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
	return r.note()
}

// share takes the shim of the sandbox container whose bundle is named.
func (r *remote) share(sandbox string) error {
	var rec api.ForeignRecord
	if err := atomicfile.ReadJSON(filepath.Join(sandbox, api.ForeignFile), &rec); err != nil {
		return fmt.Errorf("shim of the sandbox container: %w", err)
	}
	r.rec.Address, r.rec.Version, r.rec.Shared = rec.Address, rec.Version, true
	return r.note()
}

// run runs a verb of the shim's binary.
func (r *remote) run(ctx context.Context, verb string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, slowLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.rec.Binary, "-namespace", api.ForeignNamespace, "-id", r.id, "-address", r.events,
		"-publish-binary", r.rec.Publish, "-bundle", r.bundle, verb)
	cmd.Dir = r.bundle
	// What our own environment has for Go's runtime suits our shim alone.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TTRPC_ADDRESS=" + r.events, "GRPC_ADDRESS=" + r.events, "NAMESPACE=" + api.ForeignNamespace, "MAX_SHIM_VERSION=3", "GOMAXPROCS=2"}
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
	if r.rec.Address == "" || r.rec.Shared {
		return nil
	}
	c, err := r.dial()
	if err != nil {
		return nil
	}
	defer c.Close()
	if err := r.call(ctx, endLimit, "Shutdown", &api.ShutdownRequest{ID: r.id}, &api.Empty{}); err != nil && !errors.Is(err, errGone) {
		return r.kill()
	}
	// It says nothing on this connection: what can be read is its end.
	if err := c.SetReadDeadline(time.Now().Add(endLimit)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return r.kill()
	}
	return nil
}

const (
	// clearRounds is after how many lists without any of them the shim's processes
	// have ended. While a list is gone through, one may start the next and end; a
	// shim comes to life in two such steps at most.
	clearRounds = 3
	// maxKillRounds bounds how often they are looked for.
	maxKillRounds = 100
)

// kill ends the shim's processes: those of its binary that have the container's
// id among their arguments, as the convention wants it. One that was started by a
// keeper which then died is known by nothing else.
func (r *remote) kill() error {
	clear := 0
	for range maxKillRounds {
		found, err := r.killListed()
		if err != nil {
			return err
		}
		if clear++; found {
			clear = 0
		}
		if clear == clearRounds {
			return nil
		}
	}
	return fmt.Errorf("processes of %s for container %s go on coming", r.rec.Binary, r.id)
}

// killListed kills what there is of the shim at the moment.
func (r *remote) killListed() (found bool, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return false, err
	}
	var errs []error
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && r.isOurs(pid) {
			found = true
			errs = append(errs, r.killProcess(pid))
		}
	}
	return found, errors.Join(errs...)
}

// isOurs reports whether a process is the container's shim. One in the middle of
// its execve has no arguments to be known by, but its working directory already.
func (r *remote) isOurs(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	if len(line) == 0 {
		return r.worksInBundle(pid)
	}
	args := strings.Split(string(line), "\x00")
	return filepath.Base(args[0]) == filepath.Base(r.rec.Binary) && slices.Contains(args[1:], r.id)
}

// worksInBundle gives false for threads of the kernel, and for what has ended.
func (r *remote) worksInBundle(pid int) bool {
	var bundle, cwd unix.Stat_t
	if unix.Stat(r.bundle, &bundle) != nil || unix.Stat(fmt.Sprintf("/proc/%d/cwd", pid), &cwd) != nil {
		return false
	}
	return bundle.Dev == cwd.Dev && bundle.Ino == cwd.Ino
}

// killProcess kills a process, if its number still means it, and waits for its
// end.
func (r *remote) killProcess(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	if !r.isOurs(pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(endLimit/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("process %d of %s does not end", pid, r.rec.Binary)
		default:
			return nil
		}
	}
}

// clean clears away what the shim may hold, without asking it, for it may wait
// for the keeper that has died: its processes are killed, and "SHIM delete" ends
// the container, as containerd has it for a shim that is dead. It does so
// whatever of that there is.
func (r *remote) clean(ctx context.Context) error {
	if r.rec.Shared {
		return r.leave(ctx)
	}
	if r.rec.Address == "" { // the keeper died before it noted it: most shims leave it in a file, too
		if said, err := os.ReadFile(filepath.Join(r.bundle, "address")); err == nil {
			if path, version, err := parseBootstrap(said); err == nil {
				r.rec.Address, r.rec.Version = path, version
			}
		}
	}
	return errors.Join(r.kill(), r.delete(ctx))
}

// leave clears away what a shared shim may hold of the container. It is asked, for
// it has others; one that is gone has them no more, and "SHIM delete" ends this one.
func (r *remote) leave(ctx context.Context) error {
	task := &api.ProcessRequest{ID: r.id}
	err := r.call(ctx, endLimit, "Kill", &api.KillRequest{ID: r.id, Signal: uint32(unix.SIGKILL), All: true}, &api.Empty{})
	if err == nil {
		err = r.call(ctx, endLimit, "Wait", task, &api.WaitResponse{})
	}
	if err == nil || answered(err) { // it had ended
		err = r.call(ctx, endLimit, "Delete", task, &api.DeleteResponse{})
	}
	switch {
	case err == nil || api.CodeOf(err) == api.CodeNotFound:
		return r.forget()
	case errors.Is(err, errGone):
		return r.delete(ctx)
	}
	return err
}

// delete has "SHIM delete" end a container whose shim is gone, and forgets it,
// whatever came of that: one that the shim had not begun to make is an error.
func (r *remote) delete(ctx context.Context) error {
	_, err := r.run(ctx, "delete")
	return errors.Join(err, r.forget())
}

// answered reports whether an error is what the shim has said.
func answered(err error) bool {
	_, ok := errors.AsType[*api.Error](err)
	return ok && api.CodeOf(err) != api.CodeDeadlineExceeded
}

// forget removes what the shim should have removed, the mount and the socket,
// and the record.
func (r *remote) forget() error {
	if !r.rec.Shared {
		r.removeSocket()
	}
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
