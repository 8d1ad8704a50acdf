package cni

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoad(t *testing.T) {
	const bridge = `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"portmap"}]}`
	for name, tc := range map[string]struct {
		files map[string]string
		want  string // the network's name
		err   string
	}{
		"first by name":       {map[string]string{"20-b.conflist": strings.Replace(bridge, `"a"`, `"b"`, 1), "10-a.conflist": bridge, "00-readme.txt": "x"}, "a", ""},
		"one plugin":          {map[string]string{"1.conf": `{"cniVersion":"0.3.1","name":"single","type":"ptp"}`}, "single", ""},
		"list named .json":    {map[string]string{"1.json": bridge}, "a", ""},
		"plugins as files":    {map[string]string{"1.conflist": `{"cniVersion":"1.1.0","name":"a"}`, "a/x.conf": `{"type":"ptp"}`}, "a", ""},
		"broken first":        {map[string]string{"1.conflist": `{"name":`, "2.conflist": bridge}, "", "1.conflist: "},
		"no name":             {map[string]string{"1.conflist": `{"plugins":[{"type":"bridge"}]}`}, "", "no name"},
		"a name for a path":   {map[string]string{"1.conflist": `{"name":"../x","plugins":[{"type":"bridge"}]}`}, "", "1.conflist"},
		"no type":             {map[string]string{"1.conflist": `{"name":"a","plugins":[{}]}`}, "", "type"},
		"no plugins":          {map[string]string{"1.conflist": `{"name":"a"}`}, "", "no plugin"},
		"newer specification": {map[string]string{"1.conflist": `{"cniVersion":"9.0.0","name":"a","plugins":[{"type":"bridge"}]}`}, "", "newer"},
		"version is no text":  {map[string]string{"1.conflist": `{"cniVersion":7,"name":"a","plugins":[{"type":"bridge"}]}`}, "", "cniVersion"},
		"too large":           {map[string]string{"1.conflist": bridge + strings.Repeat(" ", maxConfig)}, "", "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tc.files)
			n, err := Load(Config{ConfDir: dir})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), dir) {
					t.Fatalf("Load = %v, want an error with %q and the file", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.Name != tc.want || filepath.Dir(n.Source) != dir {
				t.Errorf("Load = %+v", n)
			}
			list, err := libcni.NetworkConfFromBytes(n.Raw)
			if err != nil || len(list.Plugins) != len(n.types) || list.Name != tc.want {
				t.Errorf("raw %s: %v", n.Raw, err)
			}
		})
	}
}

func TestDefaultNetwork(t *testing.T) {
	n, err := Load(Config{ConfDir: filepath.Join(t.TempDir(), "none"), DataDir: "/data", DefaultSubnets: []string{"10.1.0.9/24", "fd00::/64"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Status(); err != nil || n.Source != BuiltIn || n.Name != DefaultName {
		t.Errorf("%+v, %v", n, err)
	}
	for _, part := range []string{`"10.1.0.0/24"`, `"fd00::/64"`, `"::/0"`, `"0.0.0.0/0"`, `"/data"`, `"portmap"`} {
		if !strings.Contains(string(n.Raw), part) {
			t.Errorf("%s lacks %s", n.Raw, part)
		}
	}
	if n, err = Load(Config{ConfDir: t.TempDir()}); err != nil || !strings.Contains(string(n.Raw), "10.88.0.0/16") {
		t.Errorf("Load = %+v, %v", n, err)
	}
	for _, bad := range [][]string{{"x"}, {"10.0.0.0/8", "10.1.0.0/16"}, {"10.0.0.0/31"}, {"fd00::/127"}, {"10.0.0.0/33"}} {
		if _, err := Load(Config{ConfDir: t.TempDir(), DefaultSubnets: bad}); err == nil {
			t.Errorf("default subnets %v were taken", bad)
		}
	}
	if _, err := Load(Config{ConfDir: t.TempDir(), RequireConf: true}); !errors.Is(err, ErrNoConfig) {
		t.Errorf("Load = %v", err)
	}
}

func TestStatusNamesWhatIsMissing(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"1.conflist": `{"name":"a","plugins":[{"type":"flannel"},{"type":"portmap"},{"type":"gone"}]}`})
	write(t, bin, map[string]string{"flannel": "#!/bin/sh"})
	n, err := Load(Config{ConfDir: dir, BinDirs: []string{bin}})
	if err != nil {
		t.Fatal(err)
	}
	err = n.Status()
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "gone") || strings.Contains(err.Error(), "flannel") {
		t.Errorf("Status = %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}`))
	f.Add([]byte(`{"cniVersions":["0.4.0","1.0.0"],"name":"a","plugins":[{"type":"x","ipam":{}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "1.conflist"), data, 0o644); err != nil {
			t.Fatal(err)
		}
		n, err := Load(Config{ConfDir: dir})
		if err != nil {
			return
		}
		if !json.Valid(n.Raw) || n.Name == "" || strings.ContainsRune(n.Name, '/') {
			t.Errorf("%+v", n)
		}
	})
}
