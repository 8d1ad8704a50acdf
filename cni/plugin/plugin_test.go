package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/longshore/longshore/cni"
	"github.com/longshore/longshore/cni/nat"

	"golang.org/x/sys/unix"
)

func TestPodsReachEachOtherAndTheWorld(t *testing.T) {
	w := newWorld(t)
	a, b := w.attachment(), w.attachment()
	ra, rb := w.mustAdd(a), w.mustAdd(b)
	a4, a6, b4, b6 := ra.IPs[0].Addr().String(), ra.IPs[1].Addr().String(), rb.IPs[0].Addr().String(), rb.IPs[1].Addr().String()
	if a4 != "10.99.0.2" || b4 != "10.99.0.3" || a6 != "fd99::2" {
		t.Errorf("addresses %v and %v", ra.IPs, rb.IPs)
	}
	w.serve(b.NetNS, 80)
	w.serve(w.outside, 80)
	for _, network := range []string{"tcp", "udp"} {
		w.reach("pod to pod", a.NetNS, network, b4+":80", a4)
		w.reach("pod to pod", a.NetNS, network, "["+b6+"]:80", a6)
		w.reach("host to pod", w.host, network, b4+":80", "10.99.0.1")
		w.reach("pod to itself", b.NetNS, network, "127.0.0.1:80", "127.0.0.1")
		w.reach("pod to the world", a.NetNS, network, "192.0.2.2:80", "192.0.2.1")
		w.reach("pod to the world", a.NetNS, network, "[2001:db8::2]:80", "2001:db8::1")
	}
	for _, c := range []Attachment{a, b} {
		w.in(w.host, func() error { return Check(context.Background(), c) })
		w.mustDel(c)
	}
	for _, c := range []Attachment{a, b} {
		w.mustDel(c)
		w.clean(c)
	}
	w.in(w.host, func() error {
		if err := Check(context.Background(), a); err == nil {
			t.Error("Check of a deleted attachment passes")
		}
		return nil
	})
}

func TestHostPorts(t *testing.T) {
	w := newWorld(t)
	a, b := w.attachment(), w.attachment()
	a.PortMappings = []PortMapping{
		{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 8080, ContainerPort: 80, Protocol: "UDP"},
		{HostPort: 8081, ContainerPort: 80, HostIP: "192.0.2.1"}, {HostPort: 8082, ContainerPort: 80, HostIP: "127.0.0.1"},
		{HostPort: 8080, ContainerPort: 80, Protocol: "sctp"}, {ContainerPort: 9},
	}
	// A flow from before the port was one must not stick.
	if _, err := w.dial(w.outside, "udp", "192.0.2.1:8080"); err == nil {
		t.Error("somebody answers before")
	}
	ra, rb := w.mustAdd(a), w.mustAdd(b)
	a4, b4 := ra.IPs[0].Addr().String(), rb.IPs[0].Addr().String()
	w.serve(a.NetNS, 80)
	for _, network := range []string{"tcp", "udp"} {
		w.reach("outside", w.outside, network, "192.0.2.1:8080", "192.0.2.2")
		w.reach("outside by IPv6", w.outside, network, "[2001:db8::1]:8080", "2001:db8::2")
		w.reach("host by its address", w.host, network, "192.0.2.1:8080", "")
		w.reach("host by loopback", w.host, network, "127.0.0.1:8080", "10.99.0.1")
		w.reach("the pod itself", a.NetNS, network, "192.0.2.1:8080", "10.99.0.1")
		w.reach("another pod", b.NetNS, network, "192.0.2.1:8080", "10.99.0.1")
		w.reach("another pod by the bridge", b.NetNS, network, "10.99.0.1:8080", "")
	}
	w.reach("by one address", w.outside, "tcp", "192.0.2.1:8081", "192.0.2.2")
	w.reach("by loopback only", w.host, "tcp", "127.0.0.1:8082", "10.99.0.1")
	if _, err := w.dial(w.outside, "tcp", "192.0.2.1:8082"); err == nil {
		t.Error("a port of 127.0.0.1 is open to the world")
	}
	if _, err := w.dial(w.host, "tcp", "127.0.0.1:8081"); err == nil {
		t.Error("a port of 192.0.2.1 is open on 127.0.0.1")
	}
	w.reach("directly", b.NetNS, "tcp", a4+":80", b4)
	w.in(w.host, func() error { return Check(context.Background(), a) })

	c := w.attachment()
	c.PortMappings = a.PortMappings[:1]
	if _, err := w.add(c); !errors.Is(err, nat.ErrPortTaken) || !strings.Contains(err.Error(), "8080/tcp") || !strings.Contains(err.Error(), a.ContainerID) {
		t.Errorf("the same host port again: %v", err)
	}
	w.mustDel(b)
	w.mustDel(a)
	for _, x := range []Attachment{a, b, c} {
		w.clean(x)
	}
	if _, err := w.dial(w.outside, "tcp", "192.0.2.1:8080"); err == nil {
		t.Error("the port is still open")
	}
}

