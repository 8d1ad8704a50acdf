// Package dump reads whole lists from the kernel's routing netlink.
//
// A list that changes while the kernel gives it is marked as interrupted
// (NLM_F_DUMP_INTR, netlink(7)): it may lack entries or have some twice. On a
// node where pods come and go that is no accident, and to ask again is the
// answer.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts bounds how often a list is asked for: under constant change none may
// ever be whole.
const attempts = 50

// Whole asks until a list is not interrupted. After the last attempt it gives
// that error.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range attempts {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

// Addresses gives the addresses of a link.
func Addresses(h *netlink.Handle, link netlink.Link, family int) ([]netlink.Addr, error) {
	return Whole(func() ([]netlink.Addr, error) { return h.AddrList(link, family) })
}

// Routes gives the routes over a link.
func Routes(h *netlink.Handle, link netlink.Link, family int) ([]netlink.Route, error) {
	return Whole(func() ([]netlink.Route, error) { return h.RouteList(link, family) })
}
