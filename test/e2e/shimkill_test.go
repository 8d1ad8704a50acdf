package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killPoints is how many moments of an operation are tried, spread over what it
// takes when nothing disturbs it and a little more.
const killPoints = 10

// TestShimsAreKilledAnywhere kills every shim of the node with SIGKILL at many
// moments while a pod is made, a container made and started, a process run in
// it, and while container and pod are stopped and removed. Whatever the answer,
// what stops and removes succeeds when it is asked again, the pod can be removed,
// nothing is left, and the node goes on.
func TestShimsAreKilledAnywhere(t *testing.T) {
	needRoot(t)
	s, ctx := newSession(t, perPod)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	type step func() error
	call := func(verb func(*session, context.Context, []string, io.Writer) error, args ...string) step {
		return func() error { return verb(s, ctx, args, io.Discard) }
	}
	alone, shared := call(pod, "p"), call(pod, "p", "-", "perpod")
	run, more := call(runVerb, "c", "p", "--", "pause"), call(runVerb, "d", "p", "--", "pause")
	for _, op := range []struct {
		name      string
		before    []step
		interrupt step
		again     bool // it succeeds then
	}{
		{"pod", nil, alone, false},
		{"container", []step{alone}, run, false},
		{"exec", []step{alone, run}, call(execSync, "-t", "5", "c", "guest", "true"), false},
		{"container in a shared shim", []step{shared, run}, more, false},
		{"stop", []step{alone, run}, call(stop, "c"), true},
		{"stop of one that does not listen", []step{alone, call(runVerb, "c", "p", "--", "stubborn")}, call(stop, "c", "0"), true},
		{"removal", []step{alone, run, call(stop, "c")}, call(remove, "c"), true},
		{"removal of one that runs", []step{alone, run}, call(remove, "c"), true},
		{"stop of a pod", []step{alone, run}, call(stopPod, "p"), true},
		{"removal of a stopped pod", []step{alone, run, call(stopPod, "p")}, call(removePod, "p"), true},
		{"removal of a pod that runs", []step{alone, run}, call(removePod, "p"), true},
		{"stop in a shared shim", []step{shared, run, more}, call(stop, "c"), true},
		{"removal in a shared shim", []step{shared, run, more}, call(remove, "c"), true},
		{"removal of a pod with a shared shim", []step{shared, run, more}, call(removePod, "p"), true},
	} {
		answers := map[bool]int{}
		var whole time.Duration
		for i := range killPoints + 1 {
			must(op.name+": prepare", asKubelet(func() error {
				if err := removePods(s, ctx); err != nil {
					return err
				}
				for _, f := range op.before {
					if err := f(); err != nil {
						return err
					}
				}
				return nil
			}))
			known := shimsOf(s.node.Pid())
			begun, killed := time.Now(), make(chan struct{})
			if i == 0 {
				must(op.name+", undisturbed", op.interrupt())
				whole = time.Since(begun)
				kill(known)
				close(killed)
			} else {
				time.AfterFunc(whole*time.Duration(i-1)/(killPoints-2), func() {
					defer close(killed)
					kill(known)
					killShims(s.node.Pid()) // those that have been started since
				})
				answers[op.interrupt() == nil]++
			}
			<-killed
			_, err := s.node.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			must(op.name+": list", err)
			if op.again {
				must(op.name+": again", op.interrupt())
			}
			must(op.name+": remove", removePods(s, ctx))
		}
		if err := leaks(s, ctx, nil, io.Discard); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		t.Logf("%s, which takes %v: %d times done, %d times an error", op.name, whole, answers[true], answers[false])
	}
	must("pod afterwards", alone())
	must("container afterwards", run())
	must("exec afterwards", call(execSync, "c", "guest", "true")())
	must("remove", removePods(s, ctx))
}

// killShims ends the shims of a daemon.
func killShims(daemon int) { kill(shimsOf(daemon)) }

// shimsOf gives descriptors of the shims that are children of a daemon.
func shimsOf(daemon int) (pidfds []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		stat, _ := os.ReadFile(name) // "" once it has gone
		_, after, ok := strings.Cut(string(stat), "(longshore-shim) ")
		if fields := strings.Fields(after); !ok || len(fields) < 2 || fields[1] != fmt.Sprint(daemon) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			pidfds = append(pidfds, fd)
		}
	}
	return pidfds
}

// kill kills processes, waits for their end, and closes the descriptors.
func kill(pidfds []int) {
	for _, fd := range pidfds {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	for _, fd := range pidfds {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		unix.Close(fd)
	}
}

// asKubelet tries again: a shim that was just killed may be lost on the way.
func asKubelet(f func() error) (err error) {
	const attempts = 3
	for range attempts {
		if err = f(); err == nil {
			break
		}
	}
	return err
}

// removePods removes whatever pods there are.
func removePods(s *session, ctx context.Context) error {
	return asKubelet(func() error {
		list, err := s.node.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			_, removed := s.node.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
			err = errors.Join(err, removed)
		}
		return err
	})
}
