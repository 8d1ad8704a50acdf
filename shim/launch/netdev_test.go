package launch

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ownNetwork gives the test's thread a network namespace with devices.
func ownNetwork(t *testing.T, devices ...string) {
	t.Helper()
	runtime.LockOSThread()
	host, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // on this thread too
		if err := netns.Set(host); err != nil {
			t.Fatal(err) // the thread stays locked, and ends
		}
		host.Close()
		runtime.UnlockOSThread()
	})
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for i, name := range devices {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400, HardwareAddr: []byte{2, 0, 0, 0, 0, byte(i)}}, PeerName: "peer-" + name}
		if err := netlink.LinkAdd(pair); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(pair); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{fmt.Sprintf("10.9.%d.1/24", i), fmt.Sprintf("fd00:%d::1/64", i)} {
			address, err := netlink.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			address.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(pair, address); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// describeDevice lists what there is of a device: state, MTU, hardware and
// global addresses.
func describeDevice(t *testing.T, h *netlink.Handle, name string) string {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		return err.Error()
	}
	a := link.Attrs()
	text := fmt.Sprintf("up=%v mtu=%d mac=%s", a.Flags&unix.IFF_UP != 0, a.MTU, a.HardwareAddr)
	addresses, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if address.Scope == unix.RT_SCOPE_UNIVERSE {
			text += " " + address.IPNet.String()
		}
	}
	return text
}

// sharedNet gives the fixture's container the network namespace of the test.
func (f *fixture) sharedNet() {
	f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces[:1:1], f.spec.Linux.Namespaces[2:]...)
}

func TestNetDevicesMoveIn(t *testing.T) {
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("user namespace %v", userNS), func(t *testing.T) {
			f := newFixture(t, "wait")
			ownNetwork(t, "d0", "d1")
			if userNS {
				f.userNS("")
			}
			f.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"d0": {Name: "d1"}, "d1": {Name: "eth0"}}
			c := f.create()
			ns, err := netns.GetFromPid(c.Init().Pid())
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			inside, err := netlink.NewHandleAt(ns)
			if err != nil {
				t.Fatal(err)
			}
			defer inside.Close()
			for name, want := range map[string]string{
				"d1":   "up=true mtu=1400 mac=02:00:00:00:00:00 10.9.0.1/24 fd00::1/64",
				"eth0": "up=true mtu=1400 mac=02:00:00:00:00:01 10.9.1.1/24 fd00:1::1/64",
			} {
				if got := describeDevice(t, inside, name); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
			if _, err := netlink.LinkByName("d0"); err == nil {
				t.Error("d0 is on the host as well")
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestNetDevicesComeBack: whatever fails, the host has its devices again.
func TestNetDevicesComeBack(t *testing.T) {
	f := newFixture(t, "wait")
	ownNetwork(t, "d0", "d1")
	host, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	before := describeDevice(t, host, "d0") + describeDevice(t, host, "d1")
	for _, tt := range []struct {
		name, want string
		set        func(f *fixture)
	}{
		{"missing device", "move d2 into the container as d2", func(f *fixture) { f.spec.Linux.NetDevices["d2"] = specs.LinuxNetDevice{} }},
		{"name taken", "move d1 into the container as lo: file exists", func(f *fixture) { f.spec.Linux.NetDevices["d1"] = specs.LinuxNetDevice{Name: "lo"} }},
		{"name twice", "d0 and d1 would both be x", func(f *fixture) { f.spec.Linux.NetDevices["d1"] = specs.LinuxNetDevice{Name: "x"} }},
		{"bad name", `name "a/b"`, func(f *fixture) { f.spec.Linux.NetDevices["d1"] = specs.LinuxNetDevice{Name: "a/b"} }},
		{"pattern", `name "eth%d"`, func(f *fixture) { f.spec.Linux.NetDevices["d1"] = specs.LinuxNetDevice{Name: "eth%d"} }},
		{"host network", "shares the host's network namespace", (*fixture).sharedNet},
		{"later failure", "hook", func(f *fixture) {
			f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		}},
	} {
		g := *f // no subtest: it would be on another thread, without the devices
		spec, linux := *f.spec, *f.spec.Linux
		spec.Linux, g.spec, g.cfg.Spec = &linux, &spec, &spec
		linux.NetDevices = map[string]specs.LinuxNetDevice{"d0": {Name: "x"}, "d1": {}}
		tt.set(&g)
		g.cfg.Stdio = Stdio{}
		c, err := Create(g.cfg)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
		if after := describeDevice(t, host, "d0") + describeDevice(t, host, "d1"); after != before {
			t.Errorf("%s: the host has %s, had %s", tt.name, after, before)
		}
	}
}
