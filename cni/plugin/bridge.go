package plugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/longshore/longshore/cni/dump"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/cni/chain"
	"github.com/longshore/longshore/cni/nat"
	"github.com/longshore/longshore/internal/undo"
)

// maxName is the longest name of an interface.
const maxName = unix.IFNAMSIZ - 1

// bridgeConf is the configuration of the bridge plugin.
type bridgeConf struct {
	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	ForceAddress     bool   `json:"forceAddress"`
	IPMasq           bool   `json:"ipMasq"`
	MTU              int    `json:"mtu"`
	HairpinMode      bool   `json:"hairpinMode"`
	PromiscMode      bool   `json:"promiscMode"`
	EnableDAD        bool   `json:"enabledad"`
	PortIsolation    bool   `json:"portIsolation"`
	RuntimeConfig    struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	// Functions that are not built in: with one of them the plugin's binary runs.
	VLAN             int  `json:"vlan"`
	VLANTrunk        any  `json:"vlanTrunk"`
	MACSpoofCheck    bool `json:"macspoofchk"`
	DisableInterface bool `json:"disableContainerInterface"`
}

func (b *bridgeConf) foreign() bool {
	return b.VLAN != 0 || b.VLANTrunk != nil || b.MACSpoofCheck || b.DisableInterface
}

// bridge is the plugin of that name.
func (c *call) bridge() commands {
	with := func(do func(context.Context, *bridgeConf) error) func(context.Context) error {
		return func(ctx context.Context) error {
			b, err := c.parseBridge()
			if err != nil {
				return err
			}
			if b.foreign() {
				_, err = c.foreignBridge(ctx)
				return err
			}
			return do(ctx, b)
		}
	}
	return commands{
		add: func(ctx context.Context) (*types100.Result, error) {
			b, err := c.parseBridge()
			if err != nil {
				return nil, err
			}
			if b.foreign() {
				return c.foreignBridge(ctx)
			}
			return c.bridgeAdd(ctx, b)
		},
		del:   with(c.bridgeDel),
		check: with(c.bridgeCheck),
		gc:    with(c.bridgeGC),
		statusFunc: with(func(ctx context.Context, _ *bridgeConf) error {
			return c.eachIPAM(ctx)
		}),
	}
}

func (c *call) parseBridge() (*bridgeConf, error) {
	b := &bridgeConf{}
	if err := c.parse(b); err != nil {
		return nil, err
	}
	if b.Bridge == "" {
		b.Bridge = "cni0"
	}
	if len(b.Bridge) > maxName || strings.ContainsAny(b.Bridge, "/ :\x00") || b.Bridge == "." || b.Bridge == ".." {
		return nil, fmt.Errorf("bridge name %.32q: %w", b.Bridge, unix.EINVAL)
	}
	if b.HairpinMode && b.PromiscMode {
		return nil, errors.New("hairpinMode and promiscMode exclude each other")
	}
	b.IsGateway = b.IsGateway || b.IsDefaultGateway
	return b, nil
}

// foreignBridge runs the plugin's binary.
func (c *call) foreignBridge(ctx context.Context) (*types100.Result, error) {
	path, err := chain.FindInPath("bridge", c.path)
	if err != nil {
		return nil, fmt.Errorf("vlan, vlanTrunk, macspoofchk and disableContainerInterface are not built in: %w", err)
	}
	if c.command != "ADD" {
		_, err := c.exec.ExecPlugin(ctx, path, c.stdin, c.environ)
		return nil, err
	}
	result, err := c.delegate(ctx, path)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(result)
}

func (c *call) eachIPAM(ctx context.Context) error {
	if c.conf.IPAM.Type == "" {
		return nil
	}
	_, err := c.ipam(ctx)
	return err
}

func (c *call) natOwner() nat.Owner {
	return nat.Owner{Network: c.conf.Name, ContainerID: c.containerID, IfName: c.ifName}
}

// bridgeAdd connects the pod by a pair of interfaces to the bridge, which it
// makes if it is not there.
func (c *call) bridgeAdd(ctx context.Context, b *bridgeConf) (*types100.Result, error) {
	var taken undo.Stack
	defer taken.Run()
	result := &types100.Result{}
	if c.conf.IPAM.Type != "" {
		var err error
		if result, err = c.ipam(ctx); err != nil {
			return nil, err
		}
		taken.Add(func() {
			// The runtime deletes after a failed ADD and reports what then fails.
			_ = c.ipamDel(context.WithoutCancel(ctx))
		})
	}
	gateways, err := c.fillGateways(b, result)
	if err != nil {
		return nil, err
	}
	h, err := openRoute()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	br, err := ensureBridge(h, b)
	if err != nil {
		return nil, err
	}
	for _, gateway := range gateways {
		if err := ensureAddress(h, br, gateway, b.ForceAddress); err != nil {
			return nil, err
		}
	}
	host, pod, err := c.addPair(h, b, br, result)
	if err != nil {
		return nil, err
	}
	taken.Add(func() { _ = h.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host.Name}}) })
	result.Interfaces = []*types100.Interface{{Name: b.Bridge, Mac: br.Attrs().HardwareAddr.String()}, host, pod}
	if b.IPMasq && len(result.IPs) > 0 {
		err := c.exec.withNAT(func(conn *nat.Conn) error { return conn.Masquerade(c.natOwner(), podAddresses(result)) })
		if err != nil {
			return nil, err
		}
		taken.Add(func() { _ = c.removeMasquerade() })
	}
	if c.conf.DNS.Nameservers != nil || c.conf.DNS.Search != nil || c.conf.DNS.Options != nil || c.conf.DNS.Domain != "" {
		result.DNS = c.conf.DNS
	}
	taken.Keep()
	return result, nil
}

