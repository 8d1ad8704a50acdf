package cri

import (
	"testing"

	"github.com/longshore/longshore/engine"
)

// TestNetworkHasADefaultOrIsNil holds what kubelet takes for granted.
func TestNetworkHasADefaultOrIsNil(t *testing.T) {
	if got := networkUsage(&engine.Usage{}); got != nil {
		t.Errorf("without an interface: %v", got)
	}
	for name, tc := range map[string]struct {
		names       []string
		usual, rest string
	}{
		"one":        {[]string{"eth0"}, "eth0", ""},
		"more":       {[]string{"net1", "eth0", "net2"}, "eth0", "net1 net2 "},
		"other name": {[]string{"net1", "net2"}, "net1", "net2 "},
	} {
		u := &engine.Usage{}
		for _, n := range tc.names {
			u.Network = append(u.Network, engine.InterfaceUsage{Name: n, RxBytes: 7})
		}
		got := networkUsage(u)
		rest := ""
		for _, i := range got.GetInterfaces() {
			rest += i.Name + " "
		}
		if d := got.GetDefaultInterface(); d.GetName() != tc.usual || rest != tc.rest || d.GetRxBytes().GetValue() != 7 {
			t.Errorf("%s: default %v, others %q", name, d, rest)
		}
	}
}
