package launch

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/seccomp"
)

// serveEnv makes the test binary a helper of the benchmark of launches: it names
// the bundle. Commands come on standard input: start, exec, delete; each is
// answered with the nanoseconds it took, to the first instruction of the
// container's program, and the CPU time so far.
const serveEnv = "LAUNCH_BENCH_BUNDLE"

// serveAsEnv changes the bundle: "pod" has the namespaces of a pod ready, which
// the containers join, "unfiltered" leaves seccomp out.
const serveAsEnv = "LAUNCH_BENCH_AS"

// bench serves the benchmark.
type bench struct {
	cfg     Config
	cache   string
	profile []byte // of seccomp, as JSON
	c       *Container
	runs    int
}

func serveBench(bundle string) error {
	var spec specs.Spec
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(bundle, "helper")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	template := filepath.Join(dir, "template")
	if err := PinTemplate(template); err != nil {
		return err
	}
	defer RemoveTemplate(template)
	switch as := os.Getenv(serveAsEnv); as {
	case "":
	case "unfiltered":
		spec.Linux.Seccomp = nil
	case "pod":
		if _, err := CreateSandbox(SandboxConfig{Dir: dir, NewNet: true, NewIPC: true, NewUTS: true, Hostname: "bench"}); err != nil {
			return err
		}
		defer RemoveSandbox(dir)
		spec.Hostname = ""
		for i, ns := range spec.Linux.Namespaces {
			if file, ok := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"}[ns.Type]; ok {
				spec.Linux.Namespaces[i].Path = filepath.Join(dir, file)
			}
		}
	default:
		return fmt.Errorf("%s=%s: %w", serveAsEnv, as, unix.EINVAL)
	}
	b := bench{cfg: Config{Bundle: bundle, Spec: &spec, Template: template, Eager: true}, cache: filepath.Join(dir, "seccomp")}
	if b.profile, err = json.Marshal(spec.Linux.Seccomp); err != nil {
		return err
	}
	spec.Linux.Seccomp = nil
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		took, err := b.do(lines.Text())
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		fmt.Println(took, cpuTime())
	}
	return nil
}

func (b *bench) do(command string) (int64, error) {
	switch command {
	case "start":
		return b.stamped(func(out *os.File) error {
			b.runs++
			b.cfg.ID = fmt.Sprintf("bench%d-%d", os.Getpid(), b.runs)
			b.cfg.Spec.Linux.CgroupsPath = "/" + b.cfg.ID
			b.cfg.Stdio = Stdio{Stdout: out}
			var err error
			if b.cfg.Filter, err = seccomp.Load(b.cache, b.profile); err != nil {
				return err
			}
			if b.c, err = Create(b.cfg); err != nil {
				return err
			}
			return b.c.Start()
		})
	case "exec":
		p := *b.cfg.Spec.Process
		p.Args = p.Args[:1]
		var proc *Process
		took, err := b.stamped(func(out *os.File) (err error) {
			proc, err = b.c.Exec(&p, Stdio{Stdout: out})
			return err
		})
		if err == nil {
			_, err = proc.Wait()
		}
		return took, err
	case "delete":
		begin := monotonic()
		if err := b.c.Init().Signal(unix.SIGKILL); err != nil {
			return 0, err
		}
		if _, err := b.c.Init().Wait(); err != nil {
			return 0, err
		}
		err := b.c.Close()
		return monotonic() - begin, err
	}
	return 0, unix.EINVAL
}

// stamped runs a process that writes the time to its output.
func (b *bench) stamped(run func(out *os.File) error) (int64, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	begin := monotonic()
	err = run(w)
	w.Close()
	if err != nil {
		return 0, err
	}
	var stamp int64
	if err := binary.Read(r, binary.LittleEndian, &stamp); err != nil {
		return 0, err
	}
	return stamp - begin, nil
}

func monotonic() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// cpuTime is what this process and its reaped children have used, in nanoseconds.
func cpuTime() int64 {
	var total int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		unix.Getrusage(who, &u)
		total += u.Utime.Nano() + u.Stime.Nano()
	}
	return total
}

// maybeServeBench does not return if this is the benchmark's helper.
func maybeServeBench() {
	bundle := os.Getenv(serveEnv)
	if bundle == "" {
		return
	}
	if err := serveBench(strings.TrimSpace(bundle)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
