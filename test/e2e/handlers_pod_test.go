package e2e

import (
	"bytes"
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

func init() {
	commands["until-sandbox"] = verb(untilSandbox)
	commands["until-notready"] = verb(untilNotReady)
	commands["killsandbox"] = verb(killSandbox)
	commands["killshimofpod"] = verb(killShimOfPod)
}

// processesWith lists the processes whose command line has both words.
func processesWith(program, word string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		line, _ := os.ReadFile(file) // empty once it has gone
		if !bytes.Contains(line, []byte(program)) || !bytes.Contains(line, []byte(word)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// sandboxProcesses are those of pods' sandbox containers in a pod's cgroup.
func (s *session) sandboxProcesses(name string) ([]int, error) {
	all, err := processesWith("/pause", "pause")
	if err != nil {
		return nil, err
	}
	var of []int
	for _, pid := range all {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // empty once it has gone
		if bytes.Contains(groups, []byte(s.ids[name])) {
			of = append(of, pid)
		}
	}
	return of, nil
}

// until-sandbox POD N waits until a pod has N shims of another runtime, and as
// many sandbox containers.
func untilSandbox(s *session, ctx context.Context, args []string, _ io.Writer) error {
	want, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		shims, err := processesWith("containerd-shim-", s.ids[args[0]])
		if err != nil {
			return false, err
		}
		sandboxes, err := s.sandboxProcesses(args[0])
		return len(shims) == want && len(sandboxes) == want, err
	})
}

func untilNotReady(s *session, ctx context.Context, args []string, _ io.Writer) error {
	return poll(ctx, func() (bool, error) {
		resp, err := s.node.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.ids[args[0]]})
		return err == nil && resp.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY, err
	})
}

// killOne kills the one process of a list.
func killOne(pids []int, err error) error {
	if err != nil {
		return err
	}
	if len(pids) != 1 {
		return fmt.Errorf("processes %v, want one", pids)
	}
	return unix.Kill(pids[0], unix.SIGKILL)
}

// killsandbox POD kills the process of a pod's sandbox container.
func killSandbox(s *session, _ context.Context, args []string, _ io.Writer) error {
	return killOne(s.sandboxProcesses(args[0]))
}

// killshimofpod POD PROGRAM kills the shim that has a pod's containers.
func killShimOfPod(s *session, _ context.Context, args []string, _ io.Writer) error {
	return killOne(processesWith(args[1], s.ids[args[0]]))
}

// TestSandboxKillsLeaveNothing kills the daemon, or all keepers, at many moments of
// the life of a pod that has a sandbox container.
func TestSandboxKillsLeaveNothing(t *testing.T) {
	s, ctx, must := foreignSession(t, "shim_per = \"pod\"\n")
	n := s.node
	for i := range sandboxKills {
		life := s.podLife(ctx, fmt.Sprint("k", i))
		time.Sleep(time.Duration(i) * sandboxStep)
		if i%2 == 0 {
			must(n.Signal(unix.SIGKILL))
			<-life
			must(n.Start(ctx))
			continue
		}
		must(killKeepers(n))
		<-life
	}
	pods, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	must(err)
	for _, p := range pods.Items {
		_, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
		must(err)
	}
	s.nothingLeft(ctx, must)
}

// sandboxKills is at how many moments something is killed, sandboxStep apart: the
// life of a pod takes some 400 ms.
const (
	sandboxKills = 16
	sandboxStep  = 25 * time.Millisecond
)

// makeAndStart gives the id of a container that waits.
func (s *session) makeAndStart(ctx context.Context, podID string, config *runtimeapi.PodSandboxConfig, name string) (string, error) {
	resp, err := s.node.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: imageName},
			Args: []string{"pause"}, LogPath: name + ".log", Linux: &runtimeapi.LinuxContainerConfig{}}})
	if err != nil {
		return "", err
	}
	_, err = s.node.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
	return resp.ContainerId, err
}

// podLife makes a pod with a container and removes both; any of it may fail.
func (s *session) podLife(ctx context.Context, name string) <-chan struct{} {
	done := make(chan struct{})
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		LogDirectory: s.node.Path("logs", name), Linux: &runtimeapi.LinuxPodSandboxConfig{}}
	go func() {
		defer close(done)
		pod, err := s.node.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "runc"})
		if err != nil {
			return
		}
		if _, err := s.makeAndStart(ctx, pod.PodSandboxId, config, name); err != nil {
			return
		}
		_, _ = s.node.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}) // or it is removed at the end
	}()
	return done
}
