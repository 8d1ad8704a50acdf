package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/longshore/longshore/test/node"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// withLive starts a daemon and pods p0, p1 and so on, each with a container that
// runs.
func withLive(b *testing.B, count int, network runtimeapi.NamespaceMode) *session {
	b.Helper()
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		b.Fatal(err)
	}
	n, err := node.New(dir, bin)
	if err != nil {
		b.Fatal(err)
	}
	n.Quiet = true
	s := &session{node: n, ids: map[string]string{}, logs: map[string]string{}}
	b.Cleanup(func() {
		if err := errors.Join(s.end(context.Background()), os.RemoveAll(dir)); err != nil {
			b.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	config := n.Path("live.json")
	text := fmt.Sprintf(`{"linux": {"security_context": {"namespace_options": {"network": %q, "pid": "CONTAINER"}}}}`, network)
	err = os.WriteFile(config, []byte(text), 0o644)
	if err == nil {
		err = daemon(s, ctx, []string{"start"}, io.Discard)
	}
	if err == nil {
		err = importImage(s, ctx, nil, io.Discard)
	}
	for i := 0; i < count && err == nil; i++ {
		name := fmt.Sprint("p", i)
		if err = pod(s, ctx, []string{name, config}, io.Discard); err == nil {
			err = runVerb(s, ctx, []string{"c" + name, name, config, "--", "pause"}, io.Discard)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// cpuTime is what the daemon has used: on a machine that is busy with other
// things the time that passes says little.
func (s *session) cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.node.Pid()))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range threads {
		var ns int64
		data, _ := os.ReadFile(name) // a thread may have ended
		_, _ = fmt.Sscan(string(data), &ns)
		sum += time.Duration(ns)
	}
	return sum
}

// ask repeats a call, and reports the daemon's CPU time for one beside the time
// that passed.
func (s *session) ask(b *testing.B, call func() error) {
	before := s.cpuTime(b)
	for b.Loop() {
		if err := call(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((s.cpuTime(b)-before).Microseconds())/1000/float64(b.N), "daemon-cpu-ms/op")
}

// BenchmarkStatsOf60Pods asks what 60 pods use.
func BenchmarkStatsOf60Pods(b *testing.B) {
	s := withLive(b, 60, runtimeapi.NamespaceMode_POD)
	s.ask(b, func() error {
		resp, err := s.node.Runtime.ListPodSandboxStats(context.Background(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err == nil && len(resp.Stats) != 60 {
			err = fmt.Errorf("statistics of %d pods", len(resp.Stats))
		}
		return err
	})
}

// BenchmarkStatusAmong500Live asks for one pod of 500 that run, in the node's
// network, whose making takes least.
func BenchmarkStatusAmong500Live(b *testing.B) {
	s := withLive(b, 500, runtimeapi.NamespaceMode_NODE)
	s.ask(b, func() error {
		resp, err := s.node.Runtime.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.ids["p250"]})
		if err == nil && len(resp.ContainersStatuses) != 1 {
			err = fmt.Errorf("statuses of %d containers", len(resp.ContainersStatuses))
		}
		return err
	})
}
