package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/stdio"
	"golang.org/x/sys/unix"
)

// fifos is the stdio of a process of another runtime: FIFOs in the bundle,
// which its shim opens by path.
type fifos struct {
	paths   [3]string   // stdin, stdout, stderr; "" is /dev/null
	holding [3]*os.File // writing ends of output, so that none ends before the shim has opened it
	log     *stdio.Log
	copies  sync.WaitGroup

	mu    sync.Mutex // guards all below
	stdin *input     // of those that feed the process
	out   [3]*stdio.Stream
	other []*os.File // closed at the end
}

// drainLimit bounds the wait for output after a process has ended, for it may
// have handed its stdout to another.
const drainLimit = 5 * time.Second

// make makes the FIFO of a descriptor and gives its reading end.
func (f *fifos) make(i int, bundle, name string) (*os.File, error) {
	path := filepath.Join(bundle, fmt.Sprintf("%s-%d", name, i))
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	f.paths[i] = path
	if i == 0 {
		var err error
		f.stdin, err = openInput(path)
		return nil, err
	}
	// Opened for both ways, a FIFO does not wait for its other end.
	held, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f.holding[i] = held
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// openInit makes the stdio of a container's first process, as [api.CreateTaskRequest]
// wants it: output that goes to a log and to those who attach.
func openInit(req *api.CreateTaskRequest) (*fifos, error) {
	f := &fifos{}
	err := f.openLogged(req)
	if err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

func (f *fifos) openLogged(req *api.CreateTaskRequest) (err error) {
	if path, ok := strings.CutPrefix(req.Stdout, api.LogScheme); ok {
		if f.log, err = stdio.OpenLog(path); err != nil {
			return err
		}
	}
	if req.Stdin != "" {
		if _, err = f.make(0, req.Bundle, "stdio"); err != nil {
			return err
		}
	}
	for i, name := range []string{1: "stdout", 2: "stderr"} {
		if i == 0 || i == 2 && req.Terminal {
			continue
		}
		source, err := f.make(i, req.Bundle, "stdio")
		if err != nil {
			return err
		}
		if f.log != nil {
			f.copy(i, stdio.NewLogStream(source, name, f.log))
		} else {
			f.copy(i, stdio.NewRawStream(source, nil))
		}
	}
	return nil
}

// openExec makes the stdio of a process whose daemon gives descriptors for it,
// nil for what is not wanted; the FIFOs' other ends are copied from and to them.
func openExec(bundle, execID string, files [3]*os.File) (*fifos, error) {
	f := &fifos{}
	for i, file := range files {
		if file == nil {
			continue
		}
		source, err := f.make(i, bundle, "exec-"+execID)
		if err != nil {
			f.abandon()
			return nil, err
		}
		if i > 0 {
			f.copy(i, stdio.NewRawStream(source, file))
		}
	}
	return f, nil
}

// copy copies a stream until all its writers have gone.
func (f *fifos) copy(i int, s *stdio.Stream) {
	f.out[i] = s
	f.copies.Go(func() {
		if err := s.Copy(); err != nil {
			complain("stdio", err)
		}
	})
}

// feed copies what comes on file to stdin until it ends, then calls ended.
func (f *fifos) feed(file *os.File, ended func()) {
	f.mu.Lock()
	to := f.stdin
	f.other = append(f.other, file)
	f.mu.Unlock()
	go func() { // ends with file, which finish closes
		if w, err := to.writer(); err == nil {
			_, _ = io.Copy(w, file)
		}
		ended()
	}()
}

// opened says that the shim has its ends: from now on a stream ends with it,
// and the paths are needed no more.
func (f *fifos) opened() {
	for i, held := range f.holding {
		if held != nil {
			held.Close()
			f.holding[i] = nil
		}
	}
	for _, path := range f.paths {
		if path != "" {
			_ = os.Remove(path) // it goes with the bundle at the latest
		}
	}
}

// abandon closes all of a process that did not come to be.
func (f *fifos) abandon() { _ = f.finish() }

// finish waits for the output of a process that has ended, and closes all.
func (f *fifos) finish() error {
	f.opened()
	f.dropStdin()
	copied := make(chan struct{})
	go func() { f.copies.Wait(); close(copied) }()
	var err error
	select {
	case <-copied:
	case <-time.After(drainLimit):
		err = errors.New("output is still held open elsewhere")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.other {
		file.Close()
	}
	f.other = nil
	if f.log != nil {
		err = errors.Join(err, f.log.Close())
	}
	return err
}

// closeStdin ends the process's input, once its shim has come to read it.
func (f *fifos) closeStdin() {
	f.mu.Lock()
	in := f.stdin
	f.mu.Unlock()
	if in != nil {
		_, _ = in.writer()
		f.dropStdin()
	}
}

// dropStdin ends the input of a process that has ended.
func (f *fifos) dropStdin() {
	f.mu.Lock()
	in := f.stdin
	f.stdin = nil
	f.mu.Unlock()
	if in != nil {
		in.close()
	}
}

// stdinFD gives a descriptor of its own that feeds the process.
func (f *fifos) stdinFD() (int, error) {
	f.mu.Lock()
	in := f.stdin
	f.mu.Unlock()
	if in == nil {
		return -1, api.Errorf(api.CodeFailedPrecondition, "the container's stdin is not open")
	}
	w, err := in.writer()
	if err != nil {
		return -1, err
	}
	raw, err := w.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	controlErr := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(controlErr, err)
}

// attach sends output to the descriptors given (nil: none), which the streams
// own from here on.
func (f *fifos) attach(stdout, stderr *os.File) {
	for i, w := range []*os.File{1: stdout, 2: stderr} {
		switch {
		case w == nil:
		case f.out[i] == nil:
			w.Close()
		default:
			f.out[i].Attach(w)
		}
	}
}