// fillGateways completes the addresses and routes and, where the bridge is the
// gateway, gives its addresses and lets the host forward.
func (c *call) fillGateways(b *bridgeConf, result *types100.Result) ([]netip.Prefix, error) {
	var gateways []netip.Prefix
	families := map[bool]bool{}
	for _, ip := range result.IPs {
		ip.Interface = types100.Int(2)
		if !b.IsGateway {
			continue
		}
		address, ok := prefixOf(ip.Address)
		if !ok {
			return nil, fmt.Errorf("address %s: %w", ip.Address.String(), unix.EINVAL)
		}
		if ip.Gateway == nil {
			ip.Gateway = address.Masked().Addr().Next().AsSlice()
		}
		gateway, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			return nil, fmt.Errorf("gateway %s: %w", ip.Gateway, unix.EINVAL)
		}
		gateway = gateway.Unmap()
		gateways = append(gateways, netip.PrefixFrom(gateway, address.Bits()))
		four := gateway.Is4()
		if families[four] {
			continue
		}
		families[four] = true
		if err := forward(four); err != nil {
			return nil, fmt.Errorf("let the host forward: %w", err)
		}
		if b.IsDefaultGateway && !hasDefault(result.Routes, four) {
			result.Routes = append(result.Routes, &types.Route{Dst: everywhere(four), GW: ip.Gateway})
		}
	}
	return gateways, nil
}

func everywhere(four bool) net.IPNet {
	if four {
		return net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func hasDefault(routes []*types.Route, four bool) bool {
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() == 0 && p.Addr().Is4() == four {
			return true
		}
	}
	return false
}

// forward lets the host route packets of one family.
func forward(four bool) error {
	if four {
		return setSysctl("ipv4/ip_forward", "1")
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

// ensureBridge finds the bridge or makes it.
func ensureBridge(h *netlink.Handle, b *bridgeConf) (netlink.Link, error) {
	link, err := h.LinkByName(b.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = makeBridge(h, b)
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", b.Bridge, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("interface %s is a %s, not a bridge", b.Bridge, link.Type())
	}
	if b.PromiscMode && link.Attrs().Promisc == 0 {
		if err := h.SetPromiscOn(link); err != nil {
			return nil, fmt.Errorf("set bridge %s promiscuous: %w", b.Bridge, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("bring up bridge %s: %w", b.Bridge, err)
		}
	}
	return link, nil
}

// makeBridge makes the bridge, still down. Its hardware address is given at
// once: one that the kernel took from its ports would change with them, and
// every pod's neighbour table be wrong.
func makeBridge(h *netlink.Handle, b *bridgeConf) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Bridge, b.MTU, randomMAC()
	err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) { // another process was first
		return nil, fmt.Errorf("create: %w", err)
	}
	// While the link-local address is being checked, one to two seconds, the host
	// looks for no neighbour of a packet it forwards.
	if err := setSysctlIfThere("ipv6/conf/"+b.Bridge+"/accept_dad", "0"); err != nil {
		return nil, err
	}
	return h.LinkByName(b.Bridge)
}

// ensureAddress gives the bridge an address, which it mostly has: that is one
// question to the kernel. IPv6 needs no duplicate detection here, the address
// being ours by configuration.
func ensureAddress(h *netlink.Handle, br netlink.Link, address netip.Prefix, force bool) error {
	addr := kernelAddress(address, true)
	err := h.AddrAdd(br, addr)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give bridge %s the address %s: %w", br.Attrs().Name, address, err)
	}
	others, err := dump.Addresses(h, br, familyNumber(address))
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", br.Attrs().Name, err)
	}
	for _, other := range others {
		p, ok := prefixOf(*other.IPNet)
		if !ok || p == address || p.Addr().IsLinkLocalUnicast() || address.Addr().Is6() && !p.Overlaps(address) {
			continue
		}
		if !force {
			return errors.Join(
				fmt.Errorf("bridge %s has the address %s, not %s (see forceAddress)", br.Attrs().Name, p, address),
				h.AddrDel(br, addr))
		}
		if err := h.AddrDel(br, &other); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take the address %s from bridge %s: %w", p, br.Attrs().Name, err)
		}
	}
	return nil
}

