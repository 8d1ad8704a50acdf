package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/bundle"
	"github.com/longshore/longshore/shim/launch"
)

// errTerminal says that the flags and process.terminal do not fit.
var errTerminal = errors.New("a process with a terminal that is left alone needs --console-socket, and one without has none to send")

// createOptions are the flags of create and run.
type createOptions struct {
	bundle string
	detach bool // for run
	keep   bool // for run
	// running is called, for run, before the process may get to its program by
	// itself.
	running func() error
	handOver
}

func createFlags(verb string, args []string) (id string, o createOptions, err error) {
	f := newFlags(verb)
	o.flags(f)
	f.StringVar(&o.bundle, "bundle", ".", "")
	f.StringVar(&o.bundle, "b", ".", "")
	// The root is never pivoted to from a place below it, and no container gets
	// the keys of its caller: nothing is left for these two to change.
	f.Bool("no-pivot", false, "")
	f.Bool("no-new-keyring", false, "")
	if verb == "run" {
		f.BoolVar(&o.detach, "detach", false, "")
		f.BoolVar(&o.detach, "d", false, "")
		f.BoolVar(&o.keep, "keep", false, "")
		f.Bool("no-subreaper", false, "")
	} else {
		o.detach = true
	}
	ids, err := parse(f, args, 1, 1)
	if err != nil {
		return "", o, err
	}
	return ids[0], o, nil
}

// create makes a container whose program waits for start.
func (c *cli) create(args []string) error {
	id, o, err := createFlags("create", args)
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	ct, _, err := c.make(id, o, true)
	if err != nil {
		return err
	}
	ct.unlock()
	return nil
}

// request is what is asked for by create and run.
type request struct {
	dir       string // of the bundle
	text      []byte // of the specification
	spec      *specs.Spec
	profile   []byte // of seccomp
	noProcess bool
	scope     *systemd.Scope
	host      *cgroup.Host
}

func (c *cli) request(id string, o createOptions) (r request, err error) {
	if r.dir, err = filepath.Abs(o.bundle); err != nil {
		return r, err
	}
	path := filepath.Join(r.dir, configFile)
	if r.text, err = bundle.Text(path); err != nil {
		return r, err
	}
	if r.spec, r.profile, r.noProcess, err = decode(path, r.text); err != nil {
		return r, err
	}
	if r.spec.Linux.CgroupsPath, r.scope, err = cgroupPath(r.spec.Linux.CgroupsPath, id, c.systemdCgroup); err != nil {
		return r, err
	}
	if r.spec.Process.Terminal != (o.consoleSocket != "") && o.detach {
		return r, errTerminal
	}
	r.host, err = cgroup.Detect()
	return r, err
}

// begin writes down what is going to be made. A group that is a neighbour's is not
// to be found there, should we die before it is refused: whoever clears away after
// us ends what is in it.
func (ct *container) begin(r request) error {
	if err := r.host.Vacant(r.spec.Linux.CgroupsPath); err != nil {
		return err
	}
	ct.record = record{
		Version: r.spec.Version, ID: ct.ID, Bundle: r.dir, Rootfs: rootfs(r.dir, r.spec), Created: time.Now().UTC().Format(time.RFC3339Nano),
		Owner: os.Getuid(), Cgroup: r.spec.Linux.CgroupsPath, NoProcess: r.noProcess, Annotations: r.spec.Annotations,
	}
	if r.scope != nil {
		ct.Scope = r.scope.Name
	}
	if err := atomicfile.Write(ct.path(configFile), r.text, 0o600, atomicfile.Volatile); err != nil {
		return err
	}
	return ct.save()
}

