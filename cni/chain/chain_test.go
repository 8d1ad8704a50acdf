package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// recorder is both this package's [Exec] and libcni's.
type recorder struct {
	version.PluginDecoder
	calls  []call
	answer func(command, kind string) ([]byte, error)
}

type call struct {
	Path  string
	Stdin any
	Env   []string
}

func (r *recorder) FindInPath(name string, dirs []string) (string, error) {
	return filepath.Join(dirs[0], name), nil
}

func (r *recorder) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	c := call{Path: path}
	if err := json.Unmarshal(stdin, &c.Stdin); err != nil {
		return nil, err
	}
	command := ""
	for _, pair := range environ {
		if strings.HasPrefix(pair, "CNI_") {
			c.Env = append(c.Env, pair)
		}
		if after, ok := strings.CutPrefix(pair, "CNI_COMMAND="); ok {
			command = after
		}
	}
	slices.Sort(c.Env)
	r.calls = append(r.calls, c)
	return r.answer(command, filepath.Base(path))
}

var _ invoke.Exec = (*recorder)(nil)

const result100 = `{"cniVersion":"%s","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"version":"4","interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],"dns":{}}`

var lists = map[string]string{
	"current": `{"cniVersion":"1.1.0","name":"net","loadOnlyInlinedPlugins":true,"plugins":[{"type":"one","x":[1,{"y":null}]},{"type":"two","capabilities":{"mac":true,"ips":false}}]}`,
	"1.0":     `{"cniVersion":"1.0.0","name":"net","disableGC":"false","plugins":[{"type":"one","name":"other","cniVersion":"0.2.0"}]}`,
	"0.4":     `{"cniVersion":"0.4.0","name":"net","disableCheck":true,"plugins":[{"type":"one"},{"type":"two","capabilities":{"portMappings":true}}]}`,
	"0.3.1":   `{"cniVersion":"0.3.1","name":"net","plugins":[{"type":"one"},{"type":"two"}]}`,
	"no gc":   `{"cniVersion":"1.1.0","name":"net","disableGC":"True","plugins":[{"type":"one"}]}`,
	"0.2":     `{"cniVersion":"0.2.0","name":"net","plugins":[{"type":"one"}]}`,
	"none":    `{"name":"net","plugins":[{"type":"one"}]}`,
}

// TestLikeLibcni runs one life of an attachment through libcni and through
// this package: the plugins must see the same.
func TestLikeLibcni(t *testing.T) {
	for name, list := range lists {
		t.Run(name, func(t *testing.T) {
			answer := func(command, kind string) ([]byte, error) {
				var head struct{ CNIVersion string }
				if err := json.Unmarshal([]byte(list), &head); err != nil {
					return nil, err
				}
				if v := head.CNIVersion; v == "" || v == "0.2.0" {
					return []byte(`{"ip4":{"ip":"10.1.2.3/24"}}`), nil
				}
				return fmt.Appendf(nil, result100, head.CNIVersion), nil
			}
			theirs, ours := &recorder{answer: answer}, &recorder{answer: answer}
			theirErrors, ourErrors := withLibcni(t, theirs, list), withOurs(t, ours, list)
			if len(theirs.calls) != len(ours.calls) {
				t.Fatalf("%d calls, libcni makes %d", len(ours.calls), len(theirs.calls))
			}
			for i, want := range theirs.calls {
				if got := ours.calls[i]; !reflect.DeepEqual(got, want) {
					t.Errorf("call %d:\n%v, libcni makes\n%v", i, got, want)
				}
			}
			if !slices.Equal(theirErrors, ourErrors) {
				t.Errorf("steps that fail: %v, with libcni %v", ourErrors, theirErrors)
			}
		})
	}
}

var capabilities = map[string]any{"mac": "02:00:00:00:00:01", "ips": []string{"10.1.2.9"}, "portMappings": []map[string]any{{"hostPort": 80}}}

func withLibcni(t *testing.T, exec *recorder, text string) (failed []bool) {
	l, err := libcni.NetworkConfFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if l.CNIVersion == "" {
		l.CNIVersion = "0.1.0" // as package cni completes it
	}
	dir := t.TempDir()
	c := libcni.NewCNIConfigWithCacheDir([]string{"/a", "/b"}, dir, exec)
	rt := func(id string) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: id, NetNS: "/ns", IfName: "eth0", Args: [][2]string{{"K", "V"}, {"L", ""}}, CapabilityArgs: capabilities}
	}
	ctx := t.Context()
	_, err1 := c.AddNetworkList(ctx, l, rt("a"))
	_, err2 := c.AddNetworkList(ctx, l, rt("b"))
	return []bool{
		err1 != nil, err2 != nil, c.CheckNetworkList(ctx, l, rt("a")) != nil, c.GetStatusNetworkList(ctx, l) != nil,
		c.GCNetworkList(ctx, l, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}}) != nil,
		c.DelNetworkList(ctx, l, rt("a")) != nil, c.DelNetworkList(ctx, l, rt("a")) != nil,
	}
}

