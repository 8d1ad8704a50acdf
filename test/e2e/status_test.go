package e2e

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() {
	commands["ended"] = verb(ended)
	commands["ooms"] = verb(ooms)
}

// ended NAME prints why a container has ended, with which code, whether its
// times are in order, and the message.
func ended(s *session, ctx context.Context, args []string, out io.Writer) error {
	st, err := s.containerStatus(ctx, args[0])
	if err != nil {
		return err
	}
	order := "in order"
	if st.CreatedAt == 0 || st.StartedAt < st.CreatedAt || st.FinishedAt < st.StartedAt {
		order = fmt.Sprintf("created %d started %d finished %d", st.CreatedAt, st.StartedAt, st.FinishedAt)
	}
	fmt.Fprintln(out, st.Reason, st.ExitCode, order)
	fmt.Fprintln(out, st.Message)
	return nil
}

// ooms N POD FILE runs containers out of memory, one after the other, and
// counts those that say so.
func ooms(s *session, ctx context.Context, args []string, out io.Writer) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	killed := 0
	for i := range n {
		name := fmt.Sprint("oom", i)
		if err := runVerb(s, ctx, []string{name, args[1], args[2], "--", "eat", "200"}, out); err != nil {
			return err
		}
		if err := waitFor(s, ctx, []string{"exited", name}, out); err != nil {
			return err
		}
		st, err := s.containerStatus(ctx, name)
		if err != nil {
			return err
		}
		if st.Reason == "OOMKilled" && st.ExitCode == 137 {
			killed++
		}
		if err := remove(s, ctx, []string{name}, out); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%d of %d are OOMKilled, exit code 137\n", killed, n)
	return nil
}

// list [notes|images] prints pods and containers with their states, and with
// what a client noted on them or the images of containers.
func list(s *session, ctx context.Context, args []string, out io.Writer) error {
	pods, err := s.node.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		fmt.Fprintln(out, "pod", p.Metadata.Name, p.State, notes(args, p.Annotations, p.Labels))
	}
	containers, err := s.node.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, c := range containers.Containers {
		fmt.Fprintln(out, "container", c.Metadata.Name, c.State, notes(args, c.Annotations, c.Labels))
		if slices.Contains(args, "images") {
			fmt.Fprintln(out, "image of", c.Metadata.Name, c.ImageId, c.ImageRef)
		}
	}
	return nil
}

// notes gives annotations and labels if args ask for them.
func notes(args []string, annotations, labels map[string]string) string {
	if !slices.Contains(args, "notes") {
		return ""
	}
	return fmt.Sprintf("annotations=%q labels=%q", annotations, labels)
}
