package netdev

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The moves themselves are tested with containers, in shim/launch.
func TestCheck(t *testing.T) {
	type devices = map[string]specs.LinuxNetDevice
	for name, tt := range map[string]struct {
		devices devices
		ok      bool
	}{
		"none":          {nil, true},
		"same name":     {devices{"eth0": {}}, true},
		"renamed":       {devices{"eth0": {Name: "dev0"}}, true},
		"swapped":       {devices{"a": {Name: "b"}, "b": {Name: "a"}}, true},
		"twice":         {devices{"a": {Name: "c"}, "b": {Name: "c"}}, false},
		"empty":         {devices{"": {}}, false},
		"long":          {devices{"sixteen-letters-": {}}, false},
		"path":          {devices{"a": {Name: "../x"}}, false},
		"pattern":       {devices{"a": {Name: "eth%d"}}, false},
		"alias":         {devices{"a": {Name: "eth0:1"}}, false},
		"space":         {devices{"a": {Name: "a b"}}, false},
		"the directory": {devices{"a": {Name: ".."}}, false},
	} {
		if err := Check(tt.devices); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
