package bundle

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
	if err := os.WriteFile(filepath.Join(dir, ConfigFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const withProfile = `{"process":{"args":["a"],"cwd":"/"},"linux":{"cgroupsPath":"/x","seccomp":
	{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]},"maskedPaths":["/proc/keys"]}}`

func TestBundleIsRead(t *testing.T) {
	dir := writeBundle(t, withProfile)
	var want specs.Spec
	if err := atomicfile.ReadJSON(filepath.Join(dir, ConfigFile), &want); err != nil {
		t.Fatal(err)
	}
	want.Linux.Seccomp = nil
	cache := filepath.Join(t.TempDir(), "seccomp")
	for _, cache := range []string{"", cache, cache} {
		got, filter, err := Read(dir, cache)
		if err != nil || filter == nil || !reflect.DeepEqual(got, &want) {
			t.Errorf("with the cache %q: %+v, %v, %v", cache, got, filter, err)
		}
	}
	if files, err := os.ReadDir(cache); err != nil || len(files) != 1 {
		t.Errorf("cached: %v, %v", files, err)
	}
	for _, profile := range []string{`,"seccomp":null`, ""} {
		got, filter, err := Read(writeBundle(t, `{"linux":{"cgroupsPath":"/x"`+profile+`}}`), cache)
		if err != nil || filter != nil || got.Linux.CgroupsPath != "/x" {
			t.Errorf("without a profile: %+v, %v, %v", got, filter, err)
		}
	}
}

func TestBadBundleIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"": "with 0 bytes", "{": "not JSON", `{"process":1}`: "process: value of another type",
		`{"linux":{"seccomp":{"defaultAction":"NO"}}}`: `linux.seccomp: compile seccomp profile: default action "NO"`,
		`{"linux":{"seccomp":7}}`:                      "linux",
	} {
		if _, _, err := Read(writeBundle(t, text), t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, _, err := Read(t.TempDir(), ""); err == nil || !strings.Contains(err.Error(), ConfigFile+": no such file") {
		t.Errorf("no file: %v", err)
	}
}
