package engine

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/longshore/longshore/internal/leanjson"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzEnvironmentSurvivesJSON: the shim reads the very bytes, in a
// specification and in an exec's process, and every reader of JSON reads text.
func FuzzEnvironmentSurvivesJSON(f *testing.F) {
	for _, s := range []string{"", "plain", "caf\xe9", "\xff\xfe\x80", "é\xc3", `quo"te\`, "\xed\xb2\x80", "\ufffd\xff<&>\u2028", `\udc80`} {
		f.Add(s, "other")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		env := []string{"A=" + a, "B=" + b}
		data, err := json.Marshal(encodable(&specs.Process{Env: env, Cwd: "/"}))
		if err != nil {
			t.Fatal(err)
		}
		var process specs.Process
		if err := leanjson.Unmarshal(data, &process); err != nil || !slices.Equal(process.Env, env) || process.Cwd != "/" {
			t.Errorf("%q: %q, %v", env, process.Env, err)
		}
		if !utf8.Valid(data) || !json.Valid(data) || bytes.Contains(data, []byte{0}) {
			t.Errorf("%q is written as %q", env, data)
		}
		for _, entry := range textEnv(env) {
			if !utf8.ValidString(entry) {
				t.Errorf("text of %q: %q", env, entry)
			}
		}
	})
}

func TestSpecKeepsItsEnvironment(t *testing.T) {
	e := &Engine{cfg: Config{RunDir: t.TempDir()}}
	if err := os.MkdirAll(e.cfg.containerDir("c"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, env := range [][]string{{"A=plain"}, {"A=caf\xe9", "B=x"}} {
		spec := &specs.Spec{Version: "1.3.0", Process: &specs.Process{Args: []string{"x"}, Env: env, Cwd: "/w"}, Linux: &specs.Linux{CgroupsPath: "/g"}}
		if err := e.writeSpec("c", spec); err != nil {
			t.Fatal(err)
		}
		got, err := e.readSpec("c")
		if err != nil || !slices.Equal(got.Process.Env, env) || got.Process.Cwd != "/w" || got.Linux.CgroupsPath != "/g" || got.Version != "1.3.0" {
			t.Errorf("%q: %+v, %v", env, got, err)
		}
	}
	path := filepath.Join(e.cfg.containerDir("c"), configFile)
	if err := os.WriteFile(path, []byte(`{"process":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.readSpec("c"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged specification: %v", err)
	}
}
