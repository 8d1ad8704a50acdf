package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callOrder is how a table lists what was measured.
var callOrder = []string{"RunPodSandbox", "CreateContainer", "StartContainer", "pod ready", "ExecSync", "ListPodSandbox", "ListPodSandboxStats",
	"PodSandboxStatus", "StopPodSandbox", "RemovePodSandbox", "pod gone"}

// session is a connection and what was measured over it.
type session struct {
	o       *options
	runtime runtimeapi.RuntimeServiceClient

	mu    sync.Mutex // guards calls
	calls map[string][]time.Duration
}

func connect(o *options) (*session, error) {
	conn, err := grpc.NewClient("unix://"+o.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	return &session{o: o, runtime: runtimeapi.NewRuntimeServiceClient(conn), calls: map[string][]time.Duration{}}, nil
}

// timed measures one call.
func (s *session) timed(name string, call func() error) error {
	began := time.Now()
	err := call()
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[name] = append(s.calls[name], took)
	return nil
}

// pod is what one start makes.
type pod struct{ id, container string }

func (s *session) series(ctx context.Context) (*Result, error) {
	if err := s.warmUp(ctx); err != nil {
		return nil, err
	}
	r := &Result{options: *s.o}
	pods := make([]pod, s.o.Pods)
	began, cpu := time.Now(), s.cpu()
	err := s.parallel(len(pods), func(i int) (err error) {
		pods[i], err = s.startPod(ctx, i)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.clear(ctx, pods))
	}
	r.PerSecond = float64(len(pods)) / time.Since(began).Seconds()
	r.CPUStart = s.cpuPer(cpu, len(pods))
	if err := s.live(ctx, pods, r); err != nil {
		return nil, errors.Join(err, s.clear(ctx, pods))
	}
	cpu = s.cpu()
	if err := s.parallel(len(pods), func(i int) error { return s.endPod(ctx, pods[i]) }); err != nil {
		return nil, err
	}
	r.CPUGone = s.cpuPer(cpu, len(pods))
	r.Calls = map[string]Times{}
	for name, all := range s.calls {
		r.Calls[name] = timesOf(all)
	}
	return r, nil
}

// warmUp runs one pod that does not count.
func (s *session) warmUp(ctx context.Context) error {
	p, err := s.startPod(ctx, -1)
	if err == nil {
		err = s.endPod(ctx, p)
	}
	s.calls = map[string][]time.Duration{}
	return err
}

// parallel runs n tasks, as many at a time as the series says.
func (s *session) parallel(n int, task func(i int) error) error {
	next := make(chan int)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for range s.o.Parallel {
		wg.Go(func() {
			for i := range next {
				errs[i] = task(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

func (s *session) startPod(ctx context.Context, i int) (pod, error) {
	var p pod
	mode := runtimeapi.NamespaceMode_POD
	if s.o.Network == "host" {
		mode = runtimeapi.NamespaceMode_NODE
	}
	namespaces := &runtimeapi.NamespaceOption{Network: mode, Pid: runtimeapi.NamespaceMode_CONTAINER}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprintf("bench-%d", i), Namespace: "bench", Uid: fmt.Sprintf("bench-%d-%d", i, time.Now().UnixNano())},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
	if mode == runtimeapi.NamespaceMode_POD {
		config.Hostname = "bench"
	}
	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: s.o.Image}, Command: strings.Fields(s.o.Command),
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces, NoNewPrivs: true,
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}},
	}
	err := s.timed("pod ready", func() error {
		if err := s.timed("RunPodSandbox", func() error {
			resp, err := s.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			p.id = resp.GetPodSandboxId()
			return err
		}); err != nil {
			return err
		}
		if err := s.timed("CreateContainer", func() error {
			resp, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: config})
			p.container = resp.GetContainerId()
			return err
		}); err != nil {
			return err
		}
		return s.timed("StartContainer", func() error {
			_, err := s.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
			return err
		})
	})
	return p, err
}

func (s *session) endPod(ctx context.Context, p pod) error {
	if p.id == "" {
		return nil
	}
	return s.timed("pod gone", func() error {
		if err := s.timed("StopPodSandbox", func() error {
			_, err := s.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}); err != nil {
			return err
		}
		return s.timed("RemovePodSandbox", func() error {
			_, err := s.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		})
	})
}

// clear removes pods after a failure.
func (s *session) clear(ctx context.Context, pods []pod) error {
	var errs []error
	for _, p := range pods {
		errs = append(errs, s.endPod(context.WithoutCancel(ctx), p))
	}
	return errors.Join(errs...)
}

// live measures what can be measured while all pods run.
func (s *session) live(ctx context.Context, pods []pod, r *Result) error {
	cpu := s.cpu()
	for i := range s.o.Execs {
		err := s.timed("ExecSync", func() error {
			_, err := s.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: pods[i%len(pods)].container, Cmd: []string{"/bin/guest", "true"}})
			return err
		})
		if err != nil {
			return err
		}
	}
	if s.o.Execs > 0 {
		r.CPUExec = s.cpuPer(cpu, s.o.Execs)
	}
	for range 20 {
		calls := map[string]func() error{
			"ListPodSandbox": func() error {
				_, err := s.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				return err
			},
			"ListPodSandboxStats": func() error {
				_, err := s.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
				return err
			},
			"PodSandboxStatus": func() error {
				_, err := s.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pods[0].id})
				return err
			},
		}
		for name, call := range calls {
			if err := s.timed(name, call); err != nil {
				return err
			}
		}
	}
	return s.idle(ctx, len(pods), r)
}
