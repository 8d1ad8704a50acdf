// Package netdev moves network devices of the host into a container's network
// namespace and back (runtime-spec 1.3, linux.netDevices).
//
// It owns nothing: a device belongs to the kernel, which gives a physical one
// back to the host when the container's namespace ends, and deletes a virtual
// one with it. What the spec wants kept on the way is kept: hardware address
// and MTU by the kernel, permanent addresses of global scope by this package.
package netdev

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/longshore/longshore/cni/dump"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/undo"
)

// maxName is the longest name of a device.
const maxName = unix.IFNAMSIZ - 1

// Check refuses names that no device can have, and two devices of one name.
func Check(devices map[string]specs.LinuxNetDevice) error {
	inside := map[string]string{}
	for _, host := range slices.Sorted(maps.Keys(devices)) {
		name := inContainer(host, devices[host])
		for _, n := range []string{host, name} {
			if !validName(n) {
				return fmt.Errorf("linux.netDevices: name %.32q: %w", n, unix.EINVAL)
			}
		}
		if other, ok := inside[name]; ok {
			return fmt.Errorf("linux.netDevices: %s and %s would both be %s: %w", other, host, name, unix.EEXIST)
		}
		inside[name] = host
	}
	return nil
}

// validName is the kernel's rule (dev_valid_name), and refuses patterns, which
// the kernel would fill in.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || r == '%' || unicode.IsSpace(r) })
}

func inContainer(host string, d specs.LinuxNetDevice) string {
	if d.Name != "" {
		return d.Name
	}
	return host
}

// end is a network namespace with a socket in it.
type end struct {
	ns      int
	handle  *netlink.Handle
	sockets map[int]*nl.SocketHandle // for what handle has no call for
}

func (e *end) close() {
	if e.handle != nil {
		e.handle.Close()
	}
	for _, s := range e.sockets {
		s.Close()
	}
}

// Move moves the devices from the namespace of the calling thread to that of
// the descriptor ns, under their new names, and sets them up. On an error all
// are back where they were. The function it returns takes them back, for a
// container that fails later, and is of use while ns is open.
func Move(devices map[string]specs.LinuxNetDevice, ns int) (back func() error, err error) {
	own, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("linux.netDevices: own network namespace: %w", err)
	}
	defer own.Close()
	host, err := newEnd(int(own))
	if err != nil {
		return nil, err
	}
	defer host.close()
	inside, err := newEnd(ns)
	if err != nil {
		return nil, err
	}
	defer inside.close()
	var taken undo.Stack
	defer taken.Run()
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		there := inContainer(name, devices[name])
		up, err := move(host, inside, name, there)
		if err != nil {
			return nil, fmt.Errorf("linux.netDevices: move %s into the container as %s: %w", name, there, err)
		}
		taken.Add(func() { _ = moveBack(host, inside, there, name, up) })
	}
	taken.Keep()
	return func() error { return moveAllBack(devices, ns) }, nil
}

func newEnd(ns int) (end, error) {
	fail := func(err error) (end, error) { return end{}, fmt.Errorf("linux.netDevices: open route socket: %w", err) }
	handle, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fail(err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.NsHandle(ns), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		handle.Close()
		return fail(err)
	}
	return end{ns, handle, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}}, nil
}

// move gives whether the device was up before. A step that fails behind the
// move itself takes it back.
func move(from, to end, name, there string) (up bool, err error) {
	link, err := from.handle.LinkByName(name)
	if err != nil {
		return false, err
	}
	up = link.Attrs().Flags&unix.IFF_UP != 0
	addresses, err := permanent(from.handle, link)
	if err != nil {
		return up, err
	}
	if _, err := to.handle.LinkByName(there); err == nil {
		return up, unix.EEXIST
	}
	if err := from.transfer(link.Attrs().Index, to.ns, there); err != nil {
		if _, gone := from.handle.LinkByName(name); gone != nil { // moved, but not renamed
			err = errors.Join(err, moveBack(from, to, name, name, up))
		}
		return up, err
	}
	if err := restore(to.handle, there, addresses, true); err != nil {
		return up, errors.Join(err, moveBack(from, to, there, name, up))
	}
	return up, nil
}

func moveBack(host, inside end, there, name string, up bool) error {
	link, err := inside.handle.LinkByName(there)
	if err != nil {
		return err
	}
	addresses, err := permanent(inside.handle, link)
	if err != nil {
		return err
	}
	if err := inside.transfer(link.Attrs().Index, host.ns, name); err != nil {
		return err
	}
	return restore(host.handle, name, addresses, up)
}

func moveAllBack(devices map[string]specs.LinuxNetDevice, ns int) error {
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	host, err := newEnd(int(own))
	if err != nil {
		return err
	}
	defer host.close()
	inside, err := newEnd(ns)
	if err != nil {
		return err
	}
	defer inside.close()
	var errs []error
	for name, d := range devices {
		if err := moveBack(host, inside, inContainer(name, d), name, true); err != nil {
			errs = append(errs, fmt.Errorf("linux.netDevices: take %s back: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// permanent lists the addresses that move with the device: those of global
// scope that somebody gave it for good. Link-local and autoconfigured ones come
// anew in the other namespace.
func permanent(h *netlink.Handle, link netlink.Link) ([]netlink.Addr, error) {
	all, err := dump.Addresses(h, link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return slices.DeleteFunc(all, func(a netlink.Addr) bool {
		return a.Scope != int(netlink.SCOPE_UNIVERSE) || a.Flags&unix.IFA_F_PERMANENT == 0
	}), nil
}

// transfer moves and renames in one request: the old name may be taken in the
// other namespace.
func (e *end) transfer(index, ns int, name string) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	// The kernel renames only a device that is down.
	message.Change = unix.IFF_UP
	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns))))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	down := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	down.AddData(message)
	for _, r := range []*nl.NetlinkRequest{down, request} {
		r.Sockets = e.sockets
		if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return err
		}
	}
	return nil
}

func restore(h *netlink.Handle, name string, addresses []netlink.Addr, up bool) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		a.Flags, a.Label, a.LinkIndex = 0, "", link.Attrs().Index
		if err := h.AddrReplace(link, &a); err != nil {
			return fmt.Errorf("restore address %s: %w", a.IPNet, err)
		}
	}
	if !up {
		return nil
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}
