package e2e

import (
	"context"
	"fmt"
	"io"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() { commands["watched"] = verb(watched) }

// watched N POD runs N containers in a pod, and then removes it, while one
// client watches and another does not read: the first gets every event, with
// the status of the pod and of its containers.
func watched(s *session, ctx context.Context, args []string, out io.Writer) error {
	var n int
	if _, err := fmt.Sscan(args[0], &n); err != nil {
		return err
	}
	var life sync.WaitGroup
	defer life.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch runtimeapi.RuntimeService_GetContainerEventsClient
	for range 2 { // the first is never read
		var err error
		if watch, err = s.node.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{}); err != nil {
			return err
		}
		if _, err := watch.Header(); err != nil {
			return err
		}
	}
	life.Go(func() { watchedLife(s, ctx, n, args[1]) })
	counts := map[runtimeapi.ContainerEventType]int{}
	for {
		ev, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("after %v: %w", counts, err)
		}
		counts[ev.ContainerEventType]++
		if ev.PodSandboxStatus.GetMetadata().GetName() != args[1] || ev.PodSandboxStatus.State != runtimeapi.PodSandboxState_SANDBOX_READY && ev.ContainerId != ev.PodSandboxStatus.Id {
			return fmt.Errorf("event without its pod: %v", ev)
		}
		if ev.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && ev.ContainerId != ev.PodSandboxStatus.Id {
			if err := tellsExit(ev); err != nil {
				return err
			}
		}
		if ev.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT && ev.ContainerId == ev.PodSandboxStatus.Id {
			fmt.Fprintf(out, "created %d started %d stopped %d deleted %d\n", counts[0], counts[1], counts[2], counts[3])
			return nil
		}
	}
}

// tellsExit checks that an end comes with what it was.
func tellsExit(ev *runtimeapi.ContainerEventResponse) error {
	for _, c := range ev.ContainersStatuses {
		if c.Id == ev.ContainerId && c.State == runtimeapi.ContainerState_CONTAINER_EXITED && c.Reason == "Error" && c.ExitCode == 7 &&
			c.CreatedAt <= c.StartedAt && c.StartedAt <= c.FinishedAt {
			return nil
		}
	}
	return fmt.Errorf("event of an end without it: %v", ev)
}

func watchedLife(s *session, ctx context.Context, n int, pod string) {
	for i := range n {
		name := fmt.Sprint("watched", i)
		if runVerb(s, ctx, []string{name, pod, "--", "exit", "7"}, io.Discard) != nil {
			return
		}
		if waitFor(s, ctx, []string{"exited", name}, io.Discard) != nil || remove(s, ctx, []string{name}, io.Discard) != nil {
			return
		}
	}
	_ = removePod(s, ctx, []string{pod}, io.Discard) // the watcher misses its event otherwise
}
