package launch

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// link is the parent's end of the socket to a launching child. End of file
// means that the child has left the program, by execve or by dying.
type link struct{ fd int }

// errLeft says that the child has left its program.
var errLeft = errors.New("process left its launch program")

// launchTimeout bounds the wait for a child's next message, and for its execve. A
// process of the container can stop the child (SIGSTOP), and an image can lie on a
// filesystem that does not answer.
var launchTimeout = time.Minute

// newLink makes the pair: our end, and the child's, which the caller closes
// right after the clone, lest end of file never comes.
func newLink() (link, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return link{-1}, -1, fmt.Errorf("make launch socket: %w", err)
	}
	timeout := unix.NsecToTimeval(launchTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return link{-1}, -1, fmt.Errorf("make launch socket: %w", err)
	}
	return link{pair[0]}, pair[1], nil
}

// await waits for the child's next message, with n descriptors.
func (l link) await(n int) ([]int, error) {
	var data [1]byte
	control := make([]byte, unix.CmsgSpace(4*n))
	for {
		got, oob, _, _, err := unix.Recvmsg(l.fd, data[:], control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		// Reset: it has left without reading all that we had sent.
		if err == unix.ECONNRESET || err == nil && got == 0 {
			return nil, errLeft
		}
		if err == unix.EAGAIN {
			return nil, fmt.Errorf("launching process has not answered for %v: %w", launchTimeout, os.ErrDeadlineExceeded)
		}
		if err != nil {
			return nil, fmt.Errorf("receive from launching process: %w", err)
		}
		if n == 0 {
			return nil, nil
		}
		return parseRights(control[:oob], n)
	}
}

func parseRights(control []byte, n int) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive mounts of launching process: %w", unix.EBADMSG)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != n {
		return fds, fmt.Errorf("receive mounts of launching process: %w", unix.EBADMSG)
	}
	return fds, nil
}

// open lets the child pass its gate and hands it descriptors.
func (l link) open(fds ...int) error {
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	err := unix.Sendmsg(l.fd, []byte{'.'}, control, nil, unix.MSG_NOSIGNAL)
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return errLeft
	}
	return err
}

func (l *link) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}
