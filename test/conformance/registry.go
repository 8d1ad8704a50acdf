package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
)

// registryAddress is free in a network namespace that is ours alone.
const registryAddress = "127.0.0.1:5000"

// registryServer is a running docker-registry.
type registryServer struct {
	cmd     *exec.Cmd
	logging sync.WaitGroup // reads what the server says, until it ends
}

// startRegistry starts an empty registry in the room and waits until it
// listens.
func startRegistry(ctx context.Context, room *node.Room, program, dir, logFile string) (*registryServer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", dir, registryAddress)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	s := &registryServer{cmd: exec.Command(program, "serve", config)}
	output, err := s.cmd.StderrPipe()
	if err != nil {
		log.Close()
		return nil, err
	}
	room.Do(func() { err = s.cmd.Start() })
	if err != nil {
		log.Close()
		return nil, err
	}
	listening := make(chan struct{})
	ended := make(chan struct{})
	s.logging.Go(func() {
		defer close(ended)
		defer log.Close()
		watch(output, log, listening)
	})
	select {
	case <-listening:
		return s, nil
	case <-ended:
		err = fmt.Errorf("docker-registry ended, see %s", logFile)
	case <-time.After(30 * time.Second):
		err = errors.New("docker-registry does not listen")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(err, s.stop())
}

// watch copies the server's log and tells when it says that it listens.
func watch(output io.Reader, log io.Writer, listening chan<- struct{}) {
	lines := bufio.NewScanner(output)
	told := false
	for lines.Scan() {
		fmt.Fprintln(log, lines.Text())
		if !told && strings.Contains(lines.Text(), "listening on ") {
			told = true
			close(listening)
		}
	}
	io.Copy(log, output) // a line too long ends the scanner, not the server
}

// stop ends the server and waits for it.
func (s *registryServer) stop() error {
	s.cmd.Process.Signal(unix.SIGTERM)
	s.logging.Wait() // before Wait, which closes the pipe
	err := s.cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		return nil // that it was told to end is no error
	}
	return err
}
