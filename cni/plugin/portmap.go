package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/cni/nat"
	"github.com/longshore/longshore/internal/undo"
)

// portmapConf is the configuration of the portmap plugin. Its options for
// iptables chains and marks have no meaning here; "snat": false keeps the
// client's address where the reply comes back here anyway, which is always so.
type portmapConf struct {
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
}

// maxForwards bounds the host ports of one pod.
const maxForwards = 10000

// portmap is the plugin of that name.
func (c *call) portmap() commands {
	return commands{
		add: c.portmapAdd,
		del: func(context.Context) error {
			return c.exec.withNAT(func(conn *nat.Conn) error { return conn.RemoveForwards(c.natOwner()) })
		},
		check: c.portmapCheck,
		gc: func(context.Context) error {
			return c.exec.withNAT(func(conn *nat.Conn) error { return conn.CollectForwards(c.conf.Name, c.validOwners()) })
		},
	}
}

// forwards reads the host ports and spreads each over the pod's addresses.
func (c *call) forwards() ([]nat.Forward, []netip.Prefix, error) {
	var conf portmapConf
	if err := c.parse(&conf); err != nil {
		return nil, nil, err
	}
	if len(conf.RuntimeConfig.PortMappings) > maxForwards {
		return nil, nil, fmt.Errorf("%d host ports, at most %d are possible: %w", len(conf.RuntimeConfig.PortMappings), maxForwards, unix.EINVAL)
	}
	if c.prev == nil {
		return nil, nil, errors.New("portmap must come after a plugin that gives an address")
	}
	// One address per family: a port leads to one place.
	var addresses []netip.Prefix
	families := map[bool]bool{}
	for _, p := range podAddresses(c.prev) {
		if !families[p.Addr().Is4()] {
			families[p.Addr().Is4()] = true
			addresses = append(addresses, p)
		}
	}
	var all []nat.Forward
	for _, m := range conf.RuntimeConfig.PortMappings {
		if m.HostPort == 0 {
			continue // kubelet lists container ports without a host port too
		}
		template, err := m.forward()
		if err != nil {
			return nil, nil, err
		}
		for _, p := range addresses {
			fw := template
			fw.To = netip.AddrPortFrom(p.Addr(), uint16(m.ContainerPort))
			if m.HostIP != "" {
				if fw.HostIP, err = netip.ParseAddr(m.HostIP); err != nil {
					return nil, nil, fmt.Errorf("host port %d: %w", m.HostPort, err)
				}
				fw.HostIP = fw.HostIP.Unmap().WithZone("")
				if fw.HostIP.Is4() != p.Addr().Is4() {
					continue
				}
				if fw.HostIP.IsUnspecified() {
					fw.HostIP = netip.Addr{}
				}
			}
			if !slices.Contains(all, fw) {
				all = append(all, fw)
			}
		}
	}
	return all, addresses, nil
}

func (m *PortMapping) forward() (nat.Forward, error) {
	if m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return nat.Forward{}, fmt.Errorf("host port %d to %d: %w", m.HostPort, m.ContainerPort, unix.EINVAL)
	}
	fw := nat.Forward{HostPort: uint16(m.HostPort)}
	switch m.Protocol {
	case "tcp", "TCP", "":
		fw.Protocol = unix.IPPROTO_TCP
	case "udp", "UDP":
		fw.Protocol = unix.IPPROTO_UDP
	case "sctp", "SCTP":
		fw.Protocol = unix.IPPROTO_SCTP
	default:
		return nat.Forward{}, fmt.Errorf("host port %d: protocol %.16q: %w", m.HostPort, m.Protocol, unix.EINVAL)
	}
	return fw, nil
}

func (c *call) portmapAdd(context.Context) (*types100.Result, error) {
	all, addresses, err := c.forwards()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return c.prev, nil
	}
	var taken undo.Stack
	defer taken.Run()
	err = c.exec.withNAT(func(conn *nat.Conn) error { return conn.Forward(c.natOwner(), all, addresses) })
	if err != nil {
		return nil, err
	}
	taken.Add(func() {
		_ = c.exec.withNAT(func(conn *nat.Conn) error { return conn.RemoveForwards(c.natOwner()) })
	})
	if err := prepareHost(all, addresses); err != nil {
		return nil, err
	}
	taken.Keep()
	return c.prev, nil
}

// prepareHost lets the host itself use the ports: by way of 127.0.0.1, and, for
// UDP, with clients that talked to the port before it was one.
func prepareHost(all []nat.Forward, addresses []netip.Prefix) error {
	for _, p := range addresses {
		if err := forward(p.Addr().Is4()); err != nil {
			return fmt.Errorf("let the host forward: %w", err)
		}
		if !p.Addr().Is4() {
			continue // the kernel has no route_localnet for ::1
		}
		h, err := openRoute()
		if err != nil {
			return err
		}
		err = routeLocalnet(h, p.Addr())
		h.Close()
		if err != nil {
			return err
		}
	}
	return forgetUDP(all)
}

// routeLocalnet allows packets from 127.0.0.1 on the interface towards the pod.
func routeLocalnet(h *netlink.Handle, to netip.Addr) error {
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("find the route to %s: %w", to, err)
	}
	link, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("find the interface towards %s: %w", to, err)
	}
	return setSysctlIfThere("ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1")
}

// forgetUDP drops tracked UDP flows to the new ports: translation is decided by
// a flow's first packet, and a client that keeps sending has an old flow.
func forgetUDP(all []nat.Forward) error {
	for _, fw := range all {
		if fw.Protocol != unix.IPPROTO_UDP {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if fw.To.Addr().Is6() {
			family = unix.AF_INET6
		}
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, fw.HostPort))
		if err == nil && fw.HostIP.IsValid() {
			err = filter.AddIP(netlink.ConntrackOrigDstIP, fw.HostIP.AsSlice())
		}
		if err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		}
		if err != nil {
			return fmt.Errorf("forget UDP flows to host port %s: %w", fw, err)
		}
	}
	return nil
}

func (c *call) portmapCheck(context.Context) error {
	all, _, err := c.forwards()
	if err != nil || len(all) == 0 {
		return err
	}
	return c.exec.withNAT(func(conn *nat.Conn) error {
		_, n, err := conn.Count(c.natOwner())
		if err == nil && n != len(all) {
			err = fmt.Errorf("%d of %d host ports are open", n, len(all))
		}
		return err
	})
}