// TestLoopbackOfTheHostIsClosed holds off CVE-2020-8558: with route_localnet a
// pod could send to 127.0.0.1 of the host.
func TestLoopbackOfTheHostIsClosed(t *testing.T) {
	w := newWorld(t)
	a := w.attachment()
	a.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	w.mustAdd(a)
	w.serve(w.host, 7000)
	w.in(a.NetNS, func() error {
		if err := setSysctl("ipv4/conf/eth0/route_localnet", "1"); err != nil {
			return err
		}
		h, err := openRoute()
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		// The pod takes 127.0.0.1 from its loopback interface and sends it to the host.
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := h.AddrList(lo, 2)
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			if err := h.AddrDel(lo, &addr); err != nil {
				return err
			}
		}
		return h.RouteAdd(routeVia(link, "127.0.0.0/8", "10.99.0.1"))
	})
	if got, err := w.dial(a.NetNS, "tcp", "127.0.0.1:7000"); err == nil {
		t.Errorf("the pod reached the host's loopback as %s", got)
	}
	w.mustDel(a)
	w.clean(a)
}

func TestDelWithoutNamespace(t *testing.T) {
	w := newWorld(t)
	for name, path := range map[string]string{"empty": "", "missing": "/nonexistent/ns", "no namespace": filepath.Join(w.dir, "file")} {
		if err := os.WriteFile(filepath.Join(w.dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		a := w.attachment()
		a.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
		w.mustAdd(a)
		real := a.NetNS
		a.NetNS = path
		w.mustDel(a)
		// The interface goes with its namespace; here that is ended by hand.
		w.in(real, func() error { return deleteLink("eth0") })
		w.clean(a)
		t.Log(name)
	}
}

// foreign writes a plugin that is run as a program.
func (w *world) foreign(name, script string) {
	w.t.Helper()
	if err := os.MkdirAll(w.dir+"/bin", 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.dir+"/bin/"+name, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) chain(a *Attachment, plugin string) {
	w.t.Helper()
	var list map[string]any
	if err := json.Unmarshal(a.Conflist, &list); err != nil {
		w.t.Fatal(err)
	}
	var p any
	if err := json.Unmarshal([]byte(plugin), &p); err != nil {
		w.t.Fatal(err)
	}
	list["plugins"] = append(list["plugins"].([]any), p)
	var err error
	if a.Conflist, err = json.Marshal(list); err != nil {
		w.t.Fatal(err)
	}
}

func TestFailingPluginIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.foreign("broken", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
echo '{"cniVersion":"1.1.0","code":107,"msg":"no luck"}'; exit 1`)
	a := w.attachment()
	a.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	w.chain(&a, `{"type":"broken"}`)
	if _, err := w.add(a); err == nil || !strings.Contains(err.Error(), "plugin broken: no luck") {
		t.Errorf("Add = %v", err)
	}
	w.clean(a)
}

func TestForeignPluginGetsAndGives(t *testing.T) {
	w := newWorld(t)
	w.foreign("tell", `cat >"`+w.dir+`/stdin.$CNI_COMMAND"
echo "$CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS $CNI_PATH" >"`+w.dir+`/env"
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.99.0.2/24"}],"dns":{"nameservers":["10.9.9.9"]}}'
exit 0`)
	a := w.attachment()
	a.Bandwidth = &Bandwidth{IngressRate: 1000}
	w.chain(&a, `{"type":"tell","capabilities":{"bandwidth":true}}`)
	r := w.mustAdd(a)
	if len(r.DNS.Servers) != 1 || len(r.IPs) != 1 {
		t.Errorf("result %+v", r)
	}
	stdin, err := os.ReadFile(w.dir + "/stdin.ADD")
	if err != nil || !strings.Contains(string(stdin), `"ingressRate":1000`) || !strings.Contains(string(stdin), `"prevResult"`) {
		t.Errorf("the plugin read %s, %v", stdin, err)
	}
	env, err := os.ReadFile(w.dir + "/env")
	if want := a.ContainerID + " eth0 IgnoreUnknown=1;K8S_POD_NAME=x " + w.dir + "/bin\n"; string(env) != want || err != nil {
		t.Errorf("environment %q, %v; want %q", env, err, want)
	}
	w.mustDel(a)
	w.clean(a)
}

func TestForeignPluginIsBounded(t *testing.T) {
	dir := t.TempDir()
	plugin := func(script string) string {
		path := filepath.Join(dir, "p")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, err := runForeign(t.Context(), plugin(`head -c 2000000 /dev/zero`), nil, os.Environ()); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("too much output: %v", err)
	}
	child := 0
	for patience := 50 * time.Millisecond; child == 0 && patience < time.Minute; patience *= 4 { // a busy machine may take longer to start it
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if _, err := runForeign(ctx, plugin("sleep 1000 & echo $! >"+dir+"/child; wait"), nil, os.Environ()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hanging plugin: %v", err)
		}
		cancel()
		if data, err := os.ReadFile(filepath.Join(dir, "child")); err == nil {
			child, _ = strconv.Atoi(strings.TrimSpace(string(data))) // empty: it was ended before it wrote
		}
	}
	if child == 0 {
		t.Fatal("the plugin did not say what it had started")
	}
	if pidfd, err := unix.PidfdOpen(child, 0); err == nil { // else it is gone already
		defer unix.Close(pidfd)
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
			t.Errorf("what the plugin has started goes on: %v", err)
		}
	}
	if _, err := runForeign(t.Context(), plugin(`echo why >&2; exit 3`), nil, os.Environ()); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("an error as text: %v", err)
	}
	if _, err := runForeign(t.Context(), dir+"/none", nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no plugin: %v", err)
	}
}

func TestGCKeepsOnlyTheValid(t *testing.T) {
	w := newWorld(t)
	keep, lost := w.attachment(), w.attachment()
	keep.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 80}}
	lost.PortMappings = []PortMapping{{HostPort: 2, ContainerPort: 80}}
	w.mustAdd(keep)
	w.mustAdd(lost)
	d := Dirs{CacheDir: keep.CacheDir}
	w.in(w.host, func() error {
		return errors.Join(
			GC(context.Background(), keep.Conflist, []Valid{{keep.ContainerID, "eth0"}}, d),
			Status(context.Background(), keep.Conflist, d),
			Check(context.Background(), keep))
	})
	w.in(lost.NetNS, func() error { return deleteLink("eth0") })
	w.mustDel(keep)
	w.clean(keep)
	w.clean(lost)
}

func TestManyPodsAtOnce(t *testing.T) {
	w := newWorld(t)
	pods := make([]Attachment, 8)
	var wg sync.WaitGroup
	for i := range pods {
		pods[i] = w.attachment()
		pods[i].PortMappings = []PortMapping{{HostPort: 1000 + i, ContainerPort: 80}}
	}
	var mu sync.Mutex
	seen := map[netip.Prefix]bool{}
	for i := range pods {
		wg.Go(func() {
			r, err := w.add(pods[i])
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[r.IPs[0]] {
				t.Errorf("%s twice", r.IPs[0])
			}
			seen[r.IPs[0]] = true
		})
	}
	wg.Wait()
	for i := range pods {
		wg.Go(func() {
			if err := inNamespace(w.host, func() error { return Del(context.Background(), pods[i]) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range pods {
		w.clean(p)
	}
}

func TestBridgeAddressConflict(t *testing.T) {
	w := newWorld(t)
	a := w.attachment()
	w.mustAdd(a)
	w.mustDel(a)
	conf := func(force string) Attachment {
		b := w.attachment()
		b.Conflist = []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","bridge":"` + cni.DefaultBridge + `","isGateway":true,` + force +
			`"ipam":{"type":"host-local","dataDir":"` + w.dir + `/data","subnet":"10.98.0.0/24"}}]}`)
		return b
	}
	if _, err := w.add(conf("")); err == nil || !strings.Contains(err.Error(), "forceAddress") {
		t.Errorf("another subnet on the bridge: %v", err)
	}
	b := conf(`"forceAddress":true,"isDefaultGateway":true,"mtu":1400,`)
	r := w.mustAdd(b)
	if len(r.Routes) != 1 || r.Routes[0].Gateway.String() != "10.98.0.1" {
		t.Errorf("routes %v", r.Routes)
	}
	w.mustDel(b)
	w.clean(b)
}

func TestResults(t *testing.T) {
	for name, tc := range map[string]struct {
		json string
		want string // the primary address, or "" for an error
	}{
		"plain":              {`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`, "10.0.0.2/24"},
		"bridge's own first": {`{"cniVersion":"1.0.0","interfaces":[{"name":"b"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.0.0.1/24"},{"interface":1,"address":"10.0.0.2/24"}]}`, "10.0.0.2/24"},
		"index out of range": {`{"cniVersion":"1.0.0","ips":[{"interface":7,"address":"10.0.0.1/24"},{"address":"fd00::1/64"}]}`, "fd00::1/64"},
		"null entries":       {`{"cniVersion":"1.0.0","interfaces":[null],"ips":[{"interface":0,"address":"10.0.0.1/24"},{"address":"10.0.0.2/24"}],"routes":[{"dst":"0.0.0.0/0"}]}`, "10.0.0.2/24"},
	} {
		raw, err := types100.NewResult([]byte(tc.json))
		if err != nil {
			t.Fatal(name, err)
		}
		r, err := convert(raw)
		if err != nil || len(r.IPs) == 0 || r.IPs[0].String() != tc.want {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := types100.NewResult(data)
		if err != nil {
			return
		}
		r, err := convert(raw)
		if err != nil {
			return
		}
		for _, p := range r.IPs {
			if !p.IsValid() {
				t.Errorf("address %v", p)
			}
		}
	})
}

func FuzzCall(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"hostIP":"::"}]},"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := newCall(data, []string{"CNI_COMMAND=CHECK", "CNI_IFNAME=eth0"})
		if err != nil {
			return
		}
		c.exec = &executor{}
		if all, _, err := c.forwards(); err == nil {
			for _, fw := range all {
				if fw.HostPort == 0 || fw.To.Port() == 0 || fw.HostIP.IsValid() && fw.HostIP.Is4() != fw.To.Addr().Is4() {
					t.Errorf("forward %+v", fw)
				}
			}
		}
		_, _ = c.parseBridge()
	})
}
