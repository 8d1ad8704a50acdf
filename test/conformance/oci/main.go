// Command oci runs the validation programs of opencontainers/runtime-tools
// against the shim as an OCI runtime.
//
// The programs are built from the module that go.mod pins. Each runs in a room
// of its own: mount and pid namespaces in which everything it leaves ends with
// it, below one temporary directory, within bounded time. What they say is
// compared with the list of known failures, whose reasons must be the suite's
// own faults.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is the module that the programs are built from.
const suite = "github.com/opencontainers/runtime-tools"

// inner is the program of the suite's that runs inside the containers.
const inner = "runtimetest"

// options are the command line's.
type options struct {
	shim, cache, known string
	only               string
	limit              time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.shim, "shim", "../../../bin/longshore-shim", "the runtime")
	flag.StringVar(&o.cache, "cache", "bin", "directory that keeps the programs, and what they said last")
	flag.StringVar(&o.known, "known", "known-failures.txt", "programs that are known to fail, each with its reason")
	flag.StringVar(&o.only, "only", "", "run only the programs of these names, divided by commas")
	flag.DurationVar(&o.limit, "limit", 2*time.Minute, "how long one program may take")
	flag.Parse()
	if room := os.Getenv(roomEnv); room != "" {
		os.Exit(inRoom(room, flag.Args()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ok, err := run(ctx, o, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "oci:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run runs the programs and says whether all went as known.
func run(ctx context.Context, o options, out io.Writer) (bool, error) {
	if os.Getuid() != 0 {
		return false, errors.New("real containers need root")
	}
	known, err := readKnown(o.known)
	if err != nil {
		return false, err
	}
	for _, path := range []*string{&o.shim, &o.cache} {
		if *path, err = filepath.Abs(*path); err != nil {
			return false, err
		}
	}
	if err := build(ctx, o.cache); err != nil {
		return false, err
	}
	names, err := programs(ctx)
	if err != nil {
		return false, err
	}
	rootfs, err := rootfsOf(ctx)
	if err != nil {
		return false, err
	}
	var results []result
	for _, name := range names {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), name) {
			continue
		}
		r, err := runProgram(ctx, o, name, rootfs)
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		verdict := r.verdict()
		if e, ok := known[name]; ok && len(r.faults) > 0 && len(e.differences(r.faults)) == 0 {
			verdict = "fails as known"
		}
		fmt.Fprintf(out, "%-36s %s\n", name, verdict)
		results = append(results, r)
	}
	return judge(out, results, known, o.only != ""), nil
}

// build builds the programs that go.mod lists as tools.
func build(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", dir+"/", "tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the suite: %w\n%s", err, text)
	}
	return nil
}

// programs lists the validation programs; runtimetest is not one, but runs
// inside their containers.
func programs(ctx context.Context) ([]string, error) {
	text, err := exec.CommandContext(ctx, "go", "list", "tool").Output()
	if err != nil {
		return nil, fmt.Errorf("list the suite: %w", err)
	}
	var names []string
	for path := range strings.FieldsSeq(string(text)) {
		if name, ok := strings.CutPrefix(path, suite+"/validation/"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// rootfsOf finds the archive with the containers' root, which the suite's
// module carries.
func rootfsOf(ctx context.Context) (string, error) {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", suite).Output()
	if err != nil {
		return "", fmt.Errorf("find the suite: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "rootfs-"+runtime.GOARCH+".tar.gz"), nil
}

// runProgram runs one program in a new room and reads its verdict.
func runProgram(ctx context.Context, o options, name, rootfs string) (r result, err error) {
	room, err := os.MkdirTemp("", "oci-conformance-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(room)) }()
	for link, to := range map[string]string{filepath.Base(rootfs): rootfs, "program": filepath.Join(o.cache, name)} {
		if err := os.Symlink(to, filepath.Join(room, link)); err != nil {
			return r, err
		}
	}
	// The suite would copy a link as a link.
	if err := copyFile(filepath.Join(o.cache, inner), filepath.Join(room, inner)); err != nil {
		return r, err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s --root %s/state \"$@\"\n", o.shim, room)
	if err := os.WriteFile(filepath.Join(room, "runtime"), []byte(script), 0o755); err != nil {
		return r, err
	}
	text, status, err := enterRoom(ctx, room, o.limit)
	if err != nil {
		return r, err
	}
	if err := os.WriteFile(filepath.Join(o.cache, name+".log"), text, 0o644); err != nil {
		return r, err
	}
	return parseTAP(name, string(text), status), nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
