package e2e

import (
	"context"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() { commands["hang"] = verb(hang) }

// hang POD PORT connects to a pod and never reads, until the script ends.
func hang(s *session, ctx context.Context, args []string, _ io.Writer) error {
	resp, err := s.node.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.ids[args[0]]})
	if err != nil {
		return err
	}
	conn, err := s.dialInRoom(ctx, "tcp", net.JoinHostPort(resp.Status.Network.Ip, args[1]))
	if err == nil {
		s.hanging = append(s.hanging, conn)
	}
	return err
}

// dialInRoom connects from the room's network namespace: HTTP clients dial on
// goroutines, and so on threads, of their own.
func (s *session) dialInRoom(_ context.Context, _, address string) (net.Conn, error) {
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	s.node.Room.Do(func() { conn, err = connect(to) })
	return conn, err
}

func connect(to *net.TCPAddr) (net.Conn, error) {
	family, sockaddr := unix.AF_INET6, unix.Sockaddr(nil)
	if ip4 := to.IP.To4(); ip4 != nil {
		family = unix.AF_INET
		sockaddr = &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(ip4)}
	} else {
		sockaddr = &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(to.IP.To16())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	timeout := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sockaddr); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}
