package stdio

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

var when = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

const stamp = "2026-01-02T03:04:05.000006000Z "

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for name, test := range map[string]struct {
		reads []string
		want  string
	}{
		"lines":             {[]string{"a\nb\n"}, stamp + "stdout F a\n" + stamp + "stdout F b\n"},
		"an empty line":     {[]string{"\n"}, stamp + "stdout F \n"},
		"a line in parts":   {[]string{"a", "b\nc", "\n"}, stamp + "stdout F ab\n" + stamp + "stdout F c\n"},
		"no newline at end": {[]string{"a\nb"}, stamp + "stdout F a\n" + stamp + "stdout P b\n"},
		"just long enough":  {[]string{long + "\n"}, stamp + "stdout F " + long + "\n"},
		"too long":          {[]string{long, "y\n"}, stamp + "stdout P " + long + "\n" + stamp + "stdout F y\n"},
		"nothing":           {nil, ""},
	} {
		f := &formatter{name: "stdout"}
		var out []byte
		for _, r := range test.reads {
			out = f.append(out, []byte(r), when)
		}
		if got := string(f.flush(out, when)); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// contents takes the records apart again.
func contents(t *testing.T, log []byte) []byte {
	t.Helper()
	var all []byte
	for _, record := range bytes.SplitAfter(log, []byte("\n")) {
		if len(record) == 0 {
			continue
		}
		parts := bytes.SplitN(record, []byte(" "), 4)
		if len(parts) != 4 || len(parts[3]) > MaxLine+1 {
			t.Fatalf("bad record %q", record)
		}
		if parts[2][0] == 'P' {
			parts[3] = parts[3][:len(parts[3])-1]
		}
		all = append(all, parts[3]...)
	}
	return all
}

func FuzzFormatKeepsEveryByte(f *testing.F) {
	f.Add([]byte("a\nbc"), uint64(1))
	f.Add(bytes.Repeat([]byte("z"), 3*MaxLine), uint64(2))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		form := &formatter{name: "stderr"}
		var out []byte
		for rest := data; len(rest) > 0; {
			n := 1 + rng.IntN(len(rest))
			out = form.append(out, rest[:n], when)
			rest = rest[n:]
		}
		if got := contents(t, form.flush(out, when)); !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d", len(data), len(got))
		}
	})
}

func TestStreamLogsAndFeedsAttached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	r, w := pipe(t)
	ar, aw := pipe(t)
	s := NewLogStream(r, "stdout", log)
	s.Attach(aw)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	io.WriteString(w, "one\ntwo")
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(ar); string(got) != "one\ntwo" {
		t.Errorf("attached got %q", got)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	data, _ := os.ReadFile(path)
	if got := contents(t, data); string(got) != "one\ntwo" {
		t.Errorf("log holds %q", data)
	}
}

// TestClientThatGoesIsLetGo: a container that prints nothing must not keep the
// descriptors of those who have left.
func TestClientThatGoesIsLetGo(t *testing.T) {
	r, w := pipe(t)
	s := NewRawStream(r, nil)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	ar, aw := pipe(t)
	s.Attach(aw)
	raw, err := aw.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ar.Close()
	for raw.Control(func(uintptr) {}) == nil { // until it is closed
		runtime.Gosched()
	}
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestClientThatTakesNothingIsLetGo soon, and the others get all.
func TestClientThatTakesNothingIsLetGo(t *testing.T) {
	r, w := pipe(t)
	s := NewRawStream(r, nil)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	const clients, size = 2, 1 << 20
	for range clients {
		_, aw := pipe(t)
		s.Attach(aw)
	}
	ar, aw := pipe(t)
	s.Attach(aw)
	got := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, ar)
		got <- n
	}()
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	if n := len(s.attached); n > 1 {
		t.Errorf("%d clients are attached", n)
	}
	s.mu.Unlock()
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != size {
		t.Errorf("the client that takes all got %d bytes of %d", n, size)
	}
}

// TestSlowClientHasATotal: one that takes a little within each limit holds up
// the container no longer than one that takes nothing.
func TestSlowClientHasATotal(t *testing.T) {
	_, aw := pipe(t)
	c := &client{w: aw, left: holdLimit}
	full := make([]byte, 128<<10)
	before := c.left
	if err := c.send(full[:1]); err != nil || c.left != before {
		t.Fatalf("a write that did not wait: %v, %v left", err, c.left)
	}
	c.left = time.Millisecond
	if err := c.send(full); !errors.Is(err, os.ErrDeadlineExceeded) || c.left > 0 {
		t.Fatalf("a write that waits: %v, %v left", err, c.left)
	}
	if err := c.send(full); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the next: %v", err)
	}
}

// TestClientThatTakesEnoughStays, however long it takes in all.
func TestClientThatTakesEnoughStays(t *testing.T) {
	ar, aw := pipe(t)
	c := &client{w: aw, left: time.Minute}
	go io.Copy(io.Discard, ar)
	for range 100 {
		if err := c.send(make([]byte, 4*minTaken)); err != nil {
			t.Fatal(err)
		}
	}
	if c.left > holdLimit {
		t.Errorf("%v left: the limit never began anew", c.left)
	}
}

func TestReopenLosesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	log, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	r, w := pipe(t)
	s := NewLogStream(r, "stdout", log)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	const lines = 20000
	go func() {
		for range lines {
			io.WriteString(w, "a line of output\n")
		}
		w.Close()
	}()
	for _, name := range []string{"log.1", "log.2"} {
		if err := os.Rename(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := log.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, name := range []string{"log.1", "log.2", "log"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			t.Errorf("%s ends within a record", name)
		}
		total += bytes.Count(data, []byte("\n"))
	}
	if total != lines {
		t.Errorf("%d lines of %d", total, lines)
	}
}

func TestFullDiskDoesNotStopTheContainer(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	log := &Log{path: "full", file: full}
	r, w := pipe(t)
	s := NewLogStream(r, "stdout", log)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	if _, err := w.Write(bytes.Repeat([]byte("line\n"), 100000)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := log.Close(); err == nil || !strings.Contains(err.Error(), "dropped") {
		t.Errorf("Close = %v, want the number of dropped bytes", err)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func BenchmarkLog(b *testing.B) {
	log, err := OpenLog(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 655)
	s := NewLogStream(r, "stdout", log)
	done := make(chan error, 1)
	go func() { done <- s.Copy() }()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		w.Write(chunk)
	}
	w.Close()
	<-done
}
