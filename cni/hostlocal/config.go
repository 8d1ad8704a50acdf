// Package hostlocal gives out addresses from ranges, one file per address.
//
// It is the "host-local" plugin of the CNI project inside our process, with the
// same configuration and the same files, so that a node can change runtime with
// its pods' addresses reserved: <dataDir>/<network>/<address> holds the owner,
// "last_reserved_ip.<n>" where to go on, and "lock" is held by flock(2) while
// the directory is used. The directory is the only state; many processes use it
// at once, each holding the lock for one operation.
package hostlocal

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/longshore/longshore/cni/chain"
)

// DefaultDataDir is where the addresses of all networks are.
const DefaultDataDir = "/var/lib/cni/networks"

// addressRange is a run of addresses in one subnet.
type addressRange struct {
	subnet              netip.Prefix
	start, end, gateway netip.Addr
}

func (r *addressRange) contains(a netip.Addr) bool {
	return r.subnet.Contains(a) && r.start.Compare(a) <= 0 && a.Compare(r.end) <= 0
}

// rangeSet yields one address per attachment, from any of its ranges.
type rangeSet []addressRange

func (s rangeSet) find(a netip.Addr) *addressRange {
	for i := range s {
		if s[i].contains(a) {
			return &s[i]
		}
	}
	return nil
}

// Config is a network's address configuration.
type Config struct {
	dir       string
	sets      []rangeSet
	routes    []*types.Route
	dns       types.DNS
	requested []netip.Addr
}

// rangeJSON is a range as configured.
type rangeJSON struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// confJSON is what the plugin reads of a network configuration.
type confJSON struct {
	Name string `json:"name"`
	IPAM *struct {
		rangeJSON                // one range, the old way
		Ranges    [][]rangeJSON  `json:"ranges"`
		Routes    []*types.Route `json:"routes"`
		DataDir   string         `json:"dataDir"`
		Resolv    string         `json:"resolvConf"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPRanges [][]rangeJSON `json:"ipRanges"`
		IPs      []string      `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

// Parse reads a plugin's configuration. args is CNI_ARGS, in which IP asks for
// an address; dataDir is used where the configuration names none.
func Parse(conf []byte, args, dataDir string) (*Config, error) {
	var in confJSON
	if err := json.Unmarshal(conf, &in); err != nil {
		return nil, fmt.Errorf("parse host-local configuration: %w", err)
	}
	if in.IPAM == nil {
		return nil, errors.New("host-local: no ipam section")
	}
	if !chain.ValidName(in.Name) {
		return nil, fmt.Errorf("host-local: network name %.64q is not valid", in.Name)
	}
	for _, dir := range []string{in.IPAM.DataDir, dataDir, DefaultDataDir} {
		if dir != "" {
			dataDir = dir
			break
		}
	}
	c := &Config{dir: filepath.Join(dataDir, in.Name), routes: in.IPAM.Routes}
	all := slices.Concat(in.RuntimeConfig.IPRanges, in.IPAM.Ranges)
	if in.IPAM.Subnet != "" {
		all = append([][]rangeJSON{{in.IPAM.rangeJSON}}, all...)
	}
	for _, set := range all {
		s, err := parseSet(set)
		if err != nil {
			return nil, fmt.Errorf("host-local: %w", err)
		}
		c.sets = append(c.sets, s)
	}
	if len(c.sets) == 0 {
		return nil, errors.New("host-local: no address ranges")
	}
	if err := c.parseRequests(slices.Concat(in.RuntimeConfig.IPs, in.Args.CNI.IPs), args); err != nil {
		return nil, fmt.Errorf("host-local: %w", err)
	}
	if in.IPAM.Resolv != "" {
		var err error
		if c.dns, err = readResolvConf(in.IPAM.Resolv); err != nil {
			return nil, fmt.Errorf("host-local: %w", err)
		}
	}
	return c, nil
}

func (c *Config) parseRequests(texts []string, args string) error {
	for pair := range strings.SplitSeq(args, ";") {
		if value, ok := strings.CutPrefix(pair, "IP="); ok && value != "" {
			texts = append(texts, value)
		}
	}
	for _, text := range texts {
		address, _, _ := strings.Cut(text, "/")
		a, err := netip.ParseAddr(address)
		if err != nil {
			return fmt.Errorf("requested address: %w", err)
		}
		a = a.Unmap()
		if !slices.ContainsFunc(c.sets, func(s rangeSet) bool { return s.find(a) != nil }) {
			return fmt.Errorf("requested address %s is in no range", a)
		}
		c.requested = append(c.requested, a)
	}
	return nil
}

func parseSet(in []rangeJSON) (rangeSet, error) {
	if len(in) == 0 {
		return nil, errors.New("empty range set")
	}
	var set rangeSet
	for _, rj := range in {
		r, err := parseRange(rj)
		if err != nil {
			return nil, err
		}
		for _, other := range set {
			if other.subnet.Addr().Is4() != r.subnet.Addr().Is4() {
				return nil, errors.New("a range set mixes address families")
			}
			if other.contains(r.start) || other.contains(r.end) || r.contains(other.start) {
				return nil, fmt.Errorf("ranges %s-%s and %s-%s overlap", other.start, other.end, r.start, r.end)
			}
		}
		set = append(set, r)
	}
	return set, nil
}

func parseRange(in rangeJSON) (addressRange, error) {
	subnet, err := netip.ParsePrefix(in.Subnet)
	if err != nil {
		return addressRange{}, fmt.Errorf("subnet: %w", err)
	}
	if subnet != subnet.Masked() {
		return addressRange{}, fmt.Errorf("subnet %s has host bits set", subnet)
	}
	if subnet.Addr().Is4In6() {
		return addressRange{}, fmt.Errorf("subnet %s is an IPv4 subnet in IPv6 form", subnet)
	}
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return addressRange{}, fmt.Errorf("subnet %s is too small", subnet)
	}
	r := addressRange{subnet: subnet, start: subnet.Addr().Next(), end: last(subnet)}
	r.gateway = r.start
	for _, f := range []struct {
		text, what string
		to         *netip.Addr
	}{{in.RangeStart, "rangeStart", &r.start}, {in.RangeEnd, "rangeEnd", &r.end}, {in.Gateway, "gateway", &r.gateway}} {
		if f.text == "" {
			continue
		}
		if *f.to, err = netip.ParseAddr(f.text); err != nil {
			return addressRange{}, fmt.Errorf("%s: %w", f.what, err)
		}
		if f.what != "gateway" && !subnet.Contains(*f.to) {
			return addressRange{}, fmt.Errorf("%s %s is not in %s", f.what, *f.to, subnet)
		}
	}
	if r.start.Compare(r.end) > 0 {
		return addressRange{}, fmt.Errorf("range %s-%s is empty", r.start, r.end)
	}
	return r, nil
}

// last gives a subnet's last usable address: in IPv4 the very last one is the
// broadcast address.
func last(subnet netip.Prefix) netip.Addr {
	b := subnet.Addr().AsSlice()
	for i := subnet.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		return a.Prev()
	}
	return a
}

// ipNet gives an address with its subnet's mask.
func ipNet(a netip.Addr, subnet netip.Prefix) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(subnet.Bits(), a.BitLen())}
}