func withOurs(t *testing.T, exec *recorder, text string) (failed []bool) {
	l, err := ParseList([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &Runner{Exec: exec, BinDirs: []string{"/a", "/b"}, CacheDir: dir}
	rt := func(id string) *Attachment {
		return &Attachment{ContainerID: id, NetNS: "/ns", IfName: "eth0", Args: [][2]string{{"K", "V"}, {"L", ""}}, Capabilities: capabilities}
	}
	ctx := t.Context()
	_, err1 := r.Add(ctx, l, rt("a"))
	_, err2 := r.Add(ctx, l, rt("b"))
	failed = []bool{
		err1 != nil, err2 != nil, r.Check(ctx, l, rt("a")) != nil, r.Status(ctx, l) != nil,
		r.GC(ctx, l, []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}) != nil,
		r.Del(ctx, l, rt("a")) != nil, r.Del(ctx, l, rt("a")) != nil,
	}
	if left, err := os.ReadDir(filepath.Join(dir, "results")); err != nil || len(left) > 0 && !l.disableGC {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
	return failed
}

// TestCacheIsLibcnis writes the cache with libcni and deletes with ours.
func TestCacheIsLibcnis(t *testing.T) {
	answer := func(string, string) ([]byte, error) { return fmt.Appendf(nil, result100, "1.1.0"), nil }
	exec := &recorder{answer: answer}
	theirs, err := libcni.NetworkConfFromBytes([]byte(lists["current"]))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := libcni.NewCNIConfigWithCacheDir([]string{"/a"}, dir, exec)
	rt := &libcni.RuntimeConf{ContainerID: "a", NetNS: "/ns", IfName: "eth0"}
	if _, err := c.AddNetworkList(t.Context(), theirs, rt); err != nil {
		t.Fatal(err)
	}
	ours, err := ParseList([]byte(lists["current"]))
	if err != nil {
		t.Fatal(err)
	}
	r := &Runner{Exec: exec, BinDirs: []string{"/a"}, CacheDir: dir}
	exec.calls = nil
	if err := r.Del(t.Context(), ours, &Attachment{ContainerID: "a", NetNS: "/ns", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if len(exec.calls) != 2 || exec.calls[0].Path != "/a/two" || exec.calls[0].Stdin.(map[string]any)["prevResult"] == nil {
		t.Errorf("calls of DEL: %v", exec.calls)
	}
	if _, err := r.Add(t.Context(), ours, &Attachment{ContainerID: "a", NetNS: "/ns", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if cached, err := c.GetNetworkListCachedResult(theirs, rt); err != nil || cached == nil {
		t.Errorf("libcni reads %v, %v", cached, err)
	}
}

func TestDelWithABrokenCache(t *testing.T) {
	exec := &recorder{answer: func(string, string) ([]byte, error) { return nil, nil }}
	l, err := ParseList([]byte(lists["current"]))
	if err != nil {
		t.Fatal(err)
	}
	r := &Runner{Exec: exec, BinDirs: []string{"/a"}, CacheDir: t.TempDir()}
	a := &Attachment{ContainerID: "a", IfName: "eth0"}
	if err := os.Mkdir(r.cacheDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"", "{", `{"kind":"other"}`, `{"kind":"cniCacheV1","result":{"cniVersion":"9.9.9"}}`} {
		if err := os.WriteFile(r.cacheFile(l, a), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.Del(t.Context(), l, a); err != nil {
			t.Errorf("DEL with %q in the cache: %v", content, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "A-b_c.9": true, "": false, ".a": false, "-a": false, "a/b": false, "a b": false, "ä": false, "a\n": false} {
		if ValidName(name) != ok {
			t.Errorf("ValidName(%q) = %v", name, !ok)
		}
	}
	for name, ok := range map[string]bool{"eth0": true, "": false, ".": false, "..": false, "a/b": false, "a:b": false, "a\tb": false, "sixteen-letters.": false, "fifteen-letters": true} {
		if validInterface(name) != ok {
			t.Errorf("validInterface(%q) = %v", name, !ok)
		}
	}
}

func TestParseListRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON": "x", "no name": `{"plugins":[{"type":"a"}]}`, "a path as name": `{"name":"../x","plugins":[{"type":"a"}]}`,
		"no plugins": `{"name":"a"}`, "no type": `{"name":"a","plugins":[{}]}`, "null": `{"name":"a","plugins":[null]}`,
		"flag": `{"name":"a","disableGC":"maybe","plugins":[{"type":"a"}]}`, "capabilities": `{"name":"a","plugins":[{"type":"a","capabilities":1}]}`,
	} {
		if l, err := ParseList([]byte(text)); err == nil {
			t.Errorf("%s: parsed as %v", name, l)
		}
	}
}

func TestFindInPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/p", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := FindInPath("p", []string{"/nonexistent", dir}); got != dir+"/p" || err != nil {
		t.Errorf("FindInPath = %q, %v", got, err)
	}
	if _, err := FindInPath("q", []string{dir}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := FindInPath("../p", []string{dir}); err == nil {
		t.Error("a path was taken for a name")
	}
}

// FuzzDecodeResult: whatever a plugin prints is a result or an error, and what
// libcni accepts is accepted.
func FuzzDecodeResult(f *testing.F) {
	for _, seed := range []string{"", "null", "{}", "[]", `{"cniVersion":1}`, `{"cniVersion":"0.2.0","ip4":{}}`, fmt.Sprintf(result100, "1.1.0")} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		result, err := DecodeResult(out, "1.0.0")
		if err == nil && result == nil {
			t.Fatal("no result and no error")
		}
		if err != nil {
			return
		}
		if _, err := json.Marshal(result); err != nil {
			t.Fatal(err)
		}
	})
}
