package cgroup

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWaitWithoutAWatch: a blocking descriptor is none that Go's poller watches,
// as is one for which the kernel gives no watch.
func TestWaitWithoutAWatch(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(pipe[0]), "r"), os.NewFile(uintptr(pipe[1]), "w")
	defer r.Close()
	defer w.Close()
	why := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := waitReadable(ctx, r); !errors.Is(err, why) {
		t.Errorf("waitReadable = %v, want the context's cause", err)
	}
	if _, err := w.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if err := waitReadable(t.Context(), r); err != nil {
		t.Errorf("waitReadable of what can be read: %v", err)
	}
}
