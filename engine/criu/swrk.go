package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// swrk makes criu serve one request on the socket that follows.
var swrk = []string{"swrk", "3"}

// maxResponse bounds an answer, of which the text of an error is the longest part.
const maxResponse = 64 << 10

// What a program that has ended well may have said instead of an answer.
var (
	errNoAnswer = errors.New("it has not answered")
	errRefused  = errors.New("it refuses") // its log says why
)

// ask has a criu, which is not started yet, serve a request. It returns when
// the program has ended. The messages are those of go-criu; its connection is
// not used, for whatever the daemon starts meanwhile would inherit that, and its
// program has neither an environment of its own, nor output, nor an end if it is
// late.
func ask(cmd *exec.Cmd, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	text, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for criu: %w", err)
	}
	defer unix.Close(fds[0])
	theirs := os.NewFile(uintptr(fds[1]), "criu")
	defer theirs.Close()
	if _, err := unix.Write(fds[0], text); err != nil { // it waits for the program
		return nil, fmt.Errorf("ask criu: %w", err)
	}
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return answer(fds[0], req.GetType())
}

// answer reads what a program that has ended has said.
func answer(fd int, to rpc.CriuReqType) (*rpc.CriuResp, error) {
	buf := make([]byte, maxResponse)
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	if err != nil || n == 0 {
		return nil, errNoAnswer
	}
	var resp rpc.CriuResp
	if err := proto.Unmarshal(buf[:n], &resp); err != nil {
		return nil, fmt.Errorf("answer of criu: %w", err)
	}
	if !resp.GetSuccess() {
		return nil, errRefused
	}
	if resp.GetType() != to {
		return nil, fmt.Errorf("it answers %v instead of %v", resp.GetType(), to)
	}
	return &resp, nil
}
