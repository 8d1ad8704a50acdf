// Package compat is a client of an older Kubernetes: the runtime interface of
// 1.30, as kubelets that are not upgraded yet speak it. It is a module of its
// own, since that release registers the same protobuf messages in another way.
// It needs a daemon with the demonstration's image: the script compat of
// test/e2e starts one and names its socket in LONGSHORE_SOCKET.
package compat

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const image = "localhost/longshore/hello:latest"

// TestLifeOfAPod fails on any error that a kubelet of 1.30 would see.
func TestLifeOfAPod(t *testing.T) {
	socket := os.Getenv("LONGSHORE_SOCKET")
	if socket == "" {
		t.Skip("no daemon: LONGSHORE_SOCKET is not set")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &client{t: t, ctx: ctx, r: runtimeapi.NewRuntimeServiceClient(conn), i: runtimeapi.NewImageServiceClient(conn), logs: t.TempDir()}
	c.node()
	pod, config := c.pod()
	c.container(pod, config)
	c.usage(pod)
	must(c.r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}))(t)
	must(c.r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}))(t)
	if list := must(c.r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))(t); len(list.Items) != 0 {
		t.Errorf("pods are left: %v", list.Items)
	}
}

type client struct {
	t    *testing.T
	ctx  context.Context
	r    runtimeapi.RuntimeServiceClient
	i    runtimeapi.ImageServiceClient
	logs string
}

// must gives an answer, or ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// node asks what a kubelet asks before it makes pods.
func (c *client) node() {
	version := must(c.r.Version(c.ctx, &runtimeapi.VersionRequest{Version: "v1"}))(c.t)
	if version.RuntimeApiVersion != "v1" || version.RuntimeName != "longshore" {
		c.t.Errorf("version: %v", version)
	}
	status := must(c.r.Status(c.ctx, &runtimeapi.StatusRequest{Verbose: true}))(c.t)
	for _, condition := range status.Status.Conditions {
		if !condition.Status {
			c.t.Errorf("condition: %v", condition)
		}
	}
	must(c.r.RuntimeConfig(c.ctx, &runtimeapi.RuntimeConfigRequest{}))(c.t)
	must(c.r.UpdateRuntimeConfig(c.ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
		NetworkConfig: &runtimeapi.NetworkConfig{}}}))(c.t)
	if found := must(c.i.ImageStatus(c.ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}}))(c.t); found.Image == nil {
		c.t.Fatalf("no image %s", image)
	}
	must(c.i.ListImages(c.ctx, &runtimeapi.ListImagesRequest{}))(c.t)
	must(c.i.ImageFsInfo(c.ctx, &runtimeapi.ImageFsInfoRequest{}))(c.t)
}

func (c *client) pod() (id string, config *runtimeapi.PodSandboxConfig) {
	config = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "old", Namespace: "default", Uid: "old-1"}, Hostname: "old", LogDirectory: c.logs,
		Labels: map[string]string{"app": "old"}, Annotations: map[string]string{"note": "é"},
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}, Seccomp: &runtimeapi.SecurityProfile{}}},
	}
	id = must(c.r.RunPodSandbox(c.ctx, &runtimeapi.RunPodSandboxRequest{Config: config}))(c.t).PodSandboxId
	status := must(c.r.PodSandboxStatus(c.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true}))(c.t)
	if s := status.Status; s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Network.Ip == "" || s.Annotations["note"] != "é" {
		c.t.Errorf("pod: %v", s)
	}
	return id, config
}

func (c *client) container(pod string, config *runtimeapi.PodSandboxConfig) {
	id := must(c.r.CreateContainer(c.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: image}, Args: []string{"pause"}, LogPath: "c.log",
		// A string then, bytes now; the same on the wire.
		Envs:   []*runtimeapi.KeyValue{{Key: "GREETING", Value: "hällo"}},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/etc/motd", HostPath: "/etc/hostname", Readonly: true}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: 1000},
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}},
		}}}))(c.t).ContainerId
	events := must(c.r.GetContainerEvents(c.ctx, &runtimeapi.GetEventsRequest{}))(c.t)
	must(events.Header())(c.t)
	must(c.r.StartContainer(c.ctx, &runtimeapi.StartContainerRequest{ContainerId: id}))(c.t)
	if ev := must(events.Recv())(c.t); ev.ContainerId != id || ev.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT {
		c.t.Errorf("event: %v", ev)
	}
	out := must(c.r.ExecSync(c.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"guest", "env"}, Timeout: 10}))(c.t)
	if !strings.Contains(string(out.Stdout), "GREETING=hällo\n") {
		c.t.Errorf("environment: %s", out.Stdout)
	}
	for _, url := range []string{
		must(c.r.Exec(c.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"guest"}, Stdout: true}))(c.t).Url,
		must(c.r.Attach(c.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true}))(c.t).Url,
		must(c.r.PortForward(c.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}}))(c.t).Url,
	} {
		if !strings.HasPrefix(url, "http") {
			c.t.Errorf("URL %q", url)
		}
	}
	must(c.r.UpdateContainerResources(c.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}))(c.t)
	must(c.r.ReopenContainerLog(c.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}))(c.t)
	must(c.r.StopContainer(c.ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}))(c.t)
	s := must(c.r.ContainerStatus(c.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true}))(c.t).Status
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 || s.Reason != "Completed" || s.FinishedAt < s.StartedAt ||
		s.LogPath != filepath.Join(c.logs, "c.log") || s.Resources.GetLinux().GetMemoryLimitInBytes() != 128<<20 {
		c.t.Errorf("container: %v", s)
	}
	if _, err := os.Stat(s.LogPath); err != nil {
		c.t.Error(err)
	}
	must(c.r.RemoveContainer(c.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}))(c.t)
}

// usage asks what a kubelet asks all the time.
func (c *client) usage(pod string) {
	must(c.r.ListContainers(c.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}}))(c.t)
	must(c.r.ListContainerStats(c.ctx, &runtimeapi.ListContainerStatsRequest{}))(c.t)
	stats := must(c.r.ListPodSandboxStats(c.ctx, &runtimeapi.ListPodSandboxStatsRequest{}))(c.t)
	if len(stats.Stats) != 1 || stats.Stats[0].Attributes.Id != pod {
		c.t.Errorf("statistics: %v", stats.Stats)
	}
	must(c.r.ListMetricDescriptors(c.ctx, &runtimeapi.ListMetricDescriptorsRequest{}))(c.t)
	must(c.r.ListPodSandboxMetrics(c.ctx, &runtimeapi.ListPodSandboxMetricsRequest{}))(c.t)
}
