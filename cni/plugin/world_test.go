package plugin

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/cni"
	"github.com/longshore/longshore/cni/nat"
)

// world is a node without a machine: a "host" namespace that every step of the
// plugins runs in, and an "outside" namespace that the host reaches by 192.0.2.2
// and 2001:db8::2.
type world struct {
	t       *testing.T
	host    string // paths of namespaces
	outside string
	dir     string
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("needs root: makes network namespaces")
	}
	t.Skip("needs root: makes network namespaces")
}

// newNamespace makes a network namespace that lives as long as the test.
func newNamespace(t *testing.T) string {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			close(made)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
			close(made)
			return
		}
		made <- f
	}()
	f := <-made
	if f == nil {
		t.FailNow()
	}
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needsRoot(t)
	w := &world{t: t, host: newNamespace(t), outside: newNamespace(t), dir: t.TempDir()}
	w.in(w.host, func() error {
		out, err := os.Open(w.outside)
		if err != nil {
			return err
		}
		defer out.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "up0"
		up := netlink.NewVeth(attrs)
		up.PeerName, up.PeerNamespace = "up1", netlink.NsFd(out.Fd())
		if err := netlink.LinkAdd(up); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		return address("up0", "192.0.2.1/24", "2001:db8::1/64")
	})
	w.in(w.outside, func() error { return address("up1", "192.0.2.2/24", "2001:db8::2/64") })
	return w
}

func address(name string, prefixes ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if err := netlink.AddrAdd(link, kernelAddress(netip.MustParsePrefix(p), true)); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func (w *world) in(ns string, f func() error) {
	w.t.Helper()
	if err := inNamespace(ns, f); err != nil {
		w.t.Fatal(err)
	}
}

// attachment is of a new pod in the built-in default network.
func (w *world) attachment() Attachment {
	w.t.Helper()
	n, err := cni.Load(cni.Config{ConfDir: w.dir, DataDir: w.dir + "/data", DefaultSubnets: []string{"10.99.0.0/24", "fd99::/64"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return Attachment{
		ContainerID: strings.ToLower(rand.Text()), NetNS: newNamespace(w.t), IfName: "eth0", Conflist: n.Raw,
		Args:     [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "x"}},
		CacheDir: w.dir + "/cache", BinDirs: []string{w.dir + "/bin"},
	}
}

func (w *world) add(a Attachment) (result Result, err error) {
	err = inNamespace(w.host, func() error {
		result, err = Add(context.Background(), a)
		return err
	})
	return result, err
}

func (w *world) mustAdd(a Attachment) Result {
	w.t.Helper()
	result, err := w.add(a)
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

func (w *world) mustDel(a Attachment) {
	w.t.Helper()
	w.in(w.host, func() error { return Del(context.Background(), a) })
}

// serve answers each TCP connection, and each UDP packet, with the address it
// came from.
func (w *world) serve(ns string, port int) {
	w.t.Helper()
	w.in(ns, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		done := make(chan struct{}, 2)
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
				c.Close()
			}
		}()
		go func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, 16)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
			}
		}()
		w.t.Cleanup(func() { l.Close(); u.Close(); <-done; <-done })
		return nil
	})
}

// dial connects from a namespace and gives the answer of [world.serve].
func (w *world) dial(ns, network, to string) (answer string, err error) {
	err = inNamespace(ns, func() error {
		c, err := net.DialTimeout(network, to, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		return err
	})
	return answer, err
}

func (w *world) reach(what, ns, network, to, want string) {
	w.t.Helper()
	got, err := w.dial(ns, network, to)
	if err != nil || want != "" && got != want {
		w.t.Errorf("%s: %s %s seen as %q, %v; want %q", what, network, to, got, err, want)
	}
}

// clean fails if anything of an attachment is left on the host.
func (w *world) clean(a Attachment) {
	w.t.Helper()
	w.in(w.host, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			if strings.HasPrefix(l.Name, "veth") {
				w.t.Errorf("interface %s is left", l.Name)
			}
		}
		conn, err := nat.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		m, f, err := conn.Count(nat.Owner{Network: cni.DefaultName, ContainerID: a.ContainerID, IfName: a.IfName})
		if m+f != 0 {
			w.t.Errorf("%d masquerade and %d port elements are left", m, f)
		}
		return err
	})
	for _, dir := range []string{"data/" + cni.DefaultName, "cache/results"} {
		entries, _ := os.ReadDir(w.dir + "/" + dir)
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err == nil || strings.Contains(e.Name(), a.ContainerID) {
				w.t.Errorf("%s/%s is left", dir, e.Name())
			}
		}
	}
}

func routeVia(link netlink.Link, to, gateway string) *netlink.Route {
	_, dst, _ := net.ParseCIDR(to)
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(gateway)}
}
