package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// Name and bridge of the built-in default network.
const (
	DefaultName   = "longshore"
	DefaultBridge = "longshore0"
)

// DefaultSubnets gives the subnets of the built-in default network: a private
// IPv4 network and a unique local IPv6 network (RFC 4193).
func DefaultSubnets() []string { return []string{"10.88.0.0/16", "fd6c:6f6e:6773::/64"} }

// ipv6Switch exists where the kernel has IPv6.
const ipv6Switch = "/proc/sys/net/ipv6/conf/all/disable_ipv6"

func hasIPv6() bool {
	value, err := os.ReadFile(ipv6Switch)
	return err == nil && len(value) > 0 && value[0] == '0'
}

// CheckSubnets refuses what cannot be the subnets of the default network: they
// are prefixes with room for pods, at most one of each address family.
func CheckSubnets(subnets []string) error {
	_, err := parseSubnets(subnets)
	return err
}

func parseSubnets(subnets []string) (prefixes []netip.Prefix, err error) {
	seen := map[bool]bool{}
	for _, text := range subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		four := subnet.Addr().Is4()
		if seen[four] {
			return nil, fmt.Errorf("subnet %s is the second of its address family", subnet)
		}
		seen[four] = true
		// Besides the pods' the network, the gateway and the broadcast take an address.
		if subnet.Addr().BitLen()-subnet.Bits() < 2 {
			return nil, fmt.Errorf("subnet %s has no room for pods", subnet)
		}
		prefixes = append(prefixes, subnet.Masked())
	}
	return prefixes, nil
}

// defaultNetwork builds a bridge with private addresses, masquerade and host
// ports.
func defaultNetwork(cfg Config) (*Network, error) {
	subnets := cfg.DefaultSubnets
	if len(subnets) == 0 {
		subnets = DefaultSubnets()
		if !hasIPv6() {
			subnets = subnets[:1]
		}
	}
	prefixes, err := parseSubnets(subnets)
	if err != nil {
		return nil, fmt.Errorf("default network: %w", err)
	}
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, subnet := range prefixes {
		ranges = append(ranges, []object{{"subnet": subnet.String()}})
		all := "::/0"
		if subnet.Addr().Is4() {
			all = "0.0.0.0/0"
		}
		routes = append(routes, object{"dst": all})
	}
	ipam := object{"type": "host-local", "ranges": ranges, "routes": routes}
	if cfg.DataDir != "" {
		ipam["dataDir"] = cfg.DataDir
	}
	raw, err := json.Marshal(object{
		"cniVersion": version.Current(),
		"name":       DefaultName,
		"plugins": []object{
			{"type": "bridge", "bridge": DefaultBridge, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam,
				"capabilities": object{"ips": true, "mac": true}},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, fmt.Errorf("default network: %w", err)
	}
	return newNetwork(list, BuiltIn)
}
