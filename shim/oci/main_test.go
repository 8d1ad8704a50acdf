package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
)

// commandEnv makes the test binary be the command under test.
const commandEnv = "OCI_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandEnv) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	if run := map[string]func() error{"mind": mindInjected, "become": becomeInjected}[os.Getenv(injectEnv)]; run != nil {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Containers outlive the commands that make them: their processes come to
	// us, as they come to Podman's monitor.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become subreaper:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.Remove(probe)
	os.Remove(shim)
	os.Exit(code)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("needs root: makes containers")
	}
	t.Skip("needs root: makes containers")
}

// probe is the static program of all containers, once it is built.
var probe string

func buildProbe(t testing.TB) string {
	t.Helper()
	if probe != "" {
		return probe
	}
	if built := os.Getenv("LONGSHORE_PROBE"); built != "" {
		return built // a machine that has no Go gets it ready
	}
	name := filepath.Join(os.TempDir(), fmt.Sprintf("oci-probe-%d.test", os.Getpid()))
	cmd := exec.Command("go", "build", "-o", name, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	probe = name
	return probe
}

// fixtures counts them, for names.
var fixtures int

// fixture is a bundle and a root of state of its own.
type fixture struct {
	t            *testing.T
	root, bundle string
	id           string
	spec         *specs.Spec
	group        string
	console      string // socket that takes terminals, for those who want one
}

func newFixture(t *testing.T, args ...string) *fixture {
	t.Helper()
	needRoot(t)
	f := &fixture{t: t, root: filepath.Join(t.TempDir(), "state"), bundle: t.TempDir(), id: "c1"}
	fixtures++
	f.group = fmt.Sprintf("/longshore-oci-test-%d/%d", os.Getpid(), fixtures)
	rootfs := filepath.Join(f.bundle, "rootfs")
	for _, dir := range []string{"proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(buildProbe(t), filepath.Join(rootfs, "probe")); err != nil {
		t.Fatal(err)
	}
	spec := exampleSpec()
	spec.Process.Terminal = false
	spec.Root.Readonly = false
	spec.Process.Args = append([]string{"/probe"}, args...)
	spec.Linux.CgroupsPath = f.group
	f.spec = spec
	t.Cleanup(func() {
		if f.exists() {
			f.ok("delete", "--force", f.id)
		}
		host, err := cgroup.Detect()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(host.Trees[0].Mount, f.group)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cgroup is left: %v", err)
		}
		// The parent of all is nobody's; others of this process may be in it.
		_ = host.Load(filepath.Dir(f.group)).Remove()
	})
	return f
}

func (f *fixture) exists() bool {
	_, err := os.Stat(filepath.Join(f.root, f.id))
	return err == nil
}

// write puts the specification into the bundle.
func (f *fixture) write() {
	f.t.Helper()
	data, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.bundle, configFile), data, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// command gives a command line of the runtime, to run or to start.
func (f *fixture) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", f.root}, args...)...)
	// The race detector makes each of the many commands sleep a second at its end.
	cmd.Env = append(os.Environ(), commandEnv+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// run gives the output, the errors and the status of a command. Files, not
// pipes, take them: a container keeps its maker's.
func (f *fixture) run(args ...string) (out, errors string, status int) {
	f.t.Helper()
	return f.finish(f.command(args...))
}

func (f *fixture) finish(cmd *exec.Cmd) (out, errors string, status int) {
	f.t.Helper()
	var files [2]*os.File
	for i := range files {
		file, err := os.CreateTemp(f.t.TempDir(), "stream")
		if err != nil {
			f.t.Fatal(err)
		}
		defer file.Close()
		files[i] = file
	}
	if cmd.Stdout == nil {
		cmd.Stdout = files[0]
	}
	if cmd.Stderr == nil {
		cmd.Stderr = files[1]
	}
	_ = cmd.Run()
	var texts [2]string
	for i, file := range files {
		data, err := os.ReadFile(file.Name())
		if err != nil {
			f.t.Fatal(err)
		}
		texts[i] = string(data)
	}
	return texts[0], texts[1], cmd.ProcessState.ExitCode()
}

func (f *fixture) ok(args ...string) string {
	f.t.Helper()
	out, errors, status := f.run(args...)
	if status != 0 {
		f.t.Fatalf("%v: status %d: %s", args, status, errors)
	}
	return out
}

// fails wants a command to end with status 1 and to say why.
func (f *fixture) fails(want string, args ...string) {
	f.t.Helper()
	_, errors, status := f.run(args...)
	if status != 1 || !strings.Contains(errors, want) {
		f.t.Errorf("%v: status %d, %q; want 1 and %q", args, status, errors, want)
	}
}

// create makes the container and gives the ends of its streams.
func (f *fixture) create() (in io.WriteCloser, out *os.File) {
	f.t.Helper()
	f.write()
	cmd := f.command("create", "--bundle", f.bundle, f.id)
	inR, inW, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { inW.Close(); outR.Close() })
	cmd.Stdin, cmd.Stdout = inR, outW
	_, text, status := f.finish(cmd)
	inR.Close()
	outW.Close()
	if status != 0 {
		f.t.Fatalf("create: status %d: %s", status, text)
	}
	return inW, outR
}

func (f *fixture) state() report {
	f.t.Helper()
	var r report
	if err := json.Unmarshal([]byte(f.ok("state", f.id)), &r); err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) wantStatus(want specs.ContainerState) report {
	f.t.Helper()
	r := f.state()
	if r.Status != want {
		f.t.Errorf("status %s, want %s", r.Status, want)
	}
	return r
}

// reap waits for the end of a process that a command has left to us.
func reap(t testing.TB, pid int) unix.WaitStatus {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == nil {
			return status
		}
		if err != unix.EINTR {
			t.Fatalf("wait for %d: %v", pid, err)
		}
	}
}

func readPid(t testing.TB, name string) int {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// readLine reads what a container says first.
func readLine(t testing.TB, r io.Reader) string {
	t.Helper()
	var line bytes.Buffer
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("read after %q: %v", line.String(), err)
		}
		if b[0] == '\n' {
			return line.String()
		}
		line.WriteByte(b[0])
	}
}
