package e2e

import (
	"context"
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

// killPoints is how many moments of an operation are tried, killSpacing how far
// they are apart: together longer than any of the operations.
const (
	killPoints  = 12
	killSpacing = 600 * time.Microsecond
)

// TestShimsAreKilledAnywhere kills every shim of the node with SIGKILL at many
// moments while a pod is made, a container made and started, and a process run
// in it. Whatever the answer, the pod can be removed, nothing is left, and the
// node goes on.
func TestShimsAreKilledAnywhere(t *testing.T) {
	needRoot(t)
	s, ctx := newSession(t, perPod)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	run := func() error { return runVerb(s, ctx, []string{"c", "p", "--", "pause"}, io.Discard) }
	more := func() error { return runVerb(s, ctx, []string{"d", "p", "--", "pause"}, io.Discard) }
	shared := func() error { return pod(s, ctx, []string{"p", "-", "perpod"}, io.Discard) }
	for _, op := range []struct {
		name      string
		before    []func() error
		interrupt func() error
	}{
		{"pod", nil, func() error { return pod(s, ctx, []string{"p"}, io.Discard) }},
		{"container", []func() error{func() error { return pod(s, ctx, []string{"p"}, io.Discard) }}, run},
		{"exec", []func() error{func() error { return pod(s, ctx, []string{"p"}, io.Discard) }, run}, func() error {
			return execSync(s, ctx, []string{"-t", "5", "c", "guest", "true"}, io.Discard)
		}},
		{"container in a shared shim", []func() error{shared, run}, more},
	} {
		answers := map[bool]int{}
		for i := range killPoints {
			for _, f := range op.before {
				must(op.name+": prepare", f())
			}
			killed := make(chan struct{})
			time.AfterFunc(time.Duration(i)*killSpacing, func() {
				defer close(killed)
				killShims(s.node.Pid())
			})
			answers[op.interrupt() == nil]++
			<-killed
			must(op.name+": remove", removePods(s, ctx))
		}
		if err := leaks(s, ctx, nil, io.Discard); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		t.Logf("%s: %d times done, %d times an error", op.name, answers[true], answers[false])
	}
	must("pod afterwards", pod(s, ctx, []string{"p"}, io.Discard))
	must("container afterwards", run())
	must("exec afterwards", execSync(s, ctx, []string{"c", "guest", "true"}, io.Discard))
	must("remove", removePods(s, ctx))
}

// killShims ends the children of a daemon.
func killShims(daemon int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		stat, _ := os.ReadFile(name) // "" once it has gone
		_, after, ok := strings.Cut(string(stat), "(longshore-shim) ")
		if fields := strings.Fields(after); !ok || len(fields) < 2 || fields[1] != fmt.Sprint(daemon) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// removePods removes whatever pods there are, as the kubelet does: again, if a
// shim was lost on the way.
func removePods(s *session, ctx context.Context) error {
	const attempts = 3
	var last error
	for range attempts {
		list, err := s.node.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		last = nil
		for _, p := range list.Items {
			if _, err := s.node.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
	}
	return last
}
