package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/longshore/longshore/cni/dump"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/cni/nat"
)

// bridgeDel takes back what bridgeAdd did. The address is given back last, so
// that nobody gets one that is still in use. The interface goes after the
// translation: deleting it waits for the kernel, which meanwhile finishes the
// rest.
func (c *call) bridgeDel(ctx context.Context, b *bridgeConf) error {
	if b.IPMasq {
		if err := c.removeMasquerade(); err != nil {
			return err
		}
	}
	if c.netNS != "" {
		remove := deleteLink
		if c.exec.netNSGoes {
			remove = dropAddresses
		}
		err := inNamespace(c.netNS, func() error { return remove(c.ifName) })
		if err != nil && !errors.Is(err, errGone) {
			return err
		}
	}
	return c.eachIPAM(ctx)
}

// dropAddresses makes an interface answer for no address any more. It costs
// microseconds, where deleting the pair costs tens of milliseconds of the
// kernel's grace periods: see [DeleteInterface].
func dropAddresses(name string) error {
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	all, err := dump.Addresses(h, link, netlink.FAMILY_ALL)
	for _, addr := range all {
		if err == nil {
			err = h.AddrDel(link, &addr)
		}
	}
	if err != nil {
		return fmt.Errorf("drop addresses of %s: %w", name, err)
	}
	return nil
}

// DeleteInterface deletes an interface in the namespace that ns is open on,
// and with it the other end; one that is gone is no error. It is for after a
// Del with NetNSGoes: a socket that lingers in the namespace keeps it, and the
// pair in it, for as long as a peer does not answer.
func DeleteInterface(ns *os.File, name string) error {
	path := fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	err := inNamespace(path, func() error { return deleteLink(name) })
	runtime.KeepAlive(ns)
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// deleteLink deletes one end of a pair, and with it the other.
func deleteLink(name string) error {
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

func (c *call) removeMasquerade() error {
	return c.exec.withNAT(func(conn *nat.Conn) error { return conn.RemoveMasquerade(c.natOwner()) })
}

// podAddresses gives a result's addresses of the pod, each with its subnet.
func podAddresses(result *types100.Result) []netip.Prefix {
	var all []netip.Prefix
	for _, ip := range result.IPs {
		if p, ok := prefixOf(ip.Address); ok && inSandbox(result, ip) {
			all = append(all, p)
		}
	}
	return all
}

func (c *call) validOwners() []nat.Owner {
	var all []nat.Owner
	for _, a := range c.conf.ValidAttachments {
		all = append(all, nat.Owner{Network: c.conf.Name, ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return all
}

func (c *call) bridgeGC(ctx context.Context, b *bridgeConf) error {
	var err error
	if b.IPMasq {
		err = c.exec.withNAT(func(conn *nat.Conn) error { return conn.CollectMasquerade(c.conf.Name, c.validOwners()) })
	}
	return errors.Join(err, c.eachIPAM(ctx))
}

// bridgeCheck compares the kernel with the previous result.
func (c *call) bridgeCheck(ctx context.Context, b *bridgeConf) error {
	if err := c.eachIPAM(ctx); err != nil {
		return err
	}
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	br, err := h.LinkByName(b.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.Bridge, err)
	}
	for _, i := range c.prev.Interfaces {
		if i.Sandbox != "" || i.Name == b.Bridge {
			continue
		}
		link, err := h.LinkByName(i.Name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
		if link.Type() == "veth" && link.Attrs().MasterIndex != br.Attrs().Index {
			return fmt.Errorf("interface %s is not on bridge %s", i.Name, b.Bridge)
		}
	}
	if b.IPMasq {
		err := c.exec.withNAT(func(conn *nat.Conn) error {
			n, _, err := conn.Count(c.natOwner())
			if want := len(podAddresses(c.prev)); err == nil && n != want {
				err = fmt.Errorf("%d of %d addresses are masqueraded", n, want)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return inNamespace(c.netNS, func() error { return checkPod(c.ifName, c.prev) })
}

// checkPod looks for the addresses and routes in the pod.
func checkPod(name string, want *types100.Result) error {
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	for _, i := range want.Interfaces {
		if i.Sandbox != "" && i.Name == name && i.Mac != "" && i.Mac != link.Attrs().HardwareAddr.String() {
			return fmt.Errorf("interface %s has the hardware address %s, not %s", name, link.Attrs().HardwareAddr, i.Mac)
		}
	}
	addrs, err := dump.Addresses(h, link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, p := range podAddresses(want) {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { has, ok := prefixOf(*a.IPNet); return ok && has == p }) {
			return fmt.Errorf("interface %s lacks the address %s", name, p)
		}
	}
	for _, r := range want.Routes {
		dst, ok := prefixOf(r.Dst)
		if !ok || r.Table != nil {
			continue
		}
		routes, err := dump.Routes(h, link, familyNumber(dst))
		if err != nil {
			return fmt.Errorf("list routes of %s: %w", name, err)
		}
		has := func(k netlink.Route) bool {
			if k.Dst == nil {
				return dst.Bits() == 0
			}
			p, ok := prefixOf(*k.Dst)
			return ok && p == dst
		}
		if !slices.ContainsFunc(routes, has) {
			return fmt.Errorf("interface %s lacks the route to %s", name, dst)
		}
	}
	return nil
}
