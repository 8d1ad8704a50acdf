// Command demo shows what the runtime does, on a machine that has nothing but
// the two binaries: it starts a private daemon, runs a pod of two containers
// from an image that it carries itself, looks at it from all sides, and leaves
// nothing behind.
//
// Everything happens in a mount and a network namespace of its own and below
// one temporary directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv marks the process that is in namespaces of its own; it holds the
// directory below which everything lies.
const insideEnv = "LONGSHORE_DEMO_INSIDE"

func main() {
	bin := flag.String("bin", "bin", "directory of longshore and longshore-shim")
	once := flag.Bool("once", false, "end after the show, without waiting for Ctrl-C")
	flag.Parse()
	err := errors.New("this needs root: it makes namespaces, mounts and control groups")
	switch {
	case os.Getuid() != 0:
	case os.Getenv(insideEnv) == "":
		err = enterNamespaces()
	default:
		err = inside(*bin, *once)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// enterNamespaces runs this program again in namespaces of its own, passes
// signals on to it, and waits for it.
func enterNamespaces() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	dir, err := os.MkdirTemp("", "longshore-demo-")
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		for sig := range signals {
			_ = cmd.Process.Signal(sig) // it may have ended
		}
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(signals)
	return errors.Join(err, os.RemoveAll(dir))
}

func inside(bin string, once bool) (err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	s := &show{dir: os.Getenv(insideEnv), bin: bin, cgroup: fmt.Sprintf("longshore-demo-%d", os.Getpid())}
	defer func() { err = errors.Join(err, s.end()) }()
	if err := s.begin(ctx); err != nil {
		return err
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	if once {
		return nil
	}
	fmt.Printf("\nThe pod runs on. In another terminal:\n\n  crictl -r unix://%s ps\n\nCtrl-C removes it.\n", s.socket())
	<-ctx.Done()
	return nil
}
