package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/seccomp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"9": 9, "0": 0, "64": 64, "KILL": unix.SIGKILL, "SIGKILL": unix.SIGKILL, "term": unix.SIGTERM,
		"RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "RTMAX": 64,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "65", "NO", "SIG", "RTMIN+31", "RTMIN-1", "RTMIN3", "RTMAX+1", "RTMIN+x", "RTMIN++1"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	for _, s := range []string{"9", "SIGTERM", "RTMIN+3", "RTMAX-64"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSignal(s); err == nil && (n < 0 || n > 64) {
			t.Errorf("%q: %d", s, n)
		}
	})
}

func TestCgroupPath(t *testing.T) {
	for _, tc := range []struct {
		path    string
		systemd bool
		want    string
	}{
		{"", false, "/longshore/c1"},
		{"", true, "/system.slice/longshore-c1.scope/container"},
		{"/a/b", false, "/a/b"},
		{"machine.slice:libpod:x", false, "machine.slice:libpod:x"},
		{"machine.slice:libpod:x", true, "/machine.slice/libpod-x.scope/container"},
		{":cri:x", true, "/system.slice/cri-x.scope/container"},
		{"user-1000-a.slice::x", true, "/user.slice/user-1000.slice/user-1000-a.slice/x.scope/container"},
		{"a.slice:p:b.slice", true, "/b.slice"},
		{"-.slice:p:x", true, "/p-x.scope/container"},
		{"/a", true, ""}, {"a:b:c", true, ""}, {"a/b.slice:b:c", true, ""}, {"a--b.slice:b:c", true, ""}, {".slice:b:c", true, ""},
		{"a.slice:b:c/../../d", true, ""}, {"a.slice:../b:c", true, ""},
	} {
		got, _, err := cgroupPath(tc.path, "c1", tc.systemd)
		if err != nil {
			got = ""
		}
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: %q, %v; want %q", tc.path, got, err, tc.want)
		}
	}
}

func FuzzCgroupPath(f *testing.F) {
	f.Add("machine.slice:libpod:x")
	f.Add("a-b.slice:p:../x")
	f.Fuzz(func(t *testing.T, path string) {
		if path == "" {
			return
		}
		if got, _, err := cgroupPath(path, "c1", true); err == nil && (!strings.HasPrefix(got, "/") || slices.Contains(strings.Split(got, "/"), "..")) {
			t.Errorf("%q: %q", path, got)
		}
	})
}

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "A-b_c.d+9", ".hidden", strings.Repeat("x", maxID)} {
		if err := checkID(id); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "a b", "ä", "a\x00", strings.Repeat("x", maxID+1)} {
		if err := checkID(id); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for version, ok := range map[string]bool{"1.0.0": true, "1.2.1-dev": true, specs.Version: true, "": false, "1": false, "2.0.0": false, "invalid": false} {
		if err := checkVersion(version); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "-1": -1, "10": 10, "1k": 1 << 10, "2M": 2 << 20, "3gb": 3 << 30, "4T": 4 << 40} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-2", "-1k", "9999999999g", "1.5m", "k"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	f.Add("10m")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseBytes(s); err == nil && n < -1 {
			t.Errorf("%q: %d", s, n)
		}
	})
}

func TestLinesAbout(t *testing.T) {
	text := "UID   PID  CMD\nroot    7  a\nroot   70  b 7\nshort\n"
	if got, err := linesAbout(text, []int{7}); err != nil || got != "UID   PID  CMD\nroot    7  a\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := linesAbout("USER CMD\nx y\n", []int{7}); err == nil {
		t.Error("no column is no error")
	}
}

func TestAtGate(t *testing.T) {
	for sig, want := range map[unix.Signal]unix.Signal{
		unix.SIGTERM: unix.SIGKILL, unix.SIGINT: unix.SIGKILL, unix.SIGUSR1: unix.SIGKILL, 37: unix.SIGKILL,
		0: 0, unix.SIGWINCH: unix.SIGWINCH, unix.SIGCONT: unix.SIGCONT, unix.SIGSTOP: unix.SIGSTOP,
	} {
		if got := atGate(sig); got != want {
			t.Errorf("%d becomes %d, want %d", sig, got, want)
		}
	}
}

