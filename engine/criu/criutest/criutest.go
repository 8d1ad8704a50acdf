// Package criutest is a criu for tests: a program that speaks its protocol, and
// neither saves nor restores anything. What it does stands in the file criu.mode
// beside it, a word of those of [Main]; what it was told it writes to criu.seen.
package criutest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// name is that of the program, by which a test binary knows that it is it.
const name = "criu"

// Install makes the test binary, whose TestMain calls [Main], a criu in dir, and
// gives its path.
func Install(dir string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return path, os.Symlink(self, path)
}

// Main serves a request and ends, if the test binary was started as criu. The
// modes are:
//
//	MAJOR.MINOR  it is of this version, not of 3.17
//	bad          the kernel does not suit it
//	fail         a dump fails
//	second       a dump to a directory of number 1 fails
//	hang         a dump, in a pod's checkpoint that of number 1, does not end
//	patient      a dump fails when its directory is removed
//	large        a dump has 4 GiB
//	refuse       a restore fails
//	wait         a restore does not end
func Main() {
	if filepath.Base(os.Args[0]) != name {
		return
	}
	if len(os.Args) != 3 || os.Args[1] != "swrk" {
		fmt.Fprintln(os.Stderr, "usage: criu swrk DESCRIPTOR")
		os.Exit(2)
	}
	p := &program{node: filepath.Dir(os.Args[0])}
	mode, _ := os.ReadFile(filepath.Join(p.node, "criu.mode"))
	p.mode = strings.TrimSpace(string(mode))
	if err := p.serve(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// program is one run of it.
type program struct {
	node, mode   string
	sk           int
	images, work string
}

// errRefused makes the program end as criu does when it has not succeeded.
var errRefused = errors.New("refused")

func (p *program) serve(descriptor string) error {
	if _, err := fmt.Sscan(descriptor, &p.sk); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	n, _, err := unix.Recvfrom(p.sk, buf, 0)
	if err != nil {
		return err
	}
	var req rpc.CriuReq
	if err := proto.Unmarshal(buf[:n], &req); err != nil {
		return err
	}
	if req.GetType() == rpc.CriuReqType_VERSION {
		version := &rpc.CriuVersion{MajorNumber: proto.Int32(3), MinorNumber: proto.Int32(17)}
		_, _ = fmt.Sscanf(p.mode, "%d.%d", version.MajorNumber, version.MinorNumber)
		return p.answer(&rpc.CriuResp{Type: req.Type, Success: proto.Bool(true), Version: version})
	}
	if err := p.enter(req.GetOpts()); err != nil {
		return err
	}
	switch req.GetType() {
	case rpc.CriuReqType_CHECK:
		err = p.check(req.GetOpts())
	case rpc.CriuReqType_DUMP:
		err = p.dump(req.GetOpts())
	case rpc.CriuReqType_RESTORE:
		err = p.restore(req.GetOpts())
	default:
		err = fmt.Errorf("a request of type %v", req.GetType())
	}
	return errors.Join(err, p.answer(&rpc.CriuResp{Type: req.Type, Success: proto.Bool(err == nil)}))
}

func (p *program) answer(resp *rpc.CriuResp) error {
	text, err := proto.Marshal(resp)
	if err != nil {
		return err
	}
	_, err = unix.Write(p.sk, text)
	return err
}

// enter finds the directories, which are descriptors of the client.
func (p *program) enter(opts *rpc.CriuOpts) error {
	client, err := unix.GetsockoptUcred(p.sk, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	fds := fmt.Sprintf("/proc/%d/fd/", client.Pid)
	if p.images, err = os.Readlink(fds + fmt.Sprint(opts.GetImagesDirFd())); err != nil {
		return err
	}
	p.work, err = os.Readlink(fds + fmt.Sprint(opts.GetWorkDirFd()))
	return err
}

func (p *program) check(opts *rpc.CriuOpts) error {
	if p.mode != "bad" {
		return p.write(filepath.Join(p.work, opts.GetLogFile()), "(0.1) Looks good.")
	}
	return p.failed(opts, "(0.1) Error (vdso.c:1): no symbols")
}

func (p *program) dump(opts *rpc.CriuOpts) error {
	if err := p.note(opts); err != nil {
		return err
	}
	second := strings.Contains(p.images, "/1/")
	if err := p.write(filepath.Join(p.images, "core-1.img"), "memory"); err != nil {
		return err
	}
	switch p.mode {
	case "fail":
		return p.failed(opts, "(0.1) all is well\n(0.2) Error (boom.c:1): it went wrong")
	case "second":
		if second {
			return p.failed(opts, "(0.1) Error (boom.c:1): it went wrong")
		}
	case "large":
		if err := os.WriteFile(filepath.Join(p.images, "pages-1.img"), nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(filepath.Join(p.images, "pages-1.img"), 4<<30); err != nil {
			return err
		}
	case "hang":
		if second || !strings.Contains(p.images, "/0/") {
			return p.stay("criu.hangs")
		}
	case "patient":
		return p.giveUp()
	}
	if err := p.write(filepath.Join(p.work, "stats-dump"), "statistics"); err != nil {
		return err
	}
	return p.write(filepath.Join(p.work, opts.GetLogFile()), "all is well")
}

func (p *program) restore(opts *rpc.CriuOpts) error {
	if p.mode == "refuse" {
		return p.failed(opts, "(0.1) Error (no.c:1): not me")
	}
	return p.stay("criu.restores")
}

// failed writes to the log why the program fails.
func (p *program) failed(opts *rpc.CriuOpts, why string) error {
	return errors.Join(errRefused, p.write(filepath.Join(p.work, opts.GetLogFile()), why))
}

// stay tells that it does not end, and does not.
func (p *program) stay(file string) error {
	if err := p.write(filepath.Join(p.node, file), ""); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return nil
}

// giveUp waits until the images' directory is removed.
func (p *program) giveUp() error {
	for {
		if _, err := os.Stat(p.images); err != nil {
			return errors.Join(errRefused, p.write(filepath.Join(p.node, "criu.right"), ""))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *program) write(path, text string) error { return os.WriteFile(path, []byte(text+"\n"), 0o600) }

// note writes to criu.seen what was asked for, and how the container's group is;
// to criu.all how all of the pod's are.
func (p *program) note(opts *rpc.CriuOpts) error {
	var seen strings.Builder
	for _, external := range opts.GetExternal() {
		fmt.Fprintln(&seen, "external", external)
	}
	fmt.Fprintln(&seen, "network lock", opts.GetNetworkLock())
	if opts.GetOrphanPtsMaster() {
		fmt.Fprintln(&seen, "terminal")
	}
	if found, err := exec.LookPath("ip6tables-restore"); err == nil {
		fmt.Fprintln(&seen, "ip6tables-restore", found)
	}
	group := opts.GetFreezeCgroup()
	fmt.Fprintln(&seen, stateOf(group))
	siblings, err := filepath.Glob(filepath.Join(filepath.Dir(group), "*", "cgroup.procs"))
	if err != nil {
		return err
	}
	var states []string
	for _, file := range siblings {
		// With systemd the pod's first process has a group as well.
		if dir := filepath.Dir(file); filepath.Base(dir) != "init" {
			states = append(states, stateOf(dir))
		}
	}
	all, err := os.OpenFile(filepath.Join(p.node, "criu.all"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(all, strings.Join(states, " "))
	return errors.Join(err, all.Close(), p.write(filepath.Join(p.node, "criu.seen"), seen.String()))
}

// stateOf tells the state of a freezer.
func stateOf(group string) string {
	for file, frozen := range map[string]string{"freezer.state": "FROZEN", "cgroup.freeze": "1"} {
		if state, err := os.ReadFile(filepath.Join(group, file)); err == nil && strings.TrimSpace(string(state)) == frozen {
			return "frozen"
		}
	}
	return "thawed"
}
