package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/longshore/longshore/shim/api"
)

func TestLookupByPrefix(t *testing.T) {
	all := map[string]int{"abc1": 1, "abd2": 2, "x": 3}
	for id, want := range map[string]int{"abc1": 1, "abc": 1, "x": 3} {
		if got, err := lookup("pod", id, all); err != nil || got != want {
			t.Errorf("lookup %q = %d, %v; want %d", id, got, err, want)
		}
	}
	if _, err := lookup("pod", "nope", all); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "nope") {
		t.Errorf("unknown id: %v", err)
	}
	if _, err := lookup("pod", "ab", all); !errors.Is(err, ErrInvalid) {
		t.Errorf("ambiguous id: %v", err)
	}
	if _, err := lookup("pod", "", all); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty id: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]int{"": 15, "SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63} {
		if got, err := ParseSignal(name); err != nil || int(got) != want {
			t.Errorf("%q = %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"SIGNOPE", "0", "65", "SIGRTMIN+40", "SIGRTMINx"} {
		if got, err := ParseSignal(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q = %d, %v; want an error", name, got, err)
		}
	}
}

// layers makes image layers, topmost first, with the given files.
func layers(t *testing.T, contents ...map[string]string) []string {
	t.Helper()
	var dirs []string
	for _, files := range contents {
		dir := t.TempDir()
		dirs = append(dirs, dir)
		for name, data := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dirs
}

func TestResolveUser(t *testing.T) {
	image := layers(t,
		map[string]string{"etc/group": "root:x:0:\ncrew:x:2000:sailor\n"},
		map[string]string{"etc/passwd": "root:x:0:0::/:/\nsailor:x:1000:100::/:/\n", "etc/group": "hidden:x:1:sailor\n"})
	id := func(n int64) *int64 { return &n }
	for name, test := range map[string]struct {
		sec   Security
		image string
		want  string
	}{
		"nothing":       {Security{}, "", `{"uid":0,"gid":0,"groups":[0]}`},
		"by the image":  {Security{}, "sailor", `{"uid":1000,"gid":100,"groups":[100,2000]}`},
		"by name":       {Security{RunAsUsername: "sailor"}, "root", `{"uid":1000,"gid":100,"groups":[100,2000]}`},
		"by id":         {Security{RunAsUser: id(1000)}, "root", `{"uid":1000,"gid":100,"groups":[100,2000]}`},
		"unknown id":    {Security{RunAsUser: id(7)}, "", `{"uid":7,"gid":0,"groups":[0]}`},
		"with group":    {Security{RunAsUser: id(1000), RunAsGroup: id(5)}, "", `{"uid":1000,"gid":5,"groups":[5,2000]}`},
		"more groups":   {Security{RunAsUser: id(1000), Groups: []int64{9, 2000}}, "", `{"uid":1000,"gid":100,"groups":[100,9,2000]}`},
		"strict groups": {Security{RunAsUser: id(1000), Groups: []int64{9}, StrictGroups: true}, "", `{"uid":1000,"gid":100,"groups":[100,9]}`},
	} {
		got, err := resolveUser(&test.sec, test.image, image)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if data, _ := json.Marshal(got); string(data) != test.want {
			t.Errorf("%s: %s, want %s", name, data, test.want)
		}
	}
	for name, sec := range map[string]Security{
		"unknown name": {RunAsUsername: "nobody-here"}, "group alone": {RunAsGroup: id(5)}, "negative": {RunAsUser: id(-1)},
		"large group": {Groups: []int64{1 << 40}},
	} {
		if got, err := resolveUser(&sec, "", image); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v; want an error", name, got, err)
		}
	}
}

func TestAccountsCannotLeadOutOfTheLayer(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := layers(t, map[string]string{"etc/group": ""})
	if err := os.Symlink(outside, filepath.Join(image[0], "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := resolveUser(&Security{RunAsUsername: "evil"}, "", image); err == nil {
		t.Errorf("a link out of the layer was followed: %+v", u)
	}
}

func TestMergeResourcesKeepsWhatIsNotSet(t *testing.T) {
	before := &Resources{CPUShares: 100, MemoryLimit: 1 << 20, Unified: map[string]string{"a": "1"}}
	got := mergeResources(before, Resources{MemoryLimit: 2 << 20, Unified: map[string]string{"b": "2"}})
	if got.CPUShares != 100 || got.MemoryLimit != 2<<20 || got.Unified["a"] != "1" || got.Unified["b"] != "2" {
		t.Errorf("merged: %+v", got)
	}
	if len(before.Unified) != 1 {
		t.Error("the record before was changed")
	}
}

func TestRate(t *testing.T) {
	var r rate
	start := time.Now()
	if got := r.next(start, time.Second); got != nil {
		t.Error("one reading made a rate")
	}
	if got := r.next(start.Add(time.Millisecond), 2*time.Second); got != nil {
		t.Error("a millisecond made a rate")
	}
	got := r.next(start.Add(2*time.Second), 2*time.Second)
	if got == nil || *got != 500_000_000 {
		t.Errorf("rate = %v; want half a core", got)
	}
	if again := r.next(start.Add(2*time.Second+time.Millisecond), 5*time.Second); again != got {
		t.Errorf("a millisecond later: %v; want the same", again)
	}
	if got := r.next(start.Add(4*time.Second), time.Second); got != nil {
		t.Error("a count that began anew made a rate")
	}
}

func TestParseInterfaces(t *testing.T) {
	text := "Inter-|   Receive  |  Transmit\n face |bytes packets errs ...\n    lo: 9 9 9 0 0 0 0 0 9 9 9 0 0 0 0 0\n  eth0: 100 2 3 6 0 0 0 0 200 4 5 7 0 0 0 0\n"
	got := parseInterfaces([]byte(text))
	want := InterfaceUsage{Name: "eth0", RxBytes: 100, RxPackets: 2, RxErrors: 3, RxDropped: 6, TxBytes: 200, TxPackets: 4, TxErrors: 5, TxDropped: 7}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
}

func TestCappedKeepsTheBeginning(t *testing.T) {
	c := &capped{max: 5}
	for _, part := range []string{"abc", "def", "ghi"} {
		if n, err := c.Write([]byte(part)); n != 3 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if !bytes.Equal(c.kept.Bytes(), []byte("abcde")) {
		t.Errorf("kept %q", c.kept.Bytes())
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&DNS{Servers: []string{"10.0.0.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}})
	if want := "search a b\nnameserver 10.0.0.1\noptions ndots:5\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestSetExit(t *testing.T) {
	for _, test := range []struct {
		code     int
		oom      bool
		start    error
		reason   string
		wantCode int
	}{
		{0, false, nil, ReasonCompleted, 0}, {3, false, nil, ReasonError, 3}, {137, true, nil, ReasonOOMKilled, 137},
		{125, false, errors.New("no such file"), ReasonCannotRun, startErrorCode},
	} {
		r := Container{StartedAt: time.Now().Add(time.Hour)}
		exit := exitRecord(test.code, test.oom)
		setExit(&r, exit, test.start)
		if r.StartedAt.After(r.FinishedAt) {
			t.Errorf("%+v: started %v, finished %v", test, r.StartedAt, r.FinishedAt)
		}
		if r.Reason != test.reason || r.ExitCode != test.wantCode || r.State != ContainerExited {
			t.Errorf("%+v: %s, %d, %s", test, r.Reason, r.ExitCode, r.State)
		}
	}
}

func exitRecord(code int, oom bool) api.Exit {
	return api.Exit{Code: code, OOMKilled: oom, ExitedAtNS: time.Now().UnixNano()}
}
