package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/launch"
	"github.com/longshore/longshore/shim/stdio"
	"golang.org/x/sys/unix"
)

// drainLimit bounds the wait for output after a process has ended, for a
// descriptor may have been handed to a process elsewhere.
const drainLimit = 5 * time.Second

// streams is the stdio of a process.
type streams struct {
	child  launch.Stdio // the process's ends, until it has them
	log    *stdio.Log
	sinks  [3]*os.File // FIFOs given instead of a log: stdin, stdout, stderr
	source [2]*os.File // reading ends of stdout and stderr
	copies sync.WaitGroup

	mu      sync.Mutex // guards all below
	stdin   *os.File   // writing end
	console *os.File
	out     [2]*stdio.Stream
}

// openStreams makes the pipes of a process. stdout is "", a FIFO's path or a
// log's URI, which then takes stderr too. stdin is "", a FIFO's path, or "-"
// for a pipe that is fed by attaching.
func openStreams(terminal bool, stdin, stdout, stderr string) (*streams, error) {
	s := &streams{}
	var taken undo.Stack
	defer taken.Run()
	taken.Add(s.abandon)
	var err error
	if path, ok := strings.CutPrefix(stdout, api.LogScheme); ok {
		if s.log, err = stdio.OpenLog(path); err != nil {
			return nil, err
		}
		stdout, stderr = "", ""
	}
	for i, path := range []string{stdin, stdout, stderr} {
		if path == "" || path == "-" {
			continue
		}
		// Opened for both ways, a FIFO neither waits for its other end nor ends with it.
		if s.sinks[i], err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return nil, fmt.Errorf("open stdio: %w", err)
		}
	}
	if !terminal {
		if err := s.openPipes(stdin != "", stdout != "" || s.log != nil, stderr != "" || s.log != nil); err != nil {
			return nil, err
		}
	}
	taken.Keep()
	return s, nil
}

func (s *streams) openPipes(stdin, stdout, stderr bool) error {
	var err error
	if stdin {
		if s.child.Stdin, s.stdin, err = pipe(); err != nil {
			return err
		}
	}
	if stdout {
		if s.source[0], s.child.Stdout, err = pipe(); err != nil {
			return err
		}
	}
	if stderr {
		s.source[1], s.child.Stderr, err = pipe()
	}
	return err
}

// pipe makes a pipe in blocking mode, unlike os.Pipe: the mode belongs to the
// open file, and a program does not expect its stdio to be non-blocking.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// pollable gives the same descriptor as a file that parks its goroutine, not
// a thread.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stream"), nil
}

// begin closes the process's ends, which it has by now, and copies its output
// until it ends.
func (s *streams) begin(console *os.File) {
	s.closeChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	if console != nil {
		s.console = console
		s.source[0] = dup(console)
	}
	for i, name := range []string{"stdout", "stderr"} {
		if s.source[i] == nil {
			continue
		}
		source, err := pollable(s.source[i])
		if err != nil {
			fmt.Fprintln(os.Stderr, "longshore-shim: stdio:", err)
			continue
		}
		s.out[i] = s.stream(source, name, s.sinks[1+i])
		out := s.out[i]
		s.copies.Go(func() {
			if err := out.Copy(); err != nil {
				fmt.Fprintln(os.Stderr, "longshore-shim: stdio:", err)
			}
		})
	}
	s.feed()
}

func (s *streams) stream(source *os.File, name string, sink *os.File) *stdio.Stream {
	if s.log != nil {
		return stdio.NewLogStream(source, name, s.log)
	}
	if sink != nil {
		return stdio.NewRawStream(source, sink)
	}
	return stdio.NewRawStream(source, nil)
}

// feed copies a stdin FIFO to the process. It is called with mu held.
func (s *streams) feed() {
	to := s.stdin
	if s.console != nil {
		to = s.console
	}
	if s.sinks[0] == nil || to == nil {
		return
	}
	in := stdio.NewRawStream(s.sinks[0], dup(to))
	go in.Copy() // ends when closeStdin or finish closes the FIFO
}

func dup(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (s *streams) closeChild() {
	for _, f := range []*os.File{s.child.Stdin, s.child.Stdout, s.child.Stderr} {
		if f != nil {
			f.Close()
		}
	}
	s.child = launch.Stdio{}
}

// abandon closes everything of a process that did not come to be.
func (s *streams) abandon() {
	s.closeChild()
	for _, f := range []*os.File{s.stdin, s.source[0], s.source[1], s.sinks[0], s.sinks[1], s.sinks[2]} {
		if f != nil {
			f.Close()
		}
	}
	if s.log != nil {
		s.log.Close()
	}
}

// drain waits until all output is copied, and closes what is left.
func (s *streams) drain() error {
	s.closeStdin()
	copied := make(chan struct{})
	go func() { s.copies.Wait(); close(copied) }()
	var err error
	select {
	case <-copied:
	case <-time.After(drainLimit):
		err = errors.New("output is still held open elsewhere")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console != nil {
		s.console.Close()
	}
	for _, f := range s.sinks {
		if f != nil {
			f.Close()
		}
	}
	if s.log != nil {
		if closeErr := s.log.Close(); err == nil {
			err = closeErr
		}
	}
	return err
}

func (s *streams) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil {
		s.stdin.Close()
		s.stdin = nil
	}
}

func (s *streams) resize(width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console == nil {
		return api.Errorf(api.CodeFailedPrecondition, "the process has no terminal")
	}
	return unix.IoctlSetWinsize(int(s.console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
}

// attach sends output to the descriptors given (nil: none), which the streams
// own from here on.
func (s *streams) attach(stdout, stderr *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range []*os.File{stdout, stderr} {
		switch {
		case w == nil:
		case s.out[i] == nil:
			w.Close()
		default:
			s.out[i].Attach(w)
		}
	}
}

// stdinFD gives a descriptor of its own that feeds the process: the terminal,
// or stdin's pipe.
func (s *streams) stdinFD() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := s.stdin
	if s.console != nil {
		to = s.console
	}
	if to == nil {
		return -1, api.Errorf(api.CodeFailedPrecondition, "the container's stdin is not open")
	}
	return unix.FcntlInt(to.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
