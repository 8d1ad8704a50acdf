package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// place writes a record where the engine would look for it.
func place(t testing.TB, id, file string, data []byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestForeignRecordsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"torn": `{"id":"p"`, "another's": `{"id":"q","state":"ready"}`, "no state": `{"id":"p"}`, "unknown state": `{"id":"p","state":"flying"}`,
	} {
		if rec, err := readPod(place(t, "p", podFile, []byte(text))); err == nil {
			t.Errorf("pod, %s: accepted as %+v", name, rec)
		}
		if rec, err := readContainer(place(t, "p", containerFile, []byte(text))); err == nil {
			t.Errorf("container, %s: accepted as %+v", name, rec)
		}
	}
	if _, err := readContainer(place(t, "c", containerFile, []byte(`{"id":"c","state":"running","cgroupPath":"/a/../../b"}`))); err == nil || !strings.Contains(err.Error(), "cgroup") {
		t.Errorf("a cgroup path that climbs: %v", err)
	}
}

// FuzzRecords holds that no content of a record makes the engine panic, and
// that what is accepted can be written and read again.
func FuzzRecords(f *testing.F) {
	for _, v := range []any{Pod{ID: "x", State: PodReady}, Container{ID: "x", State: ContainerRunning, CgroupPath: "/a"}} {
		data, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	e := &Engine{cfg: Config{RunDir: "/run/x", StateDir: "/lib/x", CgroupParent: "/longshore"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		if rec, err := readPod(place(t, "x", podFile, data)); err == nil {
			if s := e.sandboxOf(rec); s.ID != "x" || strings.Contains(s.CgroupPath, "..") && !strings.Contains(rec.Config.CgroupParent, "..") {
				t.Errorf("sandbox %+v", s)
			}
			again, err := json.Marshal(&rec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readPod(place(t, "x", podFile, again)); err != nil {
				t.Errorf("own record refused: %v", err)
			}
		}
		if rec, err := readContainer(place(t, "x", containerFile, data)); err == nil {
			_ = e.createRequest(rec, nil)
			_, _ = ParseSignal(rec.StopSignal)
		}
	})
}
