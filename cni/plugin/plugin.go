// Package plugin attaches a pod to its networks: it runs chains of CNI plugins,
// the common ones inside this process.
//
// It belongs to a short-lived process of one pod. The host's side is the
// network namespace of the calling thread, and everything there is done on that
// thread: a caller that entered a namespace first must be locked to its thread.
// The pod's side is entered on threads of its own, which end afterwards.
// Nothing is remembered here but the cache of results; state is in the
// kernel, in nftables and in the address files, each changed so that many such
// processes can work at once. Deleting what is not there is success.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/longshore/longshore/cni/chain"
	"github.com/longshore/longshore/internal/undo"
)

// cleanupTimeout bounds taking back a failed Add, which outlives the caller.
const cleanupTimeout = 30 * time.Second

// Attachment is an interface of a pod in a network.
type Attachment struct {
	// ContainerID is the sandbox's id.
	ContainerID string
	// NetNS is the path of its network namespace. Del takes an empty one, or one
	// that is gone.
	NetNS string
	// IfName is the interface's name in it: eth0.
	IfName string
	// Conflist is the network's configuration list.
	Conflist []byte
	// Args are CNI_ARGS: K8S_POD_NAMESPACE and the like.
	Args [][2]string

	// What follows reaches the plugins that declare the capability.
	PortMappings   []PortMapping
	Bandwidth      *Bandwidth
	DNS            *DNS
	Aliases        map[string][]string // names by network
	IPs            []string            // requested addresses, with or without mask
	MAC            string
	CgroupPath     string
	PodAnnotations map[string]string

	// NetNSGoes says to Del that the namespace is removed next, and that the
	// caller deletes the interface with [DeleteInterface] when nobody waits.
	NetNSGoes bool

	BinDirs  []string // of plugins that are not built in
	CacheDir string   // of results
	DataDir  string   // of addresses, where the configuration names none
}

// PortMapping is a host port; the JSON is that of the portMappings capability.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp; empty is tcp
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth limits traffic, in bits per second and bits; 0 is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// DNS is a resolver configuration.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Interface is one that a plugin made, in the pod (Sandbox is set) or outside.
type Interface struct{ Name, MAC, Sandbox string }

// Route is a route in the pod; the zero gateway is none of its own.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
}

// Result is what an attachment has.
type Result struct {
	// IPs are the pod's addresses with their subnets, the primary one first.
	IPs        []netip.Prefix
	Interfaces []Interface
	Routes     []Route
	DNS        DNS
	// Raw is the last plugin's result as JSON, version 1.1.
	Raw []byte
}

// runner is a network of one attachment, parsed.
type runner struct {
	list  *chain.List
	conf  *chain.Attachment
	chain *chain.Runner
	exec  *executor
}

func (r *runner) close() { r.exec.close() }

func newRunner(a Attachment) (*runner, error) {
	list, err := chain.ParseList(a.Conflist)
	if err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	exec := &executor{dataDir: a.DataDir, netNSGoes: a.NetNSGoes}
	return &runner{
		exec:  exec,
		list:  list,
		conf:  &chain.Attachment{ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.Args, Capabilities: a.capabilities()},
		chain: &chain.Runner{Exec: exec, BinDirs: a.BinDirs, CacheDir: a.CacheDir},
	}, nil
}

func (a *Attachment) capabilities() map[string]any {
	all := map[string]any{}
	add := func(name string, given bool, value any) {
		if given {
			all[name] = value
		}
	}
	add("portMappings", len(a.PortMappings) > 0, a.PortMappings)
	add("bandwidth", a.Bandwidth != nil, a.Bandwidth)
	add("dns", a.DNS != nil, a.DNS)
	add("aliases", len(a.Aliases) > 0, a.Aliases)
	add("ips", len(a.IPs) > 0, a.IPs)
	add("mac", a.MAC != "", a.MAC)
	add("cgroupPath", a.CgroupPath != "", a.CgroupPath)
	add("io.kubernetes.cri.pod-annotations", len(a.PodAnnotations) > 0, a.PodAnnotations)
	return all
}

// Add brings the pod's loopback interface up and attaches the pod. If a plugin
// fails, what the plugins before it did is deleted again.
func Add(ctx context.Context, a Attachment) (Result, error) {
	r, err := newRunner(a)
	if err != nil {
		return Result{}, err
	}
	defer r.close()
	if err := inNamespace(a.NetNS, loopbackUp); err != nil {
		return Result{}, fmt.Errorf("bring up loopback interface of container %s: %w", a.ContainerID, err)
	}
	var taken undo.Stack
	defer taken.Run()
	var undone error
	taken.Add(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		undone = r.del(ctx)
	})
	raw, err := r.chain.Add(ctx, r.list, r.conf)
	var result Result
	if err == nil {
		result, err = convert(raw)
	}
	if err != nil {
		taken.Run()
		err = fmt.Errorf("add container %s to network %s: %w", a.ContainerID, r.list.Name, err)
		if undone != nil {
			err = fmt.Errorf("%w (not all could be taken back: %v)", err, undone)
		}
		return Result{}, err
	}
	taken.Keep()
	return result, nil
}

