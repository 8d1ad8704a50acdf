package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/longshore/longshore/internal/undo"
)

// ErrExhausted says that every address of a range set is taken.
var ErrExhausted = errors.New("no free address")

// ErrTaken says that a requested address belongs to another attachment.
var ErrTaken = errors.New("address is taken")

// Owner is one attachment: an interface of a container.
type Owner struct{ ContainerID, IfName string }

// Add reserves one address per range set. On an error none stays reserved.
func (c *Config) Add(o Owner) (*types100.Result, error) {
	s, err := openStore(c.dir, true)
	if err != nil {
		return nil, err
	}
	defer s.close()
	result := &types100.Result{Routes: c.routes, DNS: c.dns}
	requested := slices.Clone(c.requested)
	var taken undo.Stack
	defer taken.Run()
	for i, set := range c.sets {
		var a netip.Addr
		at := slices.IndexFunc(requested, func(a netip.Addr) bool { return set.find(a) != nil })
		if at >= 0 {
			a = requested[at]
			requested = slices.Delete(requested, at, at+1)
			err = s.reserveExact(a, set.find(a), o)
		} else {
			a, err = s.reserveNext(set, i, o)
		}
		if err != nil {
			return nil, fmt.Errorf("reserve an address for container %s: %w", o.ContainerID, err)
		}
		taken.Add(func() { s.remove(a) })
		r := set.find(a)
		result.IPs = append(result.IPs, &types100.IPConfig{Address: ipNet(a, r.subnet), Gateway: r.gateway.AsSlice()})
	}
	if len(requested) > 0 {
		return nil, fmt.Errorf("requested addresses %v: more than one of a range set", requested)
	}
	taken.Keep()
	return result, nil
}

// reserveExact reserves a requested address, which is also a success if the
// owner has it already.
func (s *store) reserveExact(a netip.Addr, r *addressRange, o Owner) error {
	if a == r.gateway {
		return fmt.Errorf("requested address %s is the gateway", a)
	}
	ok, err := s.reserve(a, o)
	if err != nil || ok {
		return err
	}
	if has, err := s.owner(a); err == nil && has == o {
		return nil
	}
	return fmt.Errorf("%s: %w", a, ErrTaken)
}

// reserveNext goes on after the address given out last, so that one just freed
// is not used again at once: caches of neighbours and connections still know it.
func (s *store) reserveNext(set rangeSet, index int, o Owner) (netip.Addr, error) {
	at, cursor := 0, set[0].start
	if lastOne, ok := s.lastReserved(index); ok {
		for i := range set {
			if set[i].contains(lastOne) {
				at, cursor = set.after(i, lastOne)
			}
		}
	}
	first := cursor
	for {
		if cursor != set[at].gateway {
			ok, err := s.reserve(cursor, o)
			if err != nil {
				return netip.Addr{}, err
			}
			if ok {
				return cursor, s.setLastReserved(index, cursor)
			}
		}
		if at, cursor = set.after(at, cursor); cursor == first {
			return netip.Addr{}, fmt.Errorf("range %s-%s: %w", set[0].start, set[len(set)-1].end, ErrExhausted)
		}
	}
}

// after steps through all ranges of a set, in a circle.
func (s rangeSet) after(at int, a netip.Addr) (int, netip.Addr) {
	if a != s[at].end {
		return at, a.Next()
	}
	at = (at + 1) % len(s)
	return at, s[at].start
}

// Del frees every address the owner has. None is success.
func (c *Config) Del(o Owner) error {
	return c.release(func(has Owner) bool { return has == o || has.IfName == "" && has.ContainerID == o.ContainerID })
}

// GC frees the addresses of owners that are not valid, and what a crash left
// without an owner.
func (c *Config) GC(valid map[Owner]bool) error {
	return c.release(func(has Owner) bool { return !valid[has] })
}

func (c *Config) release(drop func(Owner) bool) error {
	s, err := openStore(c.dir, false)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	all, err := s.addresses()
	if err != nil {
		return err
	}
	errs := []error{s.unstage()}
	for _, a := range all {
		if has, err := s.owner(a); err != nil {
			errs = append(errs, err)
		} else if drop(has) {
			errs = append(errs, s.remove(a))
		}
	}
	return errors.Join(errs...)
}

// Check reports an error unless the owner holds the addresses.
func (c *Config) Check(o Owner, addresses []netip.Addr) error {
	s, err := openStore(c.dir, false)
	if err != nil {
		return err
	}
	if s == nil {
		return fmt.Errorf("host-local: %s has no addresses", c.dir)
	}
	defer s.close()
	for _, a := range addresses {
		if !slices.ContainsFunc(c.sets, func(set rangeSet) bool { return set.find(a) != nil }) {
			continue
		}
		if has, err := s.owner(a); err != nil || has != o {
			return fmt.Errorf("host-local: address %s is not reserved for container %s", a, o.ContainerID)
		}
	}
	return nil
}
