package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *session) containerStatus(ctx context.Context, name string) (*runtimeapi.ContainerStatus, error) {
	resp, err := s.node.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.ids[name]})
	return resp.GetStatus(), err
}

// inspect prints a container's status, a field a line.
func inspect(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.ids[args[0]], Verbose: len(args) > 1})
	if err != nil {
		return err
	}
	return printJSON(out, resp)
}

func inspectPod(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.ids[args[0]], Verbose: len(args) > 1})
	if err != nil {
		return err
	}
	return printJSON(out, resp)
}

// printJSON prints a message so that a script can match it: one space after a
// colon, always.
func printJSON(out io.Writer, m proto.Message) error {
	data, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(strings.ReplaceAll(string(data), `": `, `":`), `, "`, `,"`)
	fmt.Fprintln(out, strings.ReplaceAll(text, `,"`, "\n\""))
	return nil
}

func showLogs(s *session, _ context.Context, args []string, out io.Writer) error {
	data, err := os.ReadFile(s.logs[args[0]])
	out.Write(data)
	return err
}

// status [config] tells the runtime's state, or what kubelet takes from it.
func statusOf(s *session, ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "config" {
		resp, err := s.node.Runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
		if err != nil {
			return err
		}
		return printJSON(out, resp)
	}
	resp, err := s.node.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: len(args) > 0})
	if err != nil {
		return err
	}
	return printJSON(out, resp)
}

// stats NAME prints what a container or pod uses.
func stats(s *session, ctx context.Context, args []string, out io.Writer) error {
	if _, isPod := s.pods[args[0]]; isPod {
		resp, err := s.node.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.ids[args[0]]})
		if err != nil {
			return err
		}
		return printJSON(out, resp)
	}
	resp, err := s.node.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: s.ids[args[0]]})
	if err != nil {
		return err
	}
	return printJSON(out, resp)
}

// metrics prints the metrics of all pods, as Prometheus would show them.
func metrics(s *session, ctx context.Context, _ []string, out io.Writer) error {
	descriptors, err := s.node.Runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		return err
	}
	keys := map[string][]string{}
	for _, d := range descriptors.Descriptors {
		keys[d.Name] = d.LabelKeys
	}
	resp, err := s.node.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	for _, pod := range resp.PodMetrics {
		all := slices.Clone(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			all = append(all, c.Metrics...)
		}
		for _, m := range all {
			if len(keys[m.Name]) != len(m.LabelValues) {
				return fmt.Errorf("%s has labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
			}
			var labels []string
			for i, key := range keys[m.Name] {
				labels = append(labels, fmt.Sprintf("%s=%q", key, m.LabelValues[i]))
			}
			fmt.Fprintf(out, "%s{%s} %d\n", m.Name, strings.Join(labels, ","), m.Value.GetValue())
		}
	}
	return nil
}

// get POD PORT [PATH] asks a pod by HTTP, from the node; get URL does so by
// address.
func get(s *session, ctx context.Context, args []string, out io.Writer) error {
	url := args[0]
	if id, ok := s.ids[args[0]]; ok {
		resp, err := s.node.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil {
			return err
		}
		url = "http://" + net.JoinHostPort(resp.Status.Network.Ip, args[1]) + "/"
	}
	return poll(ctx, func() (bool, error) {
		body, err := s.fetch(url)
		out.Write(body)
		return err == nil, nil
	})
}

// fetch asks from inside the room.
func (s *session) fetch(url string) ([]byte, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.dialInRoom}}
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
