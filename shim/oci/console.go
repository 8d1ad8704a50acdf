package oci

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ptmxName is the name sent along with a terminal.
const ptmxName = "/dev/ptmx"

// sendFile sends an open file over the unix socket at path: one message with
// its name and the descriptor (unix(7), SCM_RIGHTS), as runc sends a terminal.
func sendFile(path string, f *os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = conn.WriteMsgUnix([]byte(ptmxName), unix.UnixRights(int(fd)), nil)
	})
	if err != nil {
		return err
	}
	return sent
}

// sendPidfd sends a descriptor of a child, which nobody else reaps.
func sendPidfd(path string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	return sendFile(path, f)
}
