package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const loopbackName = "lo"

// loopbackIndex is the interface's number in every namespace: it is the first.
const loopbackIndex = 1

// loopbackUp brings the calling thread's loopback interface up.
func loopbackUp() error {
	h, err := openRoute()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: loopbackName, Index: loopbackIndex}})
}

// openRoute opens one socket to the calling thread's namespace.
func openRoute() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// loopback is the plugin of that name.
func (c *call) loopback() commands {
	return commands{
		add: func(context.Context) (*types100.Result, error) {
			if err := inNamespace(c.netNS, loopbackUp); err != nil {
				return nil, err
			}
			if c.prev != nil {
				return c.prev, nil
			}
			return &types100.Result{
				Interfaces: []*types100.Interface{{Name: loopbackName, Mac: "00:00:00:00:00:00", Sandbox: c.netNS}},
				IPs: []*types100.IPConfig{
					{Interface: types100.Int(0), Address: net.IPNet{IP: net.IPv4(127, 0, 0, 1).To4(), Mask: net.CIDRMask(8, 32)}},
					{Interface: types100.Int(0), Address: net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
				},
			}, nil
		},
		del: func(context.Context) error { return nil }, // it goes with the namespace
		check: func(context.Context) error {
			return inNamespace(c.netNS, func() error {
				link, err := net.InterfaceByName(loopbackName)
				if err != nil {
					return err
				}
				if link.Flags&net.FlagUp == 0 {
					return errors.New("loopback interface is down")
				}
				return nil
			})
		},
	}
}
