package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// many is more containers than one answer of 16 MiB takes.
const (
	many     = 12_000
	manyPods = 500
)

// withMany starts a daemon that finds many ended containers, copies of one.
func withMany(t testing.TB) *session {
	t.Helper()
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.New(dir, bin)
	if err != nil {
		t.Fatal(err)
	}
	n.Quiet = true
	s := &session{node: n, ids: map[string]string{}, logs: map[string]string{}}
	t.Cleanup(func() {
		if err := errors.Join(n.Signal(unix.SIGKILL), dropCopies(n.Run)); err != nil {
			t.Error(err)
		}
		if err := s.end(context.Background()); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, step := range []func() error{
		func() error { return daemon(s, ctx, []string{"start"}, io.Discard) },
		func() error { return importImage(s, ctx, nil, io.Discard) },
		func() error { return pod(s, ctx, []string{"p"}, io.Discard) },
		func() error { return runVerb(s, ctx, []string{"c", "p", "--", "echo", "done"}, io.Discard) },
		func() error { return waitFor(s, ctx, []string{"exited", "c"}, io.Discard) },
		func() error { return n.Signal(unix.SIGKILL) },
		func() error { return copyRecords(n.Run, s.ids["p"], s.ids["c"]) },
		func() error { return n.Start(ctx) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// copyRecords makes pods and containers of the records of one each.
func copyRecords(run, podID, id string) error {
	for i := range manyPods {
		err := copyRecord(filepath.Join(run, "pods"), podID, "pod.json", "a", i, func(record, config map[string]any) {
			config["uid"], record["state"] = fmt.Sprint("uid-", i), "stopped"
		})
		if err != nil {
			return err
		}
	}
	for i := range many - 1 {
		err := copyRecord(filepath.Join(run, "containers"), id, "container.json", "c", i, func(record, config map[string]any) {
			config["attempt"], record["podID"] = i+1, copyID("a", i%manyPods)
			config["labels"] = map[string]string{"note": strings.Repeat("x", 1200)}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyID is that of copy i.
func copyID(kind string, i int) string { return fmt.Sprintf("%s%063x", kind, i+1) }

func copyRecord(dir, id, file, kind string, i int, change func(record, config map[string]any)) error {
	data, err := os.ReadFile(filepath.Join(dir, id, file))
	if err != nil {
		return err
	}
	var record map[string]any
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	record["id"] = copyID(kind, i)
	change(record, record["config"].(map[string]any))
	if data, err = json.Marshal(record); err != nil {
		return err
	}
	to := filepath.Join(dir, copyID(kind, i))
	if err := os.Mkdir(to, 0o711); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, file), data, 0o600)
}

// dropCopies removes them behind the daemon's back, which takes no time.
func dropCopies(run string) error {
	var errs []error
	for kind, n := range map[string]int{"a": manyPods, "c": many - 1} {
		dir := filepath.Join(run, map[string]string{"a": "pods", "c": "containers"}[kind])
		for i := range n {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, copyID(kind, i))))
		}
	}
	return errors.Join(errs...)
}

func streamed(ctx context.Context, n *node.Node) (map[string]int, error) {
	stream, err := n.Runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return seen, nil
		}
		if err != nil {
			return nil, err
		}
		if len(resp.Containers) == 0 {
			return nil, errors.New("a message without a container")
		}
		for _, c := range resp.Containers {
			seen[c.Id]++
		}
	}
}

// TestManyContainers: a stream lists each once, where one answer would be too
// long.
func TestManyContainers(t *testing.T) {
	needRoot(t)
	s := withMany(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	begin := time.Now()
	seen, err := streamed(ctx, s.node)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d containers in %v", len(seen), time.Since(begin))
	if len(seen) != many {
		t.Errorf("%d of %d containers", len(seen), many)
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("%s came %d times", id, times)
		}
	}
	if _, err := s.node.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err == nil {
		t.Error("one answer took them all: this test has too few")
	}
}

// BenchmarkManyContainers lists 12,000 containers over the socket.
func BenchmarkManyContainers(b *testing.B) {
	s := withMany(b)
	for b.Loop() {
		if _, err := streamed(context.Background(), s.node); err != nil {
			b.Fatal(err)
		}
	}
}
