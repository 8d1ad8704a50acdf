package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/longshore/longshore/cni"
	"github.com/longshore/longshore/internal/atomicfile"
)

// network finds the configured network.
func (e *Engine) network() (*cni.Network, error) {
	network, err := cni.Load(e.cniConfig())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	return network, nil
}

func (e *Engine) cniConfig() cni.Config {
	e.mu.Lock()
	defer e.mu.Unlock()
	return cni.Config{DefaultSubnets: e.podCIDRs, RequireConf: e.cfg.CNI.RequireConf,
		ConfDir: e.cfg.CNI.ConfDir, BinDirs: e.cfg.CNI.BinDirs, CacheDir: e.cfg.CNI.CacheDir, DataDir: e.cfg.CNI.DataDir}
}

// NetworkStatus says whether pods can be attached to a network: which one, or
// why not.
func (e *Engine) NetworkStatus() (name string, err error) {
	network, err := e.network()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (%s)", network.Name, network.Source), nil
}

// networkFile remembers what the cluster has said of the node's network. Kubelet
// says it once, and not again to a daemon that was started after it.
const networkFile = "network.json"

type networkRecord struct {
	PodCIDRs []string `json:"podCIDRs"`
}

// SetPodCIDR takes the addresses that the cluster gives this node's pods, one
// range or two with a comma; the built-in network uses them for pods to come,
// those of daemons to come too. "" changes nothing.
func (e *Engine) SetPodCIDR(cidr string) error {
	if cidr == "" {
		return nil
	}
	subnets := strings.Split(cidr, ",")
	if err := cni.CheckSubnets(subnets); err != nil {
		return fmt.Errorf("%w: pod_cidr: %w", ErrInvalid, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := atomicfile.WriteJSON(filepath.Join(e.cfg.RunDir, networkFile), networkRecord{subnets}, atomicfile.Volatile); err != nil {
		return err
	}
	e.podCIDRs = subnets
	return nil
}

// recallPodCIDR takes what an earlier daemon was told.
func (e *Engine) recallPodCIDR() {
	path := filepath.Join(e.cfg.RunDir, networkFile)
	var rec networkRecord
	err := atomicfile.ReadJSON(path, &rec)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = cni.CheckSubnets(rec.PodCIDRs)
	}
	if err != nil {
		e.quarantine(path, err)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.podCIDRs = rec.PodCIDRs
}
