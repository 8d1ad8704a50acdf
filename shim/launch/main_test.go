package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// innerEnv marks the test process that runs in a mount namespace of its own.
const innerEnv = "LAUNCH_TEST_INNER"

// TestMain makes the test binary serve as the containers' program too, and
// runs the tests as root in a private mount namespace, so that no pin leaks.
func TestMain(m *testing.M) {
	if len(os.Args) > 0 && os.Args[0] == "/probe" {
		probe(os.Args[1:])
	}
	maybeServeBench()
	if os.Getuid() == 0 && os.Getenv(innerEnv) == "" {
		os.Exit(inner())
	}
	if os.Getenv(innerEnv) != "" {
		// Shared among themselves, as systemd has them, but not with the host.
		for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err := unix.Mount("", "/", "", unix.MS_REC|how, ""); err != nil {
				fmt.Fprintln(os.Stderr, "make mounts the tests' own:", err)
				os.Exit(1)
			}
		}
	}
	code := m.Run()
	os.Remove(staticProbe())
	os.Exit(code)
}

// staticProbe is where a build with libc puts a probe that has none.
func staticProbe() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("launch-probe-%d.test", os.Getpid()))
}

func inner() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), innerEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	// go test ends a test that overstays with SIGQUIT: its dump is the inner one's.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGQUIT, unix.SIGTERM, unix.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "start tests in a mount namespace:", err)
		return 1
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil {
		return 1
	}
	return 0
}

// needRoot skips a test that needs root, or fails it where that is required.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("needs root: makes namespaces and mounts")
	}
	t.Skip("needs root: makes namespaces and mounts")
}

// report is what a probe sees from inside.
type report struct {
	Pid, PPid, UID, GID int
	Groups              []int
	Args, Env           []string
	Cwd, Hostname       string
	Status              map[string]string
	NS                  map[string]string
	FDs                 map[string]string
	Mounts              []string
	NoFile              [2]uint64
	Limits              map[string]string
	Umask               int
	Cgroup              string
	Exe                 string
	Nonblocking         []int
}

// probe is the program of the test containers; it does not return.
func probe(args []string) {
	if len(args) == 0 {
		os.Exit(2)
	}
	switch args[0] {
	case "report":
		json.NewEncoder(os.Stdout).Encode(look())
	case "exit":
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "wait":
		io.Copy(os.Stdout, os.Stdin)
	case "pause":
		for {
			time.Sleep(time.Hour)
		}
	case "read":
		for _, name := range args[1:] {
			data, err := os.ReadFile(name)
			fmt.Printf("%s: %d %q %v\n", name, len(data), string(data[:min(len(data), 200)]), err)
		}
	case "write":
		err := os.WriteFile(args[1], []byte("x\n"), 0o644)
		fmt.Println(err)
	case "open":
		for _, name := range args[1:] {
			_, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
			fmt.Printf("%s: %v\n", name, err)
		}
	case "mount":
		fmt.Println(unix.Mount("tmpfs", args[1], "tmpfs", 0, "size=4k"))
	case "stat":
		for _, name := range args[1:] {
			var st unix.Stat_t
			err := unix.Lstat(name, &st)
			fmt.Printf("%s mode=%o dev=%d:%d uid=%d gid=%d err=%v\n", name, st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Uid, st.Gid, err)
		}
	case "labels":
		labelsInside(args[1:])
	case "seize":
		seize(args[1])
	case "stop":
		stop()
	case "tty":
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		sid, _ := unix.Getsid(0)
		tty, ttyErr := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		_, consoleErr := os.OpenFile("/dev/console", os.O_WRONLY, 0)
		name, nameErr := os.Readlink("/proc/self/fd/0")
		_, nameThere := os.Stat(name)
		fmt.Println(ws, err, sid == os.Getpid(), tty != nil, ttyErr, consoleErr, name, nameErr, nameThere)
	default:
		os.Exit(2)
	}
	os.Exit(0)
}

func look() report {
	r := report{
		Pid: os.Getpid(), PPid: os.Getppid(), UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(),
		Status: map[string]string{}, NS: map[string]string{}, FDs: map[string]string{}, Limits: map[string]string{},
	}
	r.Groups, _ = os.Getgroups()
	r.Cwd, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	r.Umask = unix.Umask(0)
	r.Exe, _ = os.Readlink("/proc/self/exe")
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok {
			r.Status[key] = strings.TrimSpace(value)
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for _, line := range strings.Split(string(limits), "\n") {
		if len(line) > 26 {
			r.Limits[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:]), " ")
		}
	}
	for _, ns := range []string{"pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time"} {
		r.NS[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:[event") {
			r.FDs[fd.Name()] = to
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	r.Mounts = strings.Split(strings.TrimSpace(string(mounts)), "\n")
	for fd := range 3 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK != 0 {
			r.Nonblocking = append(r.Nonblocking, fd)
		}
	}
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	r.Cgroup = string(cgroup)
	return r
}

// probeBinary gives a static binary of the tests for use inside a root.
func probeBinary(t testing.TB) string {
	t.Helper()
	if !dynamicallyLinked() {
		return "/proc/self/exe"
	}
	name := staticProbe()
	if _, err := os.Stat(name); err == nil {
		return name
	}
	cmd := exec.Command("go", "test", "-c", "-o", name, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build static probe: %v\n%s", err, out)
	}
	return name
}
