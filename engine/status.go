package engine

import (
	"context"
	"fmt"
)

// NetworkStatus says whether pods can be attached to a network: which one, or
// why not.
func (e *Engine) NetworkStatus() (name string, err error) {
	network, err := e.network()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (%s)", network.Name, network.Source), nil
}

// SetPodCIDR takes the addresses that the cluster gives this node's pods; ""
// changes nothing.
func (e *Engine) SetPodCIDR(cidr string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cidr != "" {
		e.podCIDR = cidr
	}
}

// UsesCgroupV2 reports whether all controllers are on cgroup v2.
func (e *Engine) UsesCgroupV2() bool { return e.host.cgroupV2 }

// Handlers gives the runtime handlers beside the default one.
func (e *Engine) Handlers() []string { return e.cfg.Handlers }

// ImageUsers gives the containers that hold an image.
func (e *Engine) ImageUsers(ctx context.Context, imageID string) []string {
	var users []string
	for _, c := range e.Containers() {
		if c.ImageID == imageID {
			users = append(users, c.ID)
		}
	}
	return users
}
