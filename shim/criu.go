package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/longshore/longshore/internal/pb"
	"golang.org/x/sys/unix"
)

// The messages of CRIU's protocol that a restore needs, by the numbers of
// rpc.proto (https://criu.org/RPC).
type (
	criuRequest struct {
		Type    int32  `pb:"1"`
		Options []byte `pb:"2"`
		Success bool   `pb:"3"` // of what criu has told
	}
	// criuPlaces are the options that name descriptors of criu's client.
	criuPlaces struct {
		Images int32 `pb:"1"`
		Work   int32 `pb:"17"`
	}
	criuResponse struct {
		Type     int32         `pb:"1"`
		Success  bool          `pb:"2"`
		Restored *criuRestored `pb:"4"`
	}
	criuRestored struct {
		Pid int32 `pb:"1"`
	}
)

// Types of requests and responses.
const (
	criuRestore = 2
	criuNotify  = 6
)

// maxCriuResponse bounds a response.
const maxCriuResponse = 64 << 10

// criuTalk is a conversation with one criu that restores.
type criuTalk struct {
	theirs       *os.File // becomes criu's
	conn         *net.UnixConn
	images, work *os.File
	answered     chan struct{} // closed when all below is known

	pid     int
	console *os.File // master of the terminal, if criu has handed one over
	err     error
}

// openTalk makes the socket, on which the request waits for a criu.
func openTalk(options []byte, images, work string) (t *criuTalk, err error) {
	t = &criuTalk{answered: make(chan struct{})}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.images, err = os.Open(images); err != nil {
		return t, err
	}
	if t.work, err = os.Open(work); err != nil {
		return t, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return t, fmt.Errorf("make a socket for criu: %w", err)
	}
	t.theirs = os.NewFile(uintptr(fds[1]), "criu")
	ours := os.NewFile(uintptr(fds[0]), "criu")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return t, fmt.Errorf("socket for criu: %w", err)
	}
	t.conn = conn.(*net.UnixConn)
	places := pb.Marshal(&criuPlaces{Images: int32(t.images.Fd()), Work: int32(t.work.Fd())})
	return t, t.say(&criuRequest{Type: criuRestore, Options: append(options, places...)})
}

func (t *criuTalk) say(req *criuRequest) error {
	if _, err := t.conn.Write(pb.Marshal(req)); err != nil {
		return fmt.Errorf("ask criu: %w", err)
	}
	return nil
}

// listen serves a criu. It ends with the answer, or when [criuTalk.restored] is
// asked and there is none.
func (t *criuTalk) listen() {
	defer close(t.answered)
	t.pid, t.err = t.serve()
}

// serve approves of every step that criu tells of, until it has restored.
func (t *criuTalk) serve() (pid int, err error) {
	buf := make([]byte, maxCriuResponse)
	for {
		n, err := t.read(buf)
		if err != nil {
			return 0, fmt.Errorf("criu has not answered: %w", err)
		}
		var resp criuResponse
		if err := pb.Unmarshal(buf[:n], &resp); err != nil {
			return 0, err
		}
		switch {
		case resp.Success && resp.Type == criuNotify:
			err = t.say(&criuRequest{Type: criuNotify, Success: true})
		case resp.Success && resp.Type == criuRestore && resp.Restored != nil:
			return int(resp.Restored.Pid), nil
		default:
			err = errors.New("criu refuses to restore")
		}
		if err != nil {
			return 0, err
		}
	}
}

// read reads a response. The one descriptor that criu hands over is the master
// of the terminal, with the notification orphan-pts-master.
func (t *criuTalk) read(buf []byte) (n int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, size, _, _, err := t.conn.ReadMsgUnix(buf, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil || size == 0 {
		return n, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return 0, err
		}
		for _, fd := range fds {
			if t.console != nil {
				t.console.Close()
			}
			t.console = os.NewFile(uintptr(fd), "console")
		}
	}
	return n, nil
}

// restored gives the process that a criu has restored which has ended, and the
// master of its terminal, which the caller owns from here on. What criu has said
// can still be read; what it may have started does not keep anybody waiting.
func (t *criuTalk) restored() (pid int, console *os.File, err error) {
	_ = t.conn.CloseRead()
	<-t.answered
	return t.pid, t.console, t.err
}

func (t *criuTalk) close() {
	for _, f := range []*os.File{t.theirs, t.images, t.work} {
		if f != nil {
			f.Close()
		}
	}
	if t.conn != nil {
		t.conn.Close()
	}
}
