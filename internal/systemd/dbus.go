package systemd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// The sizes that are taken, in bytes. The protocol's own limit is 128 MiB; the
// longest that systemd sends here is a signal with a unit's name.
const (
	maxHeader = 64 << 10
	maxBody   = 64 << 10
	maxLine   = 512
)

// Types of messages and fields of their headers (D-Bus specification, "Message
// Format").
const (
	typeCall, typeReply, typeError, typeSignal = 1, 2, 3, 4

	fieldPath, fieldInterface, fieldMember, fieldErrorName, fieldReplySerial, fieldSignature = 1, 2, 3, 4, 5, 8
)

const (
	managerPath      = "/org/freedesktop/systemd1"
	managerInterface = "org.freedesktop.systemd1.Manager"
)

// fieldPadding is no field that anyone knows, and so to be ignored. Systemd's
// side of the authentication reads up to 256 bytes at once, and then leaves what
// it has read of a call alone until more arrives: a call must be longer.
const (
	fieldPadding = 127
	paddingSize  = 4096
)

// errGarbage says that a message breaks D-Bus's rules.
var errGarbage = errors.New("not a D-Bus message")

// CallError is systemd's refusal of a call.
type CallError struct {
	Name    string // such as org.freedesktop.systemd1.UnitExists
	Message string
}

func (e *CallError) Error() string { return e.Message + " (" + e.Name + ")" }

// message is the body of one under construction. Alignment counts from its
// beginning.
type message struct{ data []byte }

func (m *message) align(n int) {
	for len(m.data)%n != 0 {
		m.data = append(m.data, 0)
	}
}

func (m *message) u32(v uint32) {
	m.align(4)
	m.data = binary.LittleEndian.AppendUint32(m.data, v)
}

func (m *message) str(s string) {
	m.u32(uint32(len(s)))
	m.data = append(append(m.data, s...), 0)
}

func (m *message) signature(s string) {
	m.data = append(append(append(m.data, byte(len(s))), s...), 0)
}

// array appends what elements writes, whose alignment is given. The length
// does not count the padding before the first element.
func (m *message) array(align int, elements func()) {
	m.u32(0)
	at := len(m.data) - 4
	m.align(align)
	begin := len(m.data)
	elements()
	binary.LittleEndian.PutUint32(m.data[at:], uint32(len(m.data)-begin))
}

// property appends a structure (sv).
func (m *message) property(name, signature string, value func()) {
	m.align(8)
	m.str(name)
	m.signature(signature)
	value()
}

// call gives a whole message for a method of systemd's manager.
func call(serial uint32, method, signature string, body *message) []byte {
	var m message
	m.data = append(m.data, 'l', typeCall, 0, 1)
	m.u32(uint32(len(body.data)))
	m.u32(serial)
	m.array(8, func() {
		field := func(code byte, signature string, value func()) {
			m.align(8)
			m.data = append(m.data, code)
			m.signature(signature)
			value()
		}
		field(fieldPath, "o", func() { m.str(managerPath) })
		field(fieldInterface, "s", func() { m.str(managerInterface) })
		field(fieldMember, "s", func() { m.str(method) })
		field(fieldSignature, "g", func() { m.signature(signature) })
		field(fieldPadding, "s", func() { m.str(strings.Repeat("-", paddingSize)) })
	})
	m.align(8)
	return append(m.data, body.data...)
}

// received is a message of systemd's, as far as this package reads one.
type received struct {
	kind                    byte
	replyTo                 uint32
	member, errorName, body string
	signature               string
	order                   binary.ByteOrder
}

// receive reads one message.
func receive(r io.Reader) (*received, error) {
	var fixed [16]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return nil, err
	}
	in := &received{kind: fixed[1], order: binary.LittleEndian}
	switch fixed[0] {
	case 'l':
	case 'B':
		in.order = binary.BigEndian
	default:
		return nil, errGarbage
	}
	body, fields := in.order.Uint32(fixed[4:]), in.order.Uint32(fixed[12:])
	if fixed[3] != 1 || body > maxBody || fields > maxHeader {
		return nil, errGarbage
	}
	padded := (fields + 7) &^ 7
	data := make([]byte, padded+body)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	in.body = string(data[padded:])
	return in, in.fields(&parser{data: string(data[:fields]), order: in.order})
}

