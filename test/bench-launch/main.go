// Command bench-launch measures how long it takes from the wish for a container
// to the first instruction of its program, to another program's in the running
// container, and to its removal: our launcher inside a process that is there,
// our OCI command line, crun and runc, and the floor, a bare clone and execve
// with the same namespaces.
//
// All contenders run the same bundle, one after the other in every round, so that
// what else the machine does hits them alike. It makes a mount namespace of its
// own and needs root. hack/bench-launch.sh builds what it is given.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// innerEnv marks the process in the mount namespace.
const innerEnv = "BENCH_LAUNCH_INNER"

func main() {
	rounds := flag.Int("n", 30, "rounds")
	settle := flag.Duration("settle", 50*time.Millisecond, "how long to leave the machine alone before each step; 0 finds caches warm")
	shim := flag.String("shim", "../bin/longshore-shim", "our shim")
	helper := flag.String("helper", "../bin/launch.test", "the test binary of shim/launch")
	clock := flag.String("clock", "../bin/clock", "the program in testdata, compiled")
	var more []peer
	flag.Func("peer", "another runtime, NAME=PROGRAM", func(text string) error {
		name, binary, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=PROGRAM", text)
		}
		more = append(more, peer{name, binary})
		return nil
	})
	unistd := flag.String("unistd", "/usr/include/asm-generic/unistd.h,/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "headers with the names of system calls")
	flag.Parse()
	if os.Getenv(innerEnv) == "" {
		os.Exit(inner())
	}
	if err := run(*rounds, *settle, *shim, *helper, *clock, strings.Split(*unistd, ","), more); err != nil {
		fmt.Fprintln(os.Stderr, "bench-launch:", err)
		os.Exit(1)
	}
}

// inner runs the benchmark in a mount namespace of its own.
func inner() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), innerEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-launch:", err)
		return 1
	}
	return 0
}

func run(rounds int, settle time.Duration, shim, helper, clock string, unistd []string, more []peer) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	hideControllers()
	// What a runtime detaches comes back to us, to be reaped and counted.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-launch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// State is kept in memory, as it is below /run.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	b := bundle{dir: dir, clock: clock}
	if err := b.write(unistd); err != nil {
		return err
	}
	all, err := contenders(&b, shim, helper, more)
	if err != nil {
		return err
	}
	for round := range rounds + 1 {
		for _, c := range all {
			if c.err != nil {
				continue
			}
			if c.err = c.measure(settle, round > 0); c.err != nil { // the first fills caches
				fmt.Fprintf(os.Stderr, "%s: %v\n", c.name, c.err)
			}
		}
	}
	for _, c := range all {
		c.close()
	}
	table(all)
	return nil
}

// hideControllers makes a hybrid host look like one of version 1 to crun, which
// refuses a cgroup2 tree that has controllers beside version 1.
func hideControllers() {
	const file = "/sys/fs/cgroup/unified/cgroup.controllers"
	if _, err := os.Stat(file); err == nil {
		_ = unix.Mount("/dev/null", file, "", unix.MS_BIND, "")
	}
}

// series are the measurements of one phase.
type series []time.Duration

// at gives a quantile in milliseconds.
func (s series) at(q float64) string {
	if len(s) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(s))
	return strconv.FormatFloat(float64(sorted[int(q*float64(len(sorted)-1))])/1e6, 'f', 2, 64)
}

func table(all []*contender) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ms: min p10 p50\tto first instruction\t\t\texec\t\t\tdelete\t\t\twhole run\t\t\tCPU\t\tsystem calls\t")
	for _, c := range all {
		fmt.Fprintf(w, "%s\t", c.name)
		for _, s := range []series{c.start, c.exec, c.remove, c.whole} {
			fmt.Fprintf(w, "%s\t%s\t%s\t", s.at(0), s.at(0.1), s.at(0.5))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", c.cpu.at(0.1), c.cpu.at(0.5), c.calls)
	}
	w.Flush()
	fmt.Println("CPU: p10 and p50 of one container's start, exec and delete and of a whole run, from nothing to nothing. System calls: of one run in the foreground, by strace.")
}

// syscalls counts those of a command and its children, "-" without strace.
func syscalls(dir string, argv []string) string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "-"
	}
	summary := filepath.Join(dir, "strace")
	cmd := exec.Command("strace", append([]string{"-f", "-c", "-o", summary}, argv...)...)
	if err := cmd.Run(); err != nil {
		return "-"
	}
	data, err := os.ReadFile(summary)
	if err != nil {
		return "-"
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 3 && fields[len(fields)-1] == "total" {
			return fields[3]
		}
	}
	return "-"
}
