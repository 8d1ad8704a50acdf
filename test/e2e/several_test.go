package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
)

// furtherBudget is the memory in KiB that a container may cost beside the
// first one of its shim.
const furtherBudget = 64

// execBudget is the memory in KiB that a process run in a container may leave
// in its shim, until garbage is collected.
const execBudget = 16

// TestShimHoldsSeveral makes containers in one shim, as containerd does for
// the containers of a pod: each is cheap, and ends for itself.
func TestShimHoldsSeveral(t *testing.T) {
	needRoot(t)
	h := newHarness(t)
	const further = 6
	for i := range 1 + further {
		h.run(fmt.Sprint("c", i))
		if i == 0 {
			h.mark()
		}
	}
	if grown := h.grown(); grown > further*furtherBudget {
		t.Errorf("%d further containers cost %d KiB, more than %d each", further, grown, furtherBudget)
	} else {
		t.Logf("%d further containers cost %d KiB", further, grown)
	}
	h.stop("c3")
	if state, err := h.shim.State(h.ctx, "c4"); err != nil || api.Status(state.Status) != api.StatusRunning {
		t.Errorf("another container after one has gone: %+v, %v", state, err)
	}
	if _, err := h.shim.State(h.ctx, "c3"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("the container that has gone: %v", err)
	}
	for _, id := range []string{"c0", "c1", "c2", "c4", "c5", "c6"} {
		h.stop(id)
	}
}

// TestExecLeavesLittle holds what a probe every few seconds costs a shim.
func TestExecLeavesLittle(t *testing.T) {
	needRoot(t)
	h := newHarness(t)
	h.run("c")
	const few, many = 5, 20
	h.execs(few) // what the first needs, the others find
	h.mark()
	h.execs(many)
	if grown := h.grown(); grown > many*execBudget {
		t.Errorf("%d execs leave %d KiB, more than %d each", many, grown, execBudget)
	} else {
		t.Logf("%d execs leave %d KiB", many, grown)
	}
	h.stop("c")
}

// TestOOMNeverTouchesTheShim: the container runs out of memory again and again,
// by exec and by its first process.
func TestOOMNeverTouchesTheShim(t *testing.T) {
	needRoot(t)
	h := newHarness(t)
	h.memory = 32 << 20
	h.run("c")
	groups, err := os.ReadFile(filepath.Join("/proc", h.pid, "cgroup"))
	if err != nil || strings.Contains(string(groups), "longshore-several") {
		t.Errorf("the shim is in the container's cgroup: %s, %v", groups, err)
	}
	const times = 20
	eat := []byte(`{"args":["/guest","eat","200"],"cwd":"/","env":["PATH=/"],"user":{"uid":0,"gid":0},"oomScoreAdj":1000}`)
	for i := range times {
		id := fmt.Sprint("oom", i)
		if _, err := h.shim.Run(h.ctx, "c", id, eat, client.Stdio{}, false); err != nil {
			t.Fatal(err)
		}
		if exit, err := h.shim.Wait(h.ctx, "c", id); err != nil || exit.Code != 137 {
			t.Fatalf("exec %d: %+v, %v", i, exit, err)
		}
		if state, err := h.shim.State(h.ctx, "c"); err != nil || api.Status(state.Status) != api.StatusRunning {
			t.Fatalf("after %d: %+v, %v", i, state, err)
		}
	}
	h.stop("c")
	h.args = []string{"/guest", "eat", "200"}
	h.run("glutton")
	if exit, err := h.shim.Wait(h.ctx, "glutton", ""); err != nil || exit.Code != 137 {
		t.Fatalf("first process: %+v, %v", exit, err)
	}
	var record api.Exit
	data, err := os.ReadFile(filepath.Join(h.dir, "glutton", api.ExitFile))
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil || !record.OOMKilled {
		t.Errorf("exit record: %s, %v", data, err)
	}
	if err := h.shim.Delete(h.ctx, "glutton"); err != nil {
		t.Error(err)
	}
}

// harness drives a shim without a daemon.
type harness struct {
	t     *testing.T
	ctx   context.Context
	dir   string
	shim  *client.Shim
	pid   string // the shim's
	dirty int    // KiB, at the last mark
	next  int

	args   []string // of the next container
	memory int      // its limit in bytes; 0 is none
}

func newHarness(t *testing.T) *harness {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	h := &harness{t: t, ctx: ctx, dir: t.TempDir(), args: []string{"/guest", "pause"}}
	pool, err := client.NewPool(filepath.Join(bin, "longshore-shim"), filepath.Join(h.dir, "shims"), 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if h.shim, err = pool.Get(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.shim.Shutdown(context.Background())
		h.shim.Close()
	})
	root := filepath.Join(h.dir, "root")
	for _, name := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", filepath.Join(bin, "guest"), root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	return h
}

// run starts a container that waits for a signal.
func (h *harness) run(id string) {
	h.t.Helper()
	type object = map[string]any
	spec := object{
		"ociVersion": "1.3.0",
		"root":       object{"path": filepath.Join(h.dir, "root"), "readonly": true},
		"process":    object{"args": h.args, "cwd": "/", "env": []string{"PATH=/"}, "user": object{"uid": 0, "gid": 0}},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"ro"}},
		},
		"linux": object{
			"cgroupsPath": fmt.Sprintf("/longshore-several-%d-%s", os.Getpid(), id),
			"namespaces":  []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}},
			"maskedPaths": []string{"/proc/kcore"}, "readonlyPaths": []string{"/proc/sys"},
		},
	}
	if h.memory > 0 {
		spec["linux"].(object)["resources"] = object{"memory": object{"limit": h.memory}}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	bundle := filepath.Join(h.dir, id)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		h.t.Fatal(err)
	}
	pid, err := h.shim.Create(h.ctx, &api.CreateTaskRequest{ID: id, Bundle: bundle, Stdout: api.LogScheme + filepath.Join(bundle, "log")})
	if err == nil {
		err = h.shim.Start(h.ctx, id)
	}
	if err != nil {
		h.t.Fatalf("container %s: %v", id, err)
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		h.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	h.pid = strings.Fields(after)[1]
}

func (h *harness) stop(id string) {
	h.t.Helper()
	err := h.shim.Kill(h.ctx, id, "", syscall.SIGKILL, true)
	if err == nil {
		_, err = h.shim.Wait(h.ctx, id, "")
	}
	if err == nil {
		err = h.shim.Delete(h.ctx, id)
	}
	if err != nil {
		h.t.Errorf("stop %s: %v", id, err)
	}
}

// execs runs processes that end well, one after the other.
func (h *harness) execs(n int) {
	h.t.Helper()
	for range n {
		h.next++
		id := fmt.Sprint("e", h.next)
		_, err := h.shim.Run(h.ctx, "c", id, []byte(`{"args":["/guest","true"],"cwd":"/","env":["PATH=/"],"user":{"uid":0,"gid":0}}`), client.Stdio{}, false)
		if err != nil {
			h.t.Fatal(err)
		}
		if exit, err := h.shim.Wait(h.ctx, "c", id); err != nil || exit.Code != 0 {
			h.t.Fatalf("exec: %+v, %v", exit, err)
		}
	}
}

func (h *harness) used() int {
	h.t.Helper()
	kib, err := privateDirty(h.pid)
	if err != nil {
		h.t.Fatal(err)
	}
	return kib
}

func (h *harness) mark()      { h.dirty = h.used() }
func (h *harness) grown() int { return h.used() - h.dirty }
