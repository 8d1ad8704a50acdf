package cri

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names and versions that clients see.
const (
	kubeAPIVersion    = "0.1.0" // of kubelet's runtime API; kubelet compares it
	runtimeName       = "longshore"
	runtimeAPIVersion = "v1"
)

// Version names the runtime.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: kubeAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.version, RuntimeApiVersion: runtimeAPIVersion}, nil
}

// Status says whether pods can run, and what the runtime can do.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if name, err := s.engine.NetworkStatus(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	} else {
		network.Message = "network " + name
	}
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if err := s.engine.Ready(); err != nil {
		ready.Status, ready.Reason, ready.Message = false, "ShimCannotStart", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{ready, network}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	handlers := s.engine.Handlers()
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: handlers[name].RecursiveReadOnly, UserNamespaces: handlers[name].UserNamespaces}})
	}
	if req.Verbose {
		config, err := json.Marshal(s.config())
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"config": string(config), "checkpoint": s.checkpointStatus(ctx)}
	}
	return resp, nil
}

// RuntimeConfig tells kubelet the cgroup driver.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.engine.CgroupDriver() == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the addresses of the node's pods.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if err := s.engine.SetPodCIDR(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
