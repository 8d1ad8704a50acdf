package systemd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// manager plays systemd: it takes one call and gives the answers that reply
// makes of it.
func manager(t *testing.T, reply func(in *received) [][]byte) *conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		served <- serve(c, reply)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	c, err := dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.close()
		cancel()
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func serve(c net.Conn, reply func(in *received) [][]byte) error {
	r := bufio.NewReader(c)
	first, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(first, "\x00AUTH EXTERNAL ") {
		return fmt.Errorf("authentication %q, %w", first, err)
	}
	if _, err := io.WriteString(c, "OK 1234deadbeef\r\n"); err != nil {
		return err
	}
	if begin, err := r.ReadString('\n'); begin != "BEGIN\r\n" {
		return fmt.Errorf("%q, %w", begin, err)
	}
	in, err := receive(r)
	if err != nil {
		return err
	}
	for _, data := range reply(in) {
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, r) // until the client has read all
	return err
}

// answer makes a message as systemd sends it.
func answer(kind byte, replyTo uint32, member, errorName, signature string, body func(*message)) []byte {
	var m, b message
	body(&b)
	m.data = append(m.data, 'l', kind, 1, 1)
	m.u32(uint32(len(b.data)))
	m.u32(7)
	m.array(8, func() {
		add := func(code byte, s string, value func()) {
			m.align(8)
			m.data = append(m.data, code)
			m.signature(s)
			value()
		}
		add(fieldPath, "o", func() { m.str(managerPath) })
		if member != "" {
			add(fieldMember, "s", func() { m.str(member) })
		}
		if errorName != "" {
			add(fieldErrorName, "s", func() { m.str(errorName) })
		}
		if replyTo != 0 {
			add(fieldReplySerial, "u", func() { m.u32(replyTo) })
		}
		add(fieldSignature, "g", func() { m.signature(signature) })
	})
	m.align(8)
	return append(m.data, b.data...)
}

func removed(unit, result string) []byte {
	return answer(typeSignal, 0, "JobRemoved", "", "uoss", func(m *message) {
		m.u32(3)
		m.str("/org/freedesktop/systemd1/job/3")
		m.str(unit)
		m.str(result)
	})
}

func queued() []byte {
	return answer(typeReply, 1, "", "", "o", func(m *message) { m.str("/org/freedesktop/systemd1/job/3") })
}

func TestJobEndsWithItsUnits(t *testing.T) {
	refusal := answer(typeError, 1, "", "org.freedesktop.systemd1.UnitExists", "s", func(m *message) { m.str("it is there") })
	for name, tc := range map[string]struct {
		answers [][]byte
		want    string
	}{
		"done":              {[][]byte{queued(), removed("other.scope", "failed"), removed("x.scope", "done")}, ""},
		"signal first":      {[][]byte{removed("x.scope", "done"), queued()}, ""},
		"failed":            {[][]byte{queued(), removed("x.scope", "timeout")}, `the job ended with "timeout"`},
		"refused":           {[][]byte{refusal}, "it is there (org.freedesktop.systemd1.UnitExists)"},
		"garbage":           {[][]byte{bytes.Repeat([]byte("x"), 64)}, errGarbage.Error()},
		"endless":           {[][]byte{append([]byte{'l', typeReply, 0, 1}, bytes.Repeat([]byte{0xff}, 12)...)}, errGarbage.Error()},
		"another's refusal": {[][]byte{answer(typeError, 9, "", "a.b", "", func(*message) {}), queued(), removed("x.scope", "done")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := manager(t, func(in *received) [][]byte {
				p := &parser{data: in.body, order: in.order}
				if unit, mode := p.str(), p.str(); in.member != "StopUnit" || in.signature != "ss" || unit != "x.scope" || mode != "replace" {
					t.Errorf("call %+v: %q %q", in, unit, mode)
				}
				return tc.answers
			})
			var m message
			m.str("x.scope")
			m.str("replace")
			err := c.job("x.scope", "StopUnit", "ss", &m)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || err.Error() != tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// TestCallIsLongerThanTheServersRead: systemd leaves a call alone that it reads
// whole together with the end of the authentication.
func TestCallIsLongerThanTheServersRead(t *testing.T) {
	var m message
	m.str("x.scope")
	m.str("replace")
	if n := len(call(1, "StopUnit", "ss", &m)); n <= 256 {
		t.Errorf("a call of %d bytes", n)
	}
}

func TestCancelledCallEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", path) // never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := dial(ctx, path)
		ended <- err
	}()
	cancel()
	if err := <-ended; err == nil {
		t.Error("a connection without an answer")
	}
}

func TestNames(t *testing.T) {
	for slice, want := range map[string]string{
		"-.slice": "", "a.slice": "/a.slice", "a-b.slice": "/a.slice/a-b.slice",
		"kubepods-burstable-pod1_2.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
	} {
		if got, err := SlicePath(slice); got != want || err != nil {
			t.Errorf("%s: %q, %v", slice, got, err)
		}
	}
	for _, slice := range []string{"", "a", ".slice", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice", "../a.slice", "a b.slice", strings.Repeat("a", 250) + ".slice"} {
		if got, err := SlicePath(slice); !errors.Is(err, ErrSlice) {
			t.Errorf("%s: %q, %v", slice, got, err)
		}
	}
	for _, name := range []string{"", "x", "x.service", ".scope", "a/b.scope", "x\x00.scope"} {
		if _, err := (&Scope{Name: name, Slice: "a.slice"}).Path(); err == nil {
			t.Errorf("scope %q", name)
		}
	}
}

// FuzzReceive holds that nothing on the socket makes the reader panic or read
// past a message.
func FuzzReceive(f *testing.F) {
	f.Add(queued())
	f.Add(removed("x.scope", "done"))
	f.Add(append(queued(), removed("x.scope", "done")...))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			in, err := receive(r)
			if err != nil {
				return
			}
			p := &parser{data: in.body, order: in.order}
			p.u32()
			p.str()
			p.str()
		}
	})
}