// fields reads the header's fields. They begin at a multiple of 8.
func (in *received) fields(p *parser) error {
	for p.at < len(p.data) && p.err == nil {
		p.align(8)
		code := p.byte()
		switch signature := p.signature(); signature {
		case "s", "o":
			in.field(code, p.str())
		case "g":
			in.field(code, p.signature())
		case "u":
			if v := p.u32(); code == fieldReplySerial {
				in.replyTo = v
			}
		default:
			return errGarbage
		}
	}
	return p.err
}

func (in *received) field(code byte, value string) {
	switch code {
	case fieldMember:
		in.member = value
	case fieldErrorName:
		in.errorName = value
	case fieldSignature:
		in.signature = value
	}
}

// parser reads values; after the first error it gives zeroes.
type parser struct {
	data  string
	at    int
	order binary.ByteOrder
	err   error
}

func (p *parser) take(n int) string {
	if p.err != nil || n < 0 || n > len(p.data)-p.at {
		p.err = errGarbage
		return ""
	}
	p.at += n
	return p.data[p.at-n : p.at]
}

func (p *parser) align(n int) { p.take((n - p.at%n) % n) }

func (p *parser) byte() byte {
	if b := p.take(1); p.err == nil {
		return b[0]
	}
	return 0
}

func (p *parser) u32() uint32 {
	p.align(4)
	b := p.take(4)
	if p.err != nil {
		return 0
	}
	return p.order.Uint32([]byte(b))
}

func (p *parser) str() string {
	s := p.take(int(p.u32()))
	p.take(1)
	return s
}

func (p *parser) signature() string {
	s := p.take(int(p.byte()))
	p.take(1)
	return s
}

// conn is a connection on which one call is made.
type conn struct {
	net.Conn
	in   *bufio.Reader
	stop func() bool
}

// dial connects and authenticates by the credentials of the socket (D-Bus
// specification, "Authentication Protocol": EXTERNAL).
func dial(ctx context.Context, path string) (*conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline) // a unix socket has deadlines
	}
	// A cancelled context ends every read and write.
	c := &conn{Conn: raw, in: bufio.NewReaderSize(raw, 4096), stop: context.AfterFunc(ctx, func() { raw.Close() })}
	if err := c.authenticate(); err != nil {
		c.close()
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	return c, nil
}

func (c *conn) close() {
	c.stop()
	c.Conn.Close()
}

func (c *conn) authenticate() error {
	uid := strconv.Itoa(os.Geteuid())
	if _, err := fmt.Fprintf(c, "\x00AUTH EXTERNAL %x\r\n", uid); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "OK ") {
		return fmt.Errorf("answer %q", line)
	}
	_, err = io.WriteString(c, "BEGIN\r\n")
	return err
}

func (c *conn) line() (string, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) > maxLine {
		return "", errGarbage
	}
	return string(bytes.TrimRight(line, "\r\n")), nil
}

// job calls a method that queues a job for a unit, and waits until systemd
// says how the job ended, which it tells every direct connection.
func (c *conn) job(unit, method, signature string, body *message) error {
	const serial = 1
	if _, err := c.Write(call(serial, method, signature, body)); err != nil {
		return err
	}
	answered, result := false, ""
	for !answered || result == "" {
		in, err := receive(c.in)
		if err != nil && answered {
			return fmt.Errorf("wait for the end of the job: %w", err)
		}
		if err != nil {
			return err
		}
		p := &parser{data: in.body, order: in.order}
		switch {
		case in.kind == typeError && in.replyTo == serial:
			refused := &CallError{Name: in.errorName}
			if strings.HasPrefix(in.signature, "s") {
				refused.Message = p.str()
			}
			return refused
		case in.kind == typeReply && in.replyTo == serial:
			answered = true
		case in.kind == typeSignal && in.member == "JobRemoved" && in.signature == "uoss":
			p.u32()
			p.str()
			if name, how := p.str(), p.str(); p.err == nil && name == unit {
				result = how
			}
		}
	}
	if result != "done" {
		return fmt.Errorf("the job ended with %q", result)
	}
	return nil
}