// Del detaches the pod. It is idempotent, and works when the namespace is gone.
func Del(ctx context.Context, a Attachment) error {
	r, err := newRunner(a)
	if err != nil {
		return err
	}
	defer r.close()
	if a.NetNS != "" {
		if _, err := os.Stat(a.NetNS); errors.Is(err, fs.ErrNotExist) {
			r.conf.NetNS = "" // the specification's way to say that it is gone
		}
	}
	if err := r.del(ctx); err != nil {
		return fmt.Errorf("remove container %s from network %s: %w", a.ContainerID, r.list.Name, err)
	}
	return nil
}

func (r *runner) del(ctx context.Context) error { return r.chain.Del(ctx, r.list, r.conf) }

// Check asks every plugin whether the attachment is as Add left it.
func Check(ctx context.Context, a Attachment) error {
	r, err := newRunner(a)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.chain.Check(ctx, r.list, r.conf); err != nil {
		return fmt.Errorf("check container %s in network %s: %w", a.ContainerID, r.list.Name, err)
	}
	return nil
}

// Dirs are the directories that a call without an attachment needs.
type Dirs struct {
	BinDirs           []string
	CacheDir, DataDir string
}

// Valid names an attachment that GC keeps.
type Valid struct{ ContainerID, IfName string }

// GC removes what attachments other than the valid ones have left in a network.
func GC(ctx context.Context, conflist []byte, valid []Valid, d Dirs) error {
	r, err := newRunner(Attachment{Conflist: conflist, BinDirs: d.BinDirs, CacheDir: d.CacheDir, DataDir: d.DataDir})
	if err != nil {
		return err
	}
	defer r.close()
	keep := []types.GCAttachment{}
	for _, v := range valid {
		keep = append(keep, types.GCAttachment{ContainerID: v.ContainerID, IfName: v.IfName})
	}
	if err := r.chain.GC(ctx, r.list, keep); err != nil {
		return fmt.Errorf("collect garbage of network %s: %w", r.list.Name, err)
	}
	return nil
}

// Status asks every plugin of a network whether it can serve an Add.
func Status(ctx context.Context, conflist []byte, d Dirs) error {
	r, err := newRunner(Attachment{Conflist: conflist, BinDirs: d.BinDirs, CacheDir: d.CacheDir, DataDir: d.DataDir})
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.chain.Status(ctx, r.list); err != nil {
		return fmt.Errorf("status of network %s: %w", r.list.Name, err)
	}
	return nil
}

// convert reads a plugin's result, whichever plugin gave it.
func convert(in types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(in)
	if err != nil {
		return Result{}, fmt.Errorf("result: %w", err)
	}
	r.CNIVersion = version.Current()
	out := Result{DNS: DNS{Servers: r.DNS.Nameservers, Searches: r.DNS.Search, Options: r.DNS.Options}}
	if out.Raw, err = json.Marshal(r); err != nil {
		return Result{}, fmt.Errorf("result: %w", err)
	}
	for _, i := range r.Interfaces {
		if i != nil {
			out.Interfaces = append(out.Interfaces, Interface{i.Name, i.Mac, i.Sandbox})
		}
	}
	for _, ip := range r.IPs {
		if ip == nil || !inSandbox(r, ip) {
			continue
		}
		p, ok := prefixOf(ip.Address)
		if !ok {
			return Result{}, fmt.Errorf("result: address %s is not one", ip.Address.String())
		}
		out.IPs = append(out.IPs, p)
	}
	for _, route := range r.Routes {
		if route == nil {
			continue
		}
		if p, ok := prefixOf(route.Dst); ok {
			gateway, _ := netip.AddrFromSlice(route.GW)
			out.Routes = append(out.Routes, Route{p, gateway.Unmap()})
		}
	}
	return out, nil
}

// inSandbox says that an address is the pod's: plugins may list the bridge's too.
func inSandbox(r *types100.Result, ip *types100.IPConfig) bool {
	if ip.Interface == nil {
		return true
	}
	i := *ip.Interface
	return i >= 0 && i < len(r.Interfaces) && r.Interfaces[i] != nil && r.Interfaces[i].Sandbox != ""
}

// prefixOf keeps the host bits: an address with its subnet.
func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	a = a.Unmap()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if bits == 128 && a.Is4() {
		ones -= 96
	}
	p := netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}
