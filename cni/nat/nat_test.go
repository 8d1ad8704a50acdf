package nat

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs the test in a network namespace of its own; the thread that
// is in it ends with the test.
func inNamespace(t *testing.T, test func(t *testing.T, c *Conn)) {
	t.Helper()
	if os.Getuid() != 0 {
		if strings.Contains(os.Getenv("REQUIRE"), "root") {
			t.Fatal("needs root: makes a network namespace")
		}
		t.Skip("needs root: makes a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		c, err := Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		test(t, c)
	}()
	<-done
}

func check(t *testing.T, c *Conn, o Owner, masquerade, forwards int) {
	t.Helper()
	m, f, err := c.Count(o)
	if m != masquerade || f != forwards || err != nil {
		t.Errorf("%v has %d and %d elements, %v; want %d and %d", o, m, f, err, masquerade, forwards)
	}
}

func TestElementsComeAndGo(t *testing.T) {
	inNamespace(t, func(t *testing.T, c *Conn) {
		a, b := Owner{"net", "a", "eth0"}, Owner{"net", "b", "eth0"}
		addresses := []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::2/64")}
		forwards := []Forward{
			{HostPort: 80, Protocol: unix.IPPROTO_TCP, To: netip.MustParseAddrPort("10.0.0.2:8080")},
			{HostPort: 80, Protocol: unix.IPPROTO_UDP, To: netip.MustParseAddrPort("10.0.0.2:8080")},
			{HostPort: 80, Protocol: unix.IPPROTO_TCP, To: netip.MustParseAddrPort("[fd00::2]:8080")},
			{HostPort: 81, HostIP: netip.MustParseAddr("192.0.2.1"), Protocol: unix.IPPROTO_SCTP, To: netip.MustParseAddrPort("10.0.0.2:8080")},
			{HostPort: 81, HostIP: netip.MustParseAddr("fd01::1"), Protocol: unix.IPPROTO_TCP, To: netip.MustParseAddrPort("[fd00::2]:8080")},
		}
		if err := errors.Join(c.RemoveMasquerade(a), c.RemoveForwards(a), c.CollectForwards("net", nil)); err != nil {
			t.Errorf("without a table: %v", err)
		}
		for range 2 { // the second time is success too
			if err := errors.Join(c.Masquerade(a, addresses), c.Forward(a, forwards, addresses)); err != nil {
				t.Error(err)
				return
			}
			check(t, c, a, 2, 5)
		}
		err := c.Forward(b, []Forward{{HostPort: 80, Protocol: unix.IPPROTO_TCP, To: netip.MustParseAddrPort("10.0.0.3:1")},
			{HostPort: 90, Protocol: unix.IPPROTO_TCP, To: netip.MustParseAddrPort("10.0.0.3:1")}}, []netip.Prefix{netip.MustParsePrefix("10.0.0.3/24")})
		if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), "80/tcp") || !strings.Contains(err.Error(), "net/a/eth0") {
			t.Errorf("a taken port: %v", err)
		}
		check(t, c, b, 0, 0)
		if err := c.Masquerade(b, []netip.Prefix{netip.MustParsePrefix("10.0.0.3/24")}); err != nil {
			t.Error(err)
		}
		if err := errors.Join(c.CollectMasquerade("net", []Owner{b}), c.CollectMasquerade("other", nil), c.CollectForwards("ne", nil)); err != nil {
			t.Error(err)
		}
		check(t, c, a, 0, 5)
		check(t, c, b, 1, 0)
		for range 2 {
			if err := errors.Join(c.RemoveForwards(a), c.RemoveMasquerade(b)); err != nil {
				t.Error(err)
			}
			check(t, c, a, 0, 0)
			check(t, c, b, 0, 0)
		}
	})
}

func TestNames(t *testing.T) {
	if got := masqueradeChain(netip.MustParsePrefix("fd00::/64")); got != "masquerade_fd00___64" {
		t.Error(got)
	}
	long := strings.Repeat("x", 300)
	for _, o := range []Owner{{"n", "c", "eth0"}, {long, "c", "eth0"}, {"n", long, "eth0"}} {
		if got := o.comment(); len(got) > 240 || strings.Count(got, "/") != 2 {
			t.Errorf("%q", got)
		}
	}
	for want, fw := range map[string]Forward{
		"80/tcp":          {HostPort: 80, Protocol: unix.IPPROTO_TCP},
		"[fd00::1]:9/udp": {HostPort: 9, Protocol: unix.IPPROTO_UDP, HostIP: netip.MustParseAddr("fd00::1")},
	} {
		if fw.String() != want {
			t.Errorf("%s, want %s", fw, want)
		}
	}
}