// make creates a container: with a gate, one that waits for another process
// to start it. The container is locked. On an error nothing is left.
func (c *cli) make(id string, o createOptions, gate bool) (*container, *launch.Container, error) {
	r, err := c.request(id, o)
	if err != nil {
		return nil, nil, err
	}
	ct, err := c.add(id)
	if err != nil {
		return nil, nil, err
	}
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() {
		c.warn(ct.remove())
		ct.unlock()
	})
	if err := ct.begin(r); err != nil {
		return nil, nil, err
	}
	files, err := o.files(r.spec.Process)
	if err != nil {
		return nil, nil, err
	}
	filter, err := filterOf(c.root, r.profile)
	if err != nil {
		return nil, nil, err
	}
	cfg := launch.Config{
		ID: id, Bundle: r.dir, Spec: r.spec, Ordered: true, Host: r.host, Filter: filter, Warn: c.warn, Stdio: launch.Stdio{Stdin: c.in, Stdout: c.out, Stderr: c.err, Files: files},
		// What is handed over, hooks, and the way out of systemd's scope come first.
		Eager: !gate && !r.noProcess && r.scope == nil && r.spec.Hooks == nil && o.handOver.nothing(),
	}
	if gate {
		cfg.Gate = ct.dir
	} else {
		cfg.Born = func(p *launch.Process) error {
			if cfg.Eager && o.running != nil {
				if err := o.running(); err != nil {
					return err
				}
			}
			return ct.born(p)
		}
	}
	launched, err := ct.launch(cfg, r.scope)
	if err != nil {
		return nil, nil, err
	}
	taken.Add(func() {
		c.warn(launched.Close())
		c.warn(ct.leaveScope())
	})
	if gate { // not before: a process that holds the gate counts as created
		if err := ct.born(launched.Init()); err != nil {
			return nil, nil, err
		}
	}
	if err := o.give(launched.Init()); err != nil {
		return nil, nil, err
	}
	taken.Keep()
	return ct, launched, nil
}

// born notes the first process.
func (ct *container) born(p *launch.Process) (err error) {
	ct.Pid = p.Pid()
	if ct.Started, err = p.StartTime(); err != nil {
		return err
	}
	return ct.save()
}

// launch makes the container's process, in a scope of systemd if there is one.
func (ct *container) launch(cfg launch.Config, scope *systemd.Scope) (*launch.Container, error) {
	if scope == nil {
		return launch.Create(cfg)
	}
	leave, err := enterScope(*scope)
	if err != nil {
		return nil, err
	}
	launched, err := launch.Create(cfg)
	if left := leave(); left != nil {
		if launched != nil {
			left = errors.Join(left, launched.Close())
		}
		err = errors.Join(err, left)
	}
	if err != nil {
		return nil, errors.Join(err, ct.leaveScope())
	}
	return launched, nil
}

// decode reads a specification, completes it, and says whether it has no process:
// such a container can be created but not started. The seccomp profile stays text.
func decode(path string, text []byte) (spec *specs.Spec, profile []byte, noProcess bool, err error) {
	spec, profile, err = bundle.Decode(text)
	if err != nil {
		return nil, nil, false, fmt.Errorf("%s: %w", path, err)
	}
	if err := checkVersion(spec.Version); err != nil {
		return nil, nil, false, err
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Process == nil {
		spec.Process = &specs.Process{Args: []string{"/"}, Cwd: "/"}
		noProcess = true
	}
	return spec, profile, noProcess, nil
}

// checkVersion takes what is compatible with the specification this is
// written for: its major version.
func checkVersion(version string) error {
	major, rest, ok := strings.Cut(version, ".")
	if !ok || rest == "" || major != strconv.Itoa(specs.VersionMajor) {
		return fmt.Errorf("ociVersion %q is not of %d.x", version, specs.VersionMajor)
	}
	return nil
}

func rootfs(bundleDir string, spec *specs.Spec) string {
	dir := "rootfs"
	if spec.Root != nil && spec.Root.Path != "" {
		dir = spec.Root.Path
	}
	if filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(bundleDir, dir)
}

// cgroupPath gives the path of the container's cgroup, and the scope that
// systemd has to make for it, if it has to.
func cgroupPath(path, id string, bySystemd bool) (string, *systemd.Scope, error) {
	switch {
	case bySystemd:
		scope, path, err := scopeOf(path, id)
		if scope != nil {
			path += containerGroup
		}
		return path, scope, err
	case path == "":
		return "/longshore/" + id, nil, nil
	}
	return path, nil, nil
}
