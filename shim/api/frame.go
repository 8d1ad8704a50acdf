package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/longshore/longshore/internal/pb"
)

// A ttrpc frame is a header of ten bytes, big-endian, and its data; see
// PROTOCOL.md of github.com/containerd/ttrpc.
const (
	headerLen  = 10
	maxDataLen = 4 << 20

	typeRequest  = 1
	typeResponse = 2
)

// maxFds bounds the descriptors that one frame may carry.
const maxFds = 4

// Request is ttrpc's Request.
type Request struct {
	Service     string `pb:"1"`
	Method      string `pb:"2"`
	Payload     []byte `pb:"3"`
	TimeoutNano int64  `pb:"4"`
}

// Response is ttrpc's Response.
type Response struct {
	Status  *RPCStatus `pb:"1"`
	Payload []byte     `pb:"2"`
}

// RPCStatus is google.rpc.Status: a gRPC code and a message.
type RPCStatus struct {
	Code    int32  `pb:"1"`
	Message string `pb:"2"`
}

// The gRPC codes that a shim answers with.
const (
	CodeUnknown            = 2
	CodeInvalidArgument    = 3
	CodeDeadlineExceeded   = 4
	CodeNotFound           = 5
	CodeAlreadyExists      = 6
	CodeFailedPrecondition = 9
	CodeUnimplemented      = 12
)

// Error is an error with a gRPC code. It travels whole.
type Error struct {
	Code    int32
	Message string
}

func (e *Error) Error() string { return e.Message }

// GRPCCode gives the code to those who do not know this package.
func (e *Error) GRPCCode() int32 { return e.Code }

// Errorf makes an [Error].
func Errorf(code int32, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf gives the gRPC code of an error; CodeUnknown if it has none.
func CodeOf(err error) int32 {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeUnknown
}

var errFrame = errors.New("malformed ttrpc frame")

// frame is one message and the descriptors that came with it.
type frame struct {
	stream uint32
	kind   byte
	data   []byte
	fds    []int
}

// closeFds gives up the descriptors of a frame nobody took.
func closeFds(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

// readFrame reads one frame. Descriptors arrive with its first byte.
func readFrame(c *net.UnixConn) (frame, error) {
	var header [headerLen]byte
	oob := make([]byte, syscall.CmsgSpace(maxFds*4))
	n, oobn, _, _, err := c.ReadMsgUnix(header[:], oob)
	if err != nil {
		return frame{}, err
	}
	f := frame{}
	if oobn > 0 {
		if f.fds, err = parseRights(oob[:oobn]); err != nil {
			return frame{}, err
		}
	}
	if n == 0 {
		return frame{}, io.EOF
	}
	if err = f.read(c, header[:], n); err != nil {
		closeFds(f.fds)
		return frame{}, err
	}
	return f, nil
}

// read fills the frame from the n bytes of the header that came first and
// what follows.
func (f *frame) read(c *net.UnixConn, header []byte, n int) error {
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(header)
	if size > maxDataLen {
		return errFrame
	}
	f.stream, f.kind = binary.BigEndian.Uint32(header[4:]), header[8]
	f.data = make([]byte, size)
	_, err := io.ReadFull(c, f.data)
	return err
}

func parseRights(oob []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			closeFds(all)
			return nil, err
		}
		all = append(all, fds...)
	}
	for _, fd := range all {
		syscall.CloseOnExec(fd)
	}
	return all, nil
}

// writeFrame sends one frame whole, with descriptors.
func writeFrame(c *net.UnixConn, f frame) error {
	if len(f.data) > maxDataLen {
		return fmt.Errorf("ttrpc message of %d bytes is too large", len(f.data))
	}
	b := make([]byte, headerLen, headerLen+len(f.data))
	binary.BigEndian.PutUint32(b, uint32(len(f.data)))
	binary.BigEndian.PutUint32(b[4:], f.stream)
	b[8] = f.kind
	b = append(b, f.data...)
	var rights []byte
	if len(f.fds) > 0 {
		rights = syscall.UnixRights(f.fds...)
	}
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// Call sends one request with descriptors over a connection that carries
// nothing else, and gives the answer's descriptors, which the caller owns.
// The caller keeps its own copies of fds.
func Call(c *net.UnixConn, service, method string, req any, fds []int, resp any) ([]int, error) {
	data := pb.Marshal(&Request{Service: service, Method: method, Payload: pb.Marshal(req)})
	if err := writeFrame(c, frame{stream: 1, kind: typeRequest, data: data, fds: fds}); err != nil {
		return nil, err
	}
	f, err := readFrame(c)
	if err != nil {
		return nil, err
	}
	var r Response
	err = pb.Unmarshal(f.data, &r)
	if err == nil && r.Status != nil && r.Status.Code != 0 {
		err = &Error{Code: r.Status.Code, Message: r.Status.Message}
	}
	if err == nil {
		err = pb.Unmarshal(r.Payload, resp)
	}
	if err != nil {
		closeFds(f.fds)
		return nil, err
	}
	return f.fds, nil
}
