package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// listenAndDie names a socket: this program makes it, leaves it to a child that
// lives until its stdin ends, and ends.
const listenAndDie = "LONGSHORE_TEST_LISTEN"

func TestMain(m *testing.M) {
	if path := os.Getenv(listenAndDie); path != "" {
		if err := leaveSocket(path); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
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

// TestLockIsWaitedFor: what a dead daemon's child holds, it does not hold long.
func TestLockIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		unlock, err := lockState(dir)
		if err == nil {
			unlock()
		}
		second <- err
	}()
	unlock()
	if err := <-second; err != nil {
		t.Error(err)
	}
}
