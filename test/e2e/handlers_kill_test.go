package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// foreignKills is at how many moments of a container's life a process is killed,
// foreignStep apart: the whole life of one takes some 200 ms.
const (
	foreignKills = 12
	foreignStep  = 25 * time.Millisecond
)

// TestForeignShimKillsLeaveNothing kills the daemon, then keepers, at many
// moments while another runtime's shim makes and removes a container. When the
// pod is removed nothing may be left, whatever was under way.
func TestForeignShimKillsLeaveNothing(t *testing.T) {
	s, ctx, must := foreignSession(t, "")
	n := s.node
	must(pod(s, ctx, []string{"p", "-", "runc"}, io.Discard))
	for i := range foreignKills {
		life := s.liveAndDie(ctx, fmt.Sprint("d", i))
		time.Sleep(time.Duration(i) * foreignStep)
		must(n.Signal(unix.SIGKILL))
		<-life
		must(n.Start(ctx))
	}
	for i := range foreignKills {
		life := s.liveAndDie(ctx, fmt.Sprint("k", i))
		time.Sleep(time.Duration(i) * foreignStep)
		must(killKeepers(n))
		<-life
	}
	must(stopPod(s, ctx, []string{"p"}, io.Discard))
	must(removePod(s, ctx, []string{"p"}, io.Discard))
	s.nothingLeft(ctx, must)
}

// foreignSession starts a daemon with a handler "runc" that containerd's shim
// serves, with more about it if need be. must ends the test at an error.
func foreignSession(t *testing.T, more string) (s *session, ctx context.Context, must func(error)) {
	t.Helper()
	needRoot(t)
	for _, name := range []string{"containerd-shim-runc-v2", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	s, ctx = newSession(t, "[handlers.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"+more)
	return s, ctx, func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nothingLeft fails if anything of pods or containers is left, runc's state too.
func (s *session) nothingLeft(ctx context.Context, must func(error)) {
	must(leaks(s, ctx, nil, io.Discard))
	left, err := filepath.Glob(s.node.Path("run/runc/k8s.io/*"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("runc's state is left: %v", left)
	}
	must(err)
}

// liveAndDie makes, starts and removes a container; any of it may fail.
func (s *session) liveAndDie(ctx context.Context, name string) <-chan struct{} {
	done := make(chan struct{})
	podID, config := s.ids["p"], s.pods["p"]
	go func() {
		defer close(done)
		id, err := s.makeAndStart(ctx, podID, config, name)
		if err != nil {
			return
		}
		_, _ = s.node.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}) // or it goes with the pod
	}()
	return done
}

// killKeepers kills the keepers of a node, if there are any at the moment.
func killKeepers(n *node.Node) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline") // empty once it has gone
		if string(line) != "longshore-shim\x00keep\x00" || !opens(dir, n.Dir) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}
