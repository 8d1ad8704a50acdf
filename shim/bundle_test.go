package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/longshore/longshore/internal/atomicfile"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func writeBundle(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, configFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const withProfile = `{"process":{"args":["a"],"cwd":"/"},"linux":{"cgroupsPath":"/x","seccomp":
	{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]},"maskedPaths":["/proc/keys"]}}`

func TestBundleIsRead(t *testing.T) {
	dir := writeBundle(t, withProfile)
	var want specs.Spec
	if err := atomicfile.ReadJSON(filepath.Join(dir, configFile), &want); err != nil {
		t.Fatal(err)
	}
	t.Setenv(seccompEnv, "")
	got, filter, err := readBundle(dir)
	if err != nil || filter != nil || !reflect.DeepEqual(got, &want) {
		t.Errorf("without a cache: %+v, %v, %v", got, filter, err)
	}
	cache := filepath.Join(t.TempDir(), "seccomp")
	t.Setenv(seccompEnv, cache)
	want.Linux.Seccomp = nil
	for range 2 {
		got, filter, err = readBundle(dir)
		if err != nil || filter == nil || !reflect.DeepEqual(got, &want) {
			t.Errorf("with a cache: %+v, %v, %v", got, filter, err)
		}
	}
	if files, err := os.ReadDir(cache); err != nil || len(files) != 1 {
		t.Errorf("cached: %v, %v", files, err)
	}
	for _, profile := range []string{`,"seccomp":null`, ""} {
		got, filter, err = readBundle(writeBundle(t, `{"linux":{"cgroupsPath":"/x"`+profile+`}}`))
		if err != nil || filter != nil || got.Linux.CgroupsPath != "/x" {
			t.Errorf("without a profile: %+v, %v, %v", got, filter, err)
		}
	}
}

func TestBadBundleIsRefused(t *testing.T) {
	t.Setenv(seccompEnv, t.TempDir())
	for text, want := range map[string]string{
		"": "with 0 bytes", "{": "not JSON", `{"process":1}`: "process: value of another type",
		`{"linux":{"seccomp":{"defaultAction":"NO"}}}`: `linux.seccomp: compile seccomp profile: default action "NO"`,
		`{"linux":{"seccomp":7}}`:                      "linux",
	} {
		if _, _, err := readBundle(writeBundle(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, _, err := readBundle(t.TempDir()); err == nil || !strings.Contains(err.Error(), configFile+": no such file") {
		t.Errorf("no file: %v", err)
	}
}
