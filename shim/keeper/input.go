package keeper

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// input is the writing end of a process's stdin. The shim opens its own end when
// it likes, also after it has said that the process runs; what was written and
// closed before would be lost, and the shim would wait for a writer for ever. So
// nothing is written before it has.
type input struct {
	fifo   *os.File // O_PATH: the FIFO's name may have gone
	opened chan struct{}
	file   *os.File // valid after opened, as is err
	err    error
}

// openInput waits in the background for the other end of a FIFO.
func openInput(path string) (*input, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	in := &input{fifo: os.NewFile(uintptr(fd), path), opened: make(chan struct{})}
	go func() { // until the shim has opened it, or close has
		defer close(in.opened)
		in.file, in.err = os.OpenFile(in.path(), os.O_WRONLY, 0)
	}()
	return in, nil
}

func (in *input) path() string { return fmt.Sprint("/proc/self/fd/", in.fifo.Fd()) }

// writer waits until the shim reads, and gives the end to write to.
func (in *input) writer() (*os.File, error) {
	<-in.opened
	return in.file, in.err
}

// close ends the input. It lets go of a shim that has not come to read it.
func (in *input) close() {
	reader, err := os.OpenFile(in.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == nil { // a writer that waits goes on
		defer reader.Close()
	}
	<-in.opened
	if in.err == nil {
		in.file.Close()
	}
	in.fifo.Close()
}
