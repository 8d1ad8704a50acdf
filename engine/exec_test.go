package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// ours gives the daemon's reading end of a pipe and the process's writing end.
func ours(t *testing.T) (r, w *os.File) {
	t.Helper()
	x := &execution{}
	w, r, err := x.pipe(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// TestSlowClientGetsTheRest: the deadline after a process's end is for what may
// still come, not for what is there.
func TestSlowClientGetsTheRest(t *testing.T) {
	r, w := ours(t)
	data := make([]byte, pipeSize)
	rand.Read(data)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	copyAll(&got, r) // the writing end is open
	if !bytes.Equal(got.Bytes(), data) {
		t.Errorf("got %d bytes of %d", got.Len(), len(data))
	}
}

// TestWriterThatNeverEndsIsLeft after the deadline.
func TestWriterThatNeverEndsIsLeft(t *testing.T) {
	r, w := ours(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		for chunk := make([]byte, 4096); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if err := r.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	copyAll(io.Discard, r)
	r.Close()
	writing.Wait()
}

// TestCapHoldsForACopy: CVE-2022-1708. Fails when the buffer's ReadFrom shows.
func TestCapHoldsForACopy(t *testing.T) {
	c := &capped{max: 5}
	if _, err := io.Copy(c, strings.NewReader("more than five")); err != nil {
		t.Fatal(err)
	}
	r, w := ours(t)
	if _, err := w.WriteString("and more"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	copyAll(c, r)
	if got := c.kept.String(); got != "more " {
		t.Errorf("kept %q", got)
	}
}

// TestJoinEndsWithItsContext though neither side says anything.
func TestJoinEndsWithItsContext(t *testing.T) {
	client, stream := net.Pipe()
	pod, conn := net.Pipe()
	defer client.Close()
	defer pod.Close()
	ctx, cancel := context.WithCancel(context.Background())
	joined := make(chan error, 1)
	go func() { joined <- join(ctx, conn, stream) }()
	go client.Write([]byte("there"))
	if _, err := io.ReadFull(pod, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-joined; err != nil {
		t.Errorf("join = %v", err)
	}
}
