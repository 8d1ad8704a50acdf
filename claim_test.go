package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// This program claims the socket or the state directory that one of these names,
// leaves it to a child that lives until its stdin ends, and ends.
const (
	listenAndDie = "LONGSHORE_TEST_LISTEN"
	lockAndDie   = "LONGSHORE_TEST_LOCK"
)

func TestMain(m *testing.M) {
	var err error
	if path := os.Getenv(listenAndDie); path != "" {
		err = leaveSocket(path)
	} else if dir := os.Getenv(lockAndDie); dir != "" {
		err = leaveLock(dir)
	} else {
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func leaveSocket(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	return leave(f)
}

func leaveLock(dir string) error {
	if _, err := lockState(dir); err != nil {
		return err
	}
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		var fd uintptr
		if path, _ := os.Readlink(link); path != filepath.Join(dir, "lock") {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(link), &fd); err != nil {
			return err
		}
		return leave(os.NewFile(fd, link))
	}
	return errors.New("the lock is no open file")
}

// leave leaves a file to a child.
func leave(f *os.File) error {
	child := exec.Command("cat")
	child.Stdin, child.ExtraFiles = os.Stdin, []*os.File{f}
	return child.Start()
}

// TestSocketOfADeadDaemonIsTaken although a child of it has the socket open.
func TestSocketOfADeadDaemonIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	daemon := exec.Command(os.Args[0])
	daemon.Env, daemon.Stdin = append(os.Environ(), listenAndDie+"="+path), in
	if err := daemon.Run(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the child does not hold the socket: %v", err)
	}
	c.Close()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if again, err := listen(path); err == nil {
		again.Close()
		t.Error("the socket of a process that lives was taken")
	}
}

// TestStateIsLockedByTheLivingAlone: by one process, until it ends, although a
// child of it has the lock's file.
func TestStateIsLockedByTheLivingAlone(t *testing.T) {
	dir := t.TempDir()
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	other := func() ([]byte, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stdin = append(os.Environ(), lockAndDie+"="+dir), in
		return cmd.CombinedOutput()
	}
	unlock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := other(); err == nil || !strings.Contains(string(out), "another daemon uses "+dir) {
		t.Errorf("while this process has it: %v, %s", err, out)
	}
	unlock()
	for range 2 {
		if out, err := other(); err != nil {
			t.Errorf("after the others have ended: %v, %s", err, out)
		}
	}
	in.Close()
}
