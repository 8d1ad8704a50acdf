package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() { commands["both"] = verb(both) }

// wanted is what a list is asked for.
type wanted struct {
	id, pod, image string // ids or their beginnings; a reference
	labels         map[string]string
	state          string // READY, NOTREADY, RUNNING, EXITED
}

// listed is an item of a list: what does not change between two calls.
type listed struct {
	id, name string
	message  proto.Message
}

// both KIND [-id NAME] [-pod NAME] [-image REF] [-label KEY=VALUE] [-state STATE]
// asks for a list and for its stream, and prints the names in it. A name's id is
// shortened; "none" is no id's beginning. It fails if one tells other than the
// other, or an item twice.
func both(s *session, ctx context.Context, args []string, out io.Writer) error {
	kind, w := args[0], wanted{}
	for args = args[1:]; len(args) > 1; args = args[2:] {
		switch value := args[1]; args[0] {
		case "-id":
			w.id = s.shortID(value)
		case "-pod":
			w.pod = s.shortID(value)
		case "-image":
			w.image = value
		case "-label":
			key, value, _ := strings.Cut(value, "=")
			w.labels = map[string]string{key: value}
		case "-state":
			w.state = value
		}
	}
	ask, known := lists[kind]
	if !known {
		return fmt.Errorf("list %s: no such kind", kind)
	}
	list, streamed, err := ask(s, ctx, &w)
	if err != nil {
		return err
	}
	byID := func(a, b listed) int { return strings.Compare(a.id, b.id) }
	slices.SortFunc(list, byID)
	slices.SortFunc(streamed, byID)
	same := func(a, b listed) bool { return a.id == b.id && proto.Equal(a.message, b.message) }
	if !slices.EqualFunc(list, streamed, same) {
		return fmt.Errorf("list of %s: %v\nstream: %v", kind, list, streamed)
	}
	var names []string
	for i, item := range list {
		if i > 0 && item.id == list[i-1].id {
			return fmt.Errorf("%s is there twice", item.id)
		}
		names = append(names, item.name)
	}
	slices.Sort(names)
	fmt.Fprintf(out, "%d: %s\n", len(names), strings.Join(names, " "))
	return nil
}

func (s *session) shortID(name string) string {
	if id := s.ids[name]; id != "" {
		return id[:12]
	}
	return name
}

// lists asks for a list and its stream.
var lists = map[string]func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error){
	"pods": func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error) {
		f := &runtimeapi.PodSandboxFilter{Id: w.id, LabelSelector: w.labels}
		if w.state != "" {
			f.State = &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState(runtimeapi.PodSandboxState_value["SANDBOX_"+w.state])}
		}
		item := func(p *runtimeapi.PodSandbox) listed { return listed{p.Id, p.Metadata.Name, p} }
		resp, err := s.node.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: f})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Runtime.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: f})
		return itemsOf(resp.Items, stream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, item)
	},
	"containers": func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error) {
		f := &runtimeapi.ContainerFilter{Id: w.id, PodSandboxId: w.pod, LabelSelector: w.labels}
		if w.state != "" {
			f.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(runtimeapi.ContainerState_value["CONTAINER_"+w.state])}
		}
		item := func(c *runtimeapi.Container) listed { return listed{c.Id, c.Metadata.Name, c} }
		resp, err := s.node.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: f})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: f})
		return itemsOf(resp.Containers, stream, err, (*runtimeapi.StreamContainersResponse).GetContainers, item)
	},
	"images": func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error) {
		f := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: w.image}}
		item := func(i *runtimeapi.Image) listed { return listed{i.Id, strings.Join(i.RepoTags, ","), i} }
		resp, err := s.node.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: f})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Images.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: f})
		return itemsOf(resp.Images, stream, err, (*runtimeapi.StreamImagesResponse).GetImages, item)
	},
	"stats": func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error) {
		f := &runtimeapi.ContainerStatsFilter{Id: w.id, PodSandboxId: w.pod, LabelSelector: w.labels}
		resp, err := s.node.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: f})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Runtime.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: f})
		return itemsOf(resp.Stats, stream, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats, containerOf)
	},
	"podstats": func(s *session, ctx context.Context, w *wanted) (list, streamed []listed, err error) {
		f := &runtimeapi.PodSandboxStatsFilter{Id: w.id, LabelSelector: w.labels}
		item := func(p *runtimeapi.PodSandboxStats) listed {
			name := p.Attributes.Metadata.Name
			for _, c := range p.Linux.Containers {
				name += "/" + containerOf(c).name
			}
			return listed{p.Attributes.Id, name, p.Attributes}
		}
		resp, err := s.node.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Runtime.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: f})
		return itemsOf(resp.Stats, stream, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats, item)
	},
	"metrics": func(s *session, ctx context.Context, _ *wanted) (list, streamed []listed, err error) {
		resp, err := s.node.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
		if err != nil {
			return nil, nil, err
		}
		stream, err := s.node.Runtime.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
		return itemsOf(resp.PodMetrics, stream, err, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, s.metricsItem)
	},
}

// itemsOf reads a stream to its end, and makes items of it and of the list.
func itemsOf[R, T any](list []T, stream interface{ Recv() (*R, error) }, err error, take func(*R) []T, item func(T) listed) (a, b []listed, _ error) {
	if err != nil {
		return nil, nil, err
	}
	for _, v := range list {
		a = append(a, item(v))
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return a, b, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if len(take(resp)) == 0 {
			return nil, nil, errors.New("a message without an item")
		}
		for _, v := range take(resp) {
			b = append(b, item(v))
		}
	}
}

func containerOf(c *runtimeapi.ContainerStats) listed {
	return listed{c.Attributes.Id, c.Attributes.Metadata.Name, c.Attributes}
}

// metricsItem leaves values out, and what a device or a file may add at any
// time.
func (s *session) metricsItem(p *runtimeapi.PodSandboxMetrics) listed {
	name := func(id string) string {
		for name, known := range s.ids {
			if known == id {
				return name
			}
		}
		return id
	}
	all := name(p.PodSandboxId)
	message := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.PodSandboxId}
	for _, c := range p.ContainerMetrics {
		all += "/" + name(c.ContainerId)
	}
	for _, m := range p.Metrics {
		message.Metrics = append(message.Metrics, &runtimeapi.Metric{Name: m.Name, LabelValues: m.LabelValues})
	}
	return listed{p.PodSandboxId, all, message}
}
