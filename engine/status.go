package engine

import (
	"fmt"
	"strings"
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

// SetPodCIDR takes the addresses that the cluster gives this node's pods, one
// range or two with a comma; the built-in network uses them for pods to come.
// "" changes nothing.
func (e *Engine) SetPodCIDR(cidr string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cidr != "" {
		e.podCIDRs = strings.Split(cidr, ",")
	}
}

// UsesCgroupV2 reports whether all controllers are on cgroup v2.
func (e *Engine) UsesCgroupV2() bool { return e.host.cgroupV2 }
