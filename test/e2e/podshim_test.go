package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	commands["shims"] = verb(shims)
	commands["killshimof"] = verb(killShimOf)
}

// shims N NAME... fails unless the parents of containers' processes are N
// processes, and their records name as many shims.
func shims(s *session, _ context.Context, args []string, out io.Writer) error {
	var pids, sockets []string
	for _, name := range args[1:] {
		pid, socket, err := s.shimOf(name)
		if err != nil {
			return err
		}
		if pids = append(pids, strconv.Itoa(pid)); socket != "" {
			sockets = append(sockets, socket)
		}
	}
	for _, set := range [][]string{pids, sockets} {
		slices.Sort(set)
		if different := slices.Compact(slices.Clone(set)); strconv.Itoa(len(different)) != args[0] {
			return fmt.Errorf("shims of %s: %s", args[1:], different)
		}
	}
	fmt.Fprintln(out, pids[0])
	return nil
}

// killShimOf NAME kills the parent of a container's process.
func killShimOf(s *session, _ context.Context, args []string, _ io.Writer) error {
	pid, _, err := s.shimOf(args[0])
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// shimOf gives the process of a container's shim, and its socket by the record.
func (s *session) shimOf(name string) (int, string, error) {
	data, err := os.ReadFile(s.node.Path("run", "containers", s.ids[name], "container.json"))
	if err != nil {
		return 0, "", err
	}
	var record struct {
		Pid  int
		Shim string
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return 0, "", err
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(record.Pid), "stat"))
	if err != nil {
		return 0, "", err
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	pid, err := strconv.Atoi(strings.Fields(after)[1])
	return pid, record.Shim, err
}

// perPod is a handler with one shim for each pod.
const perPod = "[handlers.perpod]\nshim_per = \"pod\"\n"

// TestPodShimTakesLess compares the memory of the shims of two pods of three
// containers, one with a shim for all of them.
func TestPodShimTakesLess(t *testing.T) {
	needRoot(t)
	s, ctx := newSession(t, perPod)
	figures := map[string]int{}
	for _, handler := range []string{"longshore", "perpod"} {
		if err := pod(s, ctx, []string{handler, "-", handler}, io.Discard); err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for i := range 3 {
			name := fmt.Sprint(handler, i)
			if err := runVerb(s, ctx, []string{name, handler, "--", "pause"}, io.Discard); err != nil {
				t.Fatal(err)
			}
			pid, _, err := s.shimOf(name)
			if err != nil {
				t.Fatal(err)
			}
			seen[pid] = true
		}
		for pid := range seen {
			kib, err := privateDirty(strconv.Itoa(pid))
			if err != nil {
				t.Fatal(err)
			}
			pss, err := rollup(strconv.Itoa(pid), "Pss:")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: shim %d of %d: %d KiB private and dirty, PSS %d KiB", handler, pid, len(seen), kib, pss)
			figures[handler] += kib
		}
	}
	if figures["perpod"]*2 > figures["longshore"] {
		t.Errorf("a shim for three containers has %d KiB, three of them %d", figures["perpod"], figures["longshore"])
	}
}

// podShimKills is at how many moments of the containers' life something is
// killed, podShimStep apart.
const (
	podShimKills = 8
	podShimStep  = 5 * time.Millisecond
)

// TestPodShimKillsLeaveNothing kills the daemon, then the pod's shim, at many
// moments while three containers are made and removed in one shim.
func TestPodShimKillsLeaveNothing(t *testing.T) {
	needRoot(t)
	s, ctx := newSession(t, perPod)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	kills := map[string]func(){
		"daemon": func() {
			must(s.node.Signal(unix.SIGKILL))
		},
		"shims": func() { killShims(s.node.Pid()) },
	}
	for _, what := range slices.Sorted(maps.Keys(kills)) {
		must(pod(s, ctx, []string{"p", "-", "perpod"}, io.Discard))
		for i := range podShimKills {
			var lives []<-chan struct{}
			for j := range 3 {
				lives = append(lives, s.liveAndDie(ctx, fmt.Sprint(what, i, j)))
			}
			time.Sleep(time.Duration(i) * podShimStep)
			kills[what]()
			for _, life := range lives {
				<-life
			}
			if what == "daemon" {
				must(s.node.Start(ctx))
			}
		}
		must(runVerb(s, ctx, []string{"a", "p", "--", "pause"}, io.Discard))
		must(runVerb(s, ctx, []string{"b", "p", "--", "pause"}, io.Discard))
		must(shims(s, ctx, []string{"1", "a", "b"}, io.Discard))
		must(removePods(s, ctx))
		must(leaks(s, ctx, nil, io.Discard))
	}
}
