package engine

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"
)

// newRelay gives a relay to a client, and what is closed once it is let go.
func newRelay(to io.Writer, ended chan struct{}) (*relay, chan struct{}) {
	late := make(chan struct{})
	var once sync.Once
	return &relay{to: to, ended: ended, late: late, fell: func() { once.Do(func() { close(late) }) }}, late
}

// blocked is a client that takes nothing until it is opened.
type blocked struct {
	open chan struct{}
	got  bytes.Buffer
}

func (b *blocked) Write(p []byte) (int, error) {
	<-b.open
	return b.got.Write(p)
}

// TestSlowClientIsLetGo, and the container's end is closed to it: whoever writes
// there waits no longer.
func TestSlowClientIsLetGo(t *testing.T) {
	x := &execution{}
	client := &blocked{open: make(chan struct{})}
	r, late := newRelay(client, make(chan struct{}))
	child, err := r.begin(x)
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	if n, err := child.Write(make([]byte, 2*maxBacklog)); err == nil {
		t.Errorf("%d bytes were taken for a client that takes none", n)
	}
	<-late
	x.copies.Wait()
	close(client.open)
	x.close()
}

// TestClientGetsAll that was printed, however it lags, within the backlog, and
// after the container's end without a bound.
func TestClientGetsAll(t *testing.T) {
	for name, size := range map[string]int{"within the backlog": maxBacklog / 2, "after the end": 3 * maxBacklog} {
		x := &execution{}
		client, ended := &blocked{open: make(chan struct{})}, make(chan struct{})
		if size > maxBacklog {
			close(ended)
		}
		r, late := newRelay(client, ended)
		child, err := r.begin(x)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, size)
		rand.Read(data)
		written := make(chan error, 1)
		go func() {
			_, err := child.Write(data)
			child.Close()
			written <- err
		}()
		if size < maxBacklog { // it is not held up
			if err := <-written; err != nil {
				t.Error(name, err)
			}
			close(client.open)
		} else {
			close(client.open)
			if err := <-written; err != nil {
				t.Error(name, err)
			}
		}
		x.copies.Wait()
		if isClosed(late) || !bytes.Equal(client.got.Bytes(), data) {
			t.Errorf("%s: got %d bytes of %d", name, client.got.Len(), size)
		}
		x.close()
	}
}

type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, errors.New("the client is gone") }

// TestClientThatIsGoneHoldsUpNobody: its stream is read on until attach ends.
func TestClientThatIsGoneHoldsUpNobody(t *testing.T) {
	x := &execution{}
	r, late := newRelay(refusing{}, make(chan struct{}))
	child, err := r.begin(x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := child.Write(make([]byte, 3*maxBacklog)); err != nil {
		t.Error(err)
	}
	child.Close()
	x.copies.Wait()
	if isClosed(late) {
		t.Error("it was called slow")
	}
	x.close()
}

// TestSlowLineStays: for a client that takes what the limit asks for it begins
// anew.
func TestSlowLineStays(t *testing.T) {
	r, _ := newRelay(io.Discard, make(chan struct{}))
	r.more, r.room = make(chan struct{}, 1), make(chan struct{}, 1)
	r.kept, r.taken = make([]byte, maxBacklog), minTaken
	signal(r.room) // wakes keep once, in vain
	go func() {
		for len(r.room) > 0 {
			runtime.Gosched()
		}
		r.take(make([]byte, 1))
	}()
	if left, err := r.keep([]byte{1}, time.Hour); err != nil || left > holdLimit {
		t.Errorf("%v left, %v", left, err)
	}
	if r.moved() {
		t.Error("one byte was enough")
	}
}