func familyNumber(p netip.Prefix) int {
	if p.Addr().Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func kernelAddress(p netip.Prefix, noDAD bool) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if noDAD && p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// randomMAC gives a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

func randomName() string {
	b := make([]byte, 4)
	rand.Read(b)
	return "veth" + hex.EncodeToString(b)
}

// addPair makes the pair of interfaces, one end on the bridge and up, the other
// in the pod with its addresses and routes.
func (c *call) addPair(h *netlink.Handle, b *bridgeConf, br netlink.Link, result *types100.Result) (host, pod *types100.Interface, err error) {
	ns, err := os.Open(c.netNS)
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	podMAC := randomMAC()
	if b.RuntimeConfig.MAC != "" {
		if podMAC, err = net.ParseMAC(b.RuntimeConfig.MAC); err != nil {
			return nil, nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.MasterIndex, attrs.Flags = randomName(), b.MTU, randomMAC(), br.Attrs().Index, net.FlagUp
	if b.MTU == 0 {
		attrs.MTU = br.Attrs().MTU
	}
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = c.ifName, podMAC, netlink.NsFd(ns.Fd())
	if err := h.LinkAdd(pair); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, nil, fmt.Errorf("interface %s is in the namespace already: %w", c.ifName, err)
		}
		return nil, nil, fmt.Errorf("create interfaces %s and %s: %w", attrs.Name, c.ifName, err)
	}
	fail := func(err error) (*types100.Interface, *types100.Interface, error) {
		return nil, nil, errors.Join(err, h.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: attrs.Name}}))
	}
	if b.HairpinMode {
		if err := h.LinkSetHairpin(pair, true); err != nil {
			return fail(fmt.Errorf("set bridge port %s to hairpin: %w", attrs.Name, err))
		}
	}
	if b.PortIsolation {
		if err := h.LinkSetIsolated(pair, true); err != nil {
			return fail(fmt.Errorf("isolate bridge port %s: %w", attrs.Name, err))
		}
	}
	if err := inNamespace(c.netNS, func() error { return configure(c.ifName, b.EnableDAD, result) }); err != nil {
		return fail(fmt.Errorf("set up %s in the pod: %w", c.ifName, err))
	}
	return &types100.Interface{Name: attrs.Name, Mac: attrs.HardwareAddr.String()},
		&types100.Interface{Name: c.ifName, Mac: podMAC.String(), Sandbox: c.netNS}, nil
}

// configure gives the pod's interface its addresses and routes. When it comes up
// it announces the addresses: the neighbours may know them by another's
// hardware address.
func configure(name string, dad bool, result *types100.Result) error {
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := announce(name, dad, result); err != nil {
		return err
	}
	for _, ip := range result.IPs {
		p, ok := prefixOf(ip.Address)
		if !ok {
			return fmt.Errorf("address %s: %w", ip.Address.String(), unix.EINVAL)
		}
		if err := h.AddrAdd(link, kernelAddress(p, !dad)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, r := range result.Routes {
		if err := addRoute(h, link, r, result.IPs); err != nil {
			return err
		}
	}
	return nil
}

func announce(name string, dad bool, result *types100.Result) error {
	families := map[bool]bool{}
	for _, ip := range result.IPs {
		p, ok := prefixOf(ip.Address)
		if !ok || families[p.Addr().Is4()] {
			continue
		}
		families[p.Addr().Is4()] = true
		if p.Addr().Is4() {
			if err := setSysctlIfThere("ipv4/conf/"+name+"/arp_notify", "1"); err != nil {
				return err
			}
			continue
		}
		// Some hosts switch IPv6 off for new interfaces.
		if err := setSysctlIfThere("ipv6/conf/"+name+"/disable_ipv6", "0"); err != nil {
			return err
		}
		if err := setSysctlIfThere("ipv6/conf/"+name+"/ndisc_notify", "1"); err != nil {
			return err
		}
		if !dad {
			if err := setSysctlIfThere("ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRoute adds a route; without a gateway of its own it goes by that of the
// first address of its family.
func addRoute(h *netlink.Handle, link netlink.Link, r *types.Route, ips []*types100.IPConfig) error {
	dst, ok := prefixOf(r.Dst)
	if !ok {
		return fmt.Errorf("route to %s: %w", r.Dst.String(), unix.EINVAL)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority,
	}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = netlink.Scope(*r.Scope)
	}
	for _, ip := range ips {
		if p, ok := prefixOf(ip.Address); ok && route.Gw == nil && p.Addr().Is4() == dst.Addr().Is4() {
			route.Gw = ip.Gateway
		}
	}
	if err := h.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route to %s: %w", dst, err)
	}
	return nil
}
