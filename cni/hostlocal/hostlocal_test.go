package hostlocal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

func parse(t *testing.T, dir, ipam, args string) *Config {
	t.Helper()
	c, err := Parse([]byte(`{"name":"net","ipam":{`+ipam+`}}`), args, dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func addresses(t *testing.T, c *Config, o Owner) []string {
	t.Helper()
	result, err := c.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, ip := range result.IPs {
		all = append(all, ip.Address.String()+" via "+ip.Gateway.String())
	}
	return all
}

func TestAddGoesRound(t *testing.T) {
	dir := t.TempDir()
	c := parse(t, dir, `"ranges":[[{"subnet":"10.0.0.0/30"},{"subnet":"10.0.1.0/24","rangeStart":"10.0.1.5","rangeEnd":"10.0.1.6","gateway":"10.0.1.5"}],[{"subnet":"fd00::/64"}]]`, "")
	want := []string{"10.0.0.2/30 via 10.0.0.1", "10.0.1.6/24 via 10.0.1.5", "", "10.0.0.2/30 via 10.0.0.1"}
	for i, w := range want {
		o := Owner{fmt.Sprint("c", i), "eth0"}
		if w == "" {
			if _, err := c.Add(o); !errors.Is(err, ErrExhausted) {
				t.Errorf("Add to full ranges = %v", err)
			}
			if err := c.Del(Owner{"c0", "eth0"}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got := addresses(t, c, o)
		if got[0] != w || !strings.HasPrefix(got[1], "fd00::") {
			t.Errorf("Add %d = %v, want %s", i, got, w)
		}
	}
}

func TestFilesAreTheReferencePlugins(t *testing.T) {
	dir := t.TempDir()
	c := parse(t, dir, `"subnet":"10.0.0.0/24"`, "")
	addresses(t, c, Owner{"id", "eth0"})
	for name, want := range map[string]string{"10.0.0.2": "id\r\neth0", "last_reserved_ip.0": "10.0.0.2", "lock": ""} {
		got, err := os.ReadFile(filepath.Join(dir, "net", name))
		if err != nil || string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
	// What others wrote: with a plain line break, and the very old form.
	for name, text := range map[string]string{"10.0.0.3": "other\neth0", "10.0.0.4": "old", "10.0.0.5": ""} {
		if err := os.WriteFile(filepath.Join(dir, "net", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []Owner{{"other", "eth0"}, {"old", "eth0"}, {"id", "eth1"}} {
		if err := c.Del(o); err != nil {
			t.Fatal(err)
		}
	}
	if got := left(t, dir); !slices.Equal(got, []string{"10.0.0.2", "10.0.0.5"}) {
		t.Errorf("left %v", got)
	}
	if err := c.GC(map[Owner]bool{{"id", "eth0"}: true}); err != nil {
		t.Fatal(err)
	}
	if got := left(t, dir); !slices.Equal(got, []string{"10.0.0.2"}) {
		t.Errorf("left after GC: %v", got)
	}
}

func left(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestRequestedAddresses(t *testing.T) {
	dir := t.TempDir()
	c := parse(t, dir, `"subnet":"10.0.0.0/24"`, "K8S_POD_NAME=x;IP=10.0.0.9")
	for range 2 { // twice for the same owner is success
		if got := addresses(t, c, Owner{"id", "eth0"}); got[0] != "10.0.0.9/24 via 10.0.0.1" {
			t.Errorf("Add = %v", got)
		}
	}
	if _, err := c.Add(Owner{"id2", "eth0"}); !errors.Is(err, ErrTaken) {
		t.Errorf("Add of a taken address = %v", err)
	}
	if _, err := parse(t, dir, `"subnet":"10.0.0.0/24"`, "IP=10.0.0.1").Add(Owner{"id3", "eth0"}); err == nil {
		t.Error("the gateway was given out")
	}
	c, err := Parse([]byte(`{"name":"net","ipam":{"subnet":"10.0.0.0/24"},"runtimeConfig":{"ips":["10.0.0.20/24"]}}`), "", dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := addresses(t, c, Owner{"id4", "eth0"}); got[0] != "10.0.0.20/24 via 10.0.0.1" {
		t.Errorf("Add = %v", got)
	}
	if err := c.Check(Owner{"id4", "eth0"}, []netip.Addr{netip.MustParseAddr("10.0.0.20")}); err != nil {
		t.Error(err)
	}
	if err := c.Check(Owner{"id4", "eth0"}, []netip.Addr{netip.MustParseAddr("10.0.0.9")}); err == nil {
		t.Error("Check passes another's address")
	}
}

func TestAddTakesBackOnError(t *testing.T) {
	dir := t.TempDir()
	c := parse(t, dir, `"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/30"}]]`, "")
	addresses(t, c, Owner{"a", "eth0"})
	if _, err := c.Add(Owner{"b", "eth0"}); !errors.Is(err, ErrExhausted) {
		t.Fatal(err)
	}
	if got := left(t, dir); !slices.Equal(got, []string{"10.0.0.2", "10.1.0.2"}) {
		t.Errorf("left %v", got)
	}
}

// TestAddressAppearsWithItsOwner: whoever is killed while it reserves, no file
// of an address is ever seen that belongs to nobody, and what it has staged
// goes with the next DEL.
func TestAddressAppearsWithItsOwner(t *testing.T) {
	dir := t.TempDir()
	c := parse(t, dir, `"subnet":"10.0.0.0/24"`, "")
	net := filepath.Join(dir, "net")
	if err := os.Mkdir(net, 0o755); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, net, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	addresses(t, c, Owner{"a", "eth0"})
	buf := make([]byte, 4096)
	n, err := unix.Read(watch, buf)
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for at := 0; at < n; {
		mask, length := binary.NativeEndian.Uint32(buf[at+4:]), int(binary.NativeEndian.Uint32(buf[at+12:]))
		name := strings.TrimRight(string(buf[at+unix.SizeofInotifyEvent:at+unix.SizeofInotifyEvent+length]), "\x00")
		at += unix.SizeofInotifyEvent + length
		if name == "10.0.0.2" {
			seen = true
			if mask&unix.IN_MOVED_TO == 0 {
				t.Errorf("%s is made empty (event %#x)", name, mask)
			}
		}
	}
	if !seen {
		t.Error("no event of the address was seen")
	}
	staged := filepath.Join(net, stagedFile)
	if err := os.WriteFile(staged, []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Del(Owner{"b", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(staged); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was staged is there after DEL: %v", err)
	}
}

func TestNothingThereIsSuccess(t *testing.T) {
	c := parse(t, filepath.Join(t.TempDir(), "none"), `"subnet":"10.0.0.0/24"`, "")
	if err := errors.Join(c.Del(Owner{"a", "eth0"}), c.GC(nil)); err != nil {
		t.Error(err)
	}
	if err := c.Check(Owner{"a", "eth0"}, nil); err == nil {
		t.Error("Check found something")
	}
}

func TestManyAtOnce(t *testing.T) {
	c := parse(t, t.TempDir(), `"subnet":"10.0.0.0/24"`, "")
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for i := range 50 {
		wg.Go(func() {
			result, err := c.Add(Owner{fmt.Sprint(i), "eth0"})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			a := result.IPs[0].Address.String()
			if seen[a] {
				t.Errorf("%s was given out twice", a)
			}
			seen[a] = true
		})
	}
	wg.Wait()
}

func TestParseRefuses(t *testing.T) {
	for _, ipam := range []string{
		``, `"subnet":"x"`, `"subnet":"10.0.0.1/24"`, `"subnet":"10.0.0.0/31"`, `"subnet":"::ffff:10.0.0.0/120"`,
		`"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"`, `"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"`,
		`"subnet":"10.0.0.0/24","gateway":"x"`, `"ranges":[[]]`, `"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]`,
		`"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/25"}]]`, `"subnet":"fd00::/64","rangeStart":"fd00::1%../../x"`,
	} {
		if _, err := Parse([]byte(`{"name":"net","ipam":{`+ipam+`}}`), "", ""); err == nil {
			t.Errorf("Parse(%s) succeeded", ipam)
		}
	}
	for _, conf := range []string{`{}`, `{"name":"../x","ipam":{"subnet":"10.0.0.0/24"}}`, `{"name":"x"}`, `[`} {
		if _, err := Parse([]byte(conf), "", ""); err == nil {
			t.Errorf("Parse(%s) succeeded", conf)
		}
	}
	for _, args := range []string{"IP=x", "IP=10.9.0.1", "IP=fd00::1%../x"} {
		if _, err := Parse([]byte(`{"name":"net","ipam":{"subnet":"10.0.0.0/24"}}`), args, ""); err == nil {
			t.Errorf("Parse with %s succeeded", args)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	got, err := parseResolvConf(strings.NewReader("# c\nnameserver 10.0.0.1\nnameserver fd00::1 ; x\nsearch a b\ndomain d\noptions ndots:5 edns0\n"))
	want := types.DNS{Nameservers: []string{"10.0.0.1", "fd00::1"}, Search: []string{"a", "b"}, Domain: "d", Options: []string{"ndots:5", "edns0"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parseResolvConf = %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"net","ipam":{"ranges":[[{"subnet":"10.0.0.0/30"}]]},"runtimeConfig":{"ips":["10.0.0.2"]}}`), "IP=10.0.0.2")
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		c, err := Parse(conf, args, "/data")
		if err != nil {
			return
		}
		for _, set := range c.sets {
			for i, r := range set {
				if !r.contains(r.start) || !r.contains(r.end) || r.start.Zone() != "" || r.end.Zone() != "" {
					t.Errorf("range %+v", r)
				}
				if _, next := set.after(i, r.start); set.find(next) == nil {
					t.Errorf("%s follows %s", next, r.start)
				}
			}
		}
		for _, a := range c.requested {
			if strings.ContainsRune(a.String(), '/') {
				t.Errorf("address %q", a)
			}
		}
	})
}