// TestFlagsStandAnywhere: before and behind the arguments, as runc takes them.
func TestFlagsStandAnywhere(t *testing.T) {
	for _, args := range [][]string{{"--force", "c1"}, {"c1", "--force"}, {"c1", "-f"}, {"-f=true", "--", "c1"}} {
		f := newFlags("delete")
		force := f.Bool("force", false, "")
		f.BoolVar(force, "f", false, "")
		rest, err := parse(f, args, 1, 1)
		if err != nil || !*force || !slices.Equal(rest, []string{"c1"}) {
			t.Errorf("%q: %v, %v, %v", args, rest, *force, err)
		}
	}
	for _, args := range [][]string{{}, {"a", "b"}, {"--odd", "a"}, {"--", "-f", "b"}} {
		if _, err := parse(newFlags("x"), args, 1, 1); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestKnownCallers takes the command lines of others word by word.
func TestKnownCallers(t *testing.T) {
	id, o, err := createFlags("create", strings.Fields("--bundle /b --pid-file /p --no-pivot --no-new-keyring --preserve-fds 2 --console-socket /s id1"))
	if err != nil || id != "id1" || o.bundle != "/b" || o.pidFile != "/p" || o.consoleSocket != "/s" || o.preserveFDs != 2 || !o.detach {
		t.Errorf("create: %s, %+v, %v", id, o, err)
	}
	id, command, e, err := execFlags(strings.Fields("--pid-file /p --process /x --detach --console-socket /s id1"))
	if err != nil || id != "id1" || len(command) != 0 || !e.detach || e.file != "/x" || e.pidFile != "/p" || e.consoleSocket != "/s" {
		t.Errorf("exec: %s, %v, %+v, %v", id, command, e, err)
	}
	id, command, e, err = execFlags(strings.Fields("-t -e A=1 --env B=2 --user 1:2 --additional-gids 3,4 --cap CAP_KILL id1 sh -c -d"))
	if err != nil || id != "id1" || !slices.Equal(command, []string{"sh", "-c", "-d"}) || !e.tty || e.detach {
		t.Errorf("exec: %s, %v, %+v, %v", id, command, e, err)
	}
}

func TestProcessOfExec(t *testing.T) {
	spec := exampleSpec()
	o := execOptions{
		tty: true, noNewPrivs: true, cwd: "/w", user: "1:2", apparmor: "a", selinux: "s",
		env: stringList{"A=1"}, groups: stringList{"3,4", "5"}, caps: stringList{"CAP_CHOWN"},
	}
	p, err := o.process(spec, []string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	if p.User.UID != 1 || p.User.GID != 2 || !slices.Equal(p.User.AdditionalGids, []uint32{3, 4, 5}) || p.Cwd != "/w" || !p.Terminal ||
		p.ApparmorProfile != "a" || p.SelinuxLabel != "s" || !slices.Contains(p.Env, "A=1") || !slices.Contains(p.Env, "TERM=xterm") ||
		!slices.Contains(p.Capabilities.Permitted, "CAP_CHOWN") || slices.Contains(p.Capabilities.Inheritable, "CAP_CHOWN") {
		t.Errorf("%+v %+v", p, p.Capabilities)
	}
	// A process of a file has the labels of what it runs beside, if it names none.
	o = execOptions{file: filepath.Join(t.TempDir(), "process.json")}
	spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "profile", "label"
	for text, want := range map[string][2]string{`{}`: {"profile", "label"}, `{"apparmorProfile": "a", "selinuxLabel": "s"}`: {"a", "s"}} {
		if err := os.WriteFile(o.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := o.process(spec, nil); err != nil || p.ApparmorProfile != want[0] || p.SelinuxLabel != want[1] {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
	if slices.Contains(spec.Process.Env, "A=1") || slices.Contains(spec.Process.Capabilities.Permitted, "CAP_CHOWN") {
		t.Error("the container's own process has changed")
	}
}

func TestLogFormats(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	(&logger{path: name}).write("error", "a \"b\"\nc")
	(&logger{path: name}).write("debug", "not asked for")
	(&logger{path: name, format: "json", debug: true}).write("debug", "d")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], ` level=error msg="a \"b\"\nc"`) || !strings.HasPrefix(lines[1], `{"level":"debug","msg":"d","time":"`) {
		t.Errorf("%q", lines)
	}
}

func TestLogFormatIsRefused(t *testing.T) {
	for format, want := range map[string]bool{"text": true, "json": true, "xml": false, "": false} {
		if _, err := (&cli{out: os.Stderr, err: os.Stderr}).run([]string{"--log-format", format, "--version"}); (err == nil) != want {
			t.Errorf("%q: %v", format, err)
		}
	}
}

// TestGolden holds what callers parse.
func TestGolden(t *testing.T) {
	for name, v := range map[string]any{"features": implemented(), "config": exampleSpec()} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(v, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}

// TestFeaturesAreUnderstood: what features says of seccomp a profile may use, and
// of what it does not say, nothing.
func TestFeaturesAreUnderstood(t *testing.T) {
	l := implemented().Linux.Seccomp
	compiles := func(change func(p *specs.LinuxSeccomp, s *specs.LinuxSyscall)) bool {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
			ListenerPath: "/x", Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno}}}
		change(p, &p.Syscalls[0])
		_, err := seccomp.Compile(p)
		return err == nil
	}
	for _, tt := range []struct {
		what  string
		said  []string
		other []string
		use   func(p *specs.LinuxSeccomp, s *specs.LinuxSyscall, name string)
	}{
		{"action", l.Actions, []string{"SCMP_ACT_NONE"}, func(_ *specs.LinuxSeccomp, s *specs.LinuxSyscall, name string) {
			s.Action = specs.LinuxSeccompAction(name)
		}},
		{"operator", l.Operators, []string{"SCMP_CMP_NONE"}, func(_ *specs.LinuxSeccomp, s *specs.LinuxSyscall, name string) {
			s.Args = []specs.LinuxSeccompArg{{Op: specs.LinuxSeccompOperator(name)}}
		}},
		{"architecture", l.Archs, []string{"SCMP_ARCH_NONE"}, func(p *specs.LinuxSeccomp, _ *specs.LinuxSyscall, name string) {
			p.Architectures = append(p.Architectures, specs.Arch(name))
		}},
		{"flag", l.SupportedFlags, []string{"SECCOMP_FILTER_FLAG_NONE"}, func(p *specs.LinuxSeccomp, _ *specs.LinuxSyscall, name string) {
			p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlag(name)}
		}},
	} {
		for _, name := range append(tt.said, tt.other...) {
			ok := compiles(func(p *specs.LinuxSeccomp, s *specs.LinuxSyscall) { tt.use(p, s, name) })
			if ok != slices.Contains(tt.said, name) {
				t.Errorf("%s %s: understood %v", tt.what, name, ok)
			}
		}
	}
}

func TestConfigIsBounded(t *testing.T) {
	var v any
	if err := readJSON("config", strings.NewReader(strings.Repeat(" ", maxJSON+1)), &v); !errors.Is(err, unix.EFBIG) {
		t.Error(err)
	}
}
