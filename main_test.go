package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"socket = '/x'\n\nbogus = 1\n":                              `line 3: unknown key "bogus"`,
		"[pods]\nshm = 1\n":                                         `line 2: unknown key "pods.shm"`,
		"idle_shims = 'two'\n":                                      "line 1",
		"run_dir = 'relative'\n":                                    "run_dir",
		"[handlers.x]\nruntime_type = 'kata'\n":                     "handlers.x.runtime_type",
		"[handlers.x]\nuser_namespaces = 'yes'\n":                   "handlers.x.user_namespaces",
		"[handlers.x]\ncgroup_namespace = 'pod'\n":                  "handlers.x.cgroup_namespace",
		"[handlers.x]\nshim_per = 'node'\n":                         "handlers.x.shim_per",
		"[handlers.x]\nseccomp = 'maybe'\n":                         "handlers.x.seccomp",
		"[handlers.x]\noci_runtime = 'crun'\n":                      "handlers.x.oci_runtime",
		"[handlers.x]\nannotations = ['[']\n":                       "handlers.x.annotations",
		"[handlers.x]\nbogus = 1\n":                                 `unknown key "handlers.x.bogus"`,
		"[handlers.'X y']\n":                                        "RuntimeClass",
		"shim_dirs = ['relative']\n":                                "shim_dirs",
		"[cdi]\nspec_dirs = ['relative']\n":                         "cdi.spec_dirs",
		"[nri]\nsocket = 'relative'\n":                              "nri.socket",
		"[nri]\nrequest_timeout = '0s'\n":                           "nri: a time-out",
		"[nri]\nrequest_timeout = 'soon'\n":                         "line 2",
		"idle_shims = -1\n":                                         "idle_shims",
		"[pods]\nseccomp = 'maybe'\n":                               "pods.seccomp",
		"[pods]\ncgroup_driver = 'x'\n":                             "pods.cgroup_driver",
		"[pods]\ncgroup_driver = 'systemd'\ncgroup_parent = '/a'\n": "pods.cgroup_parent",
		"socket = \n":                                               "line 1",
		"[network]\nconf_dir = 'etc'\n":                             "network.conf_dir",
	} {
		if _, err := loadConfig(write(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := loadConfig("/no/such/file"); err == nil {
		t.Error("a file that was named and is not there was accepted")
	}
}

func TestPrintedConfigReadsBack(t *testing.T) {
	cfg := defaultConfig()
	cfg.Images.Registries = map[string]RegistryConfig{"docker.io": {Mirrors: []string{"http://127.0.0.1:5000"}}}
	text := cfg.String()
	again, err := loadConfig(write(t, text))
	if err != nil {
		t.Fatal(err)
	}
	if again.String() != text {
		t.Errorf("read back:\n%s\nwritten:\n%s", again.String(), text)
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "socket") {
			return
		}
	}
	t.Error("the printed configuration has no socket")
}

func TestRunRefusesWhatItDoesNotKnow(t *testing.T) {
	var out bytes.Buffer
	for _, args := range [][]string{nil, {"frobnicate"}, {"image"}, {"image", "import"}, {"serve", "extra"}} {
		if err := run(context.Background(), args, &out); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	if err := run(context.Background(), []string{"version"}, &out); err != nil || out.Len() == 0 {
		t.Errorf("version: %v, %q", err, out.String())
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(path)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
