package keeper

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// everyone lists all processes of the machine.
func everyone() ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// TestKillMarkedFindsOrphans: a process in a session of its own, whose parent
// has gone, is ended, and one without the mark is not.
func TestKillMarkedFindsOrphans(t *testing.T) {
	begin := func() (*exec.Cmd, *os.File, *bufio.Reader) {
		t.Helper()
		cmd := exec.Command("sh", "-c", "read line; (setsid sleep 100 &); echo $line; exec sleep 100")
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		return cmd, hold, bufio.NewReader(out)
	}
	marks := []uint64{api.Mark(1 << 40), api.Mark(1 << 50)}
	var outs []*bufio.Reader
	for _, mark := range marks {
		cmd, hold, out := begin()
		defer cmd.Wait() // it was killed
		limit := unix.Rlimit{Cur: mark, Max: unix.RLIM_INFINITY}
		if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_RTTIME, &limit, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := hold.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
		hold.Close()
		if line, err := out.ReadString('\n'); err != nil || line != "go\n" {
			t.Fatal(line, err)
		}
		outs = append(outs, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i, mark := range marks {
		if err := killMarked(ctx, mark, everyone); err != nil {
			t.Fatal(err)
		}
		if _, err := outs[i].ReadByte(); err == nil { // both have its stdout
			t.Error("more output")
		}
		if i == 0 {
			if n := count(t, marks[1]); n != 2 {
				t.Errorf("of another mark there are %d processes left", n)
			}
		}
		if n := count(t, mark); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	}
}

// count gives how many live processes have a mark.
func count(t *testing.T, mark uint64) int {
	t.Helper()
	pids, err := everyone()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		limits, _ := os.ReadFile(dir + "/limits") // "" once it has gone
		if _, err := os.Readlink(dir + "/exe"); err == nil && limitOf(string(limits)) == mark {
			n++
		}
	}
	return n
}

func TestMarks(t *testing.T) {
	for _, random := range []uint64{0, 1, 1 << 62, ^uint64(0)} {
		if m := api.Mark(random); !api.IsMark(m) {
			t.Errorf("Mark(%d) = %d is none", random, m)
		}
	}
	for _, limit := range []uint64{0, 1000000, 1<<62 - 1, 1 << 63, unix.RLIM_INFINITY} {
		if api.IsMark(limit) {
			t.Errorf("%d is a mark", limit)
		}
	}
	m := api.Mark(7 << 20)
	spec := &specs.Process{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: m}, {Type: api.MarkLimit, Soft: m, Hard: unix.RLIM_INFINITY}}}
	if got := markOf(spec); got != m {
		t.Errorf("markOf = %d", got)
	}
	if got := markOf(&specs.Process{Rlimits: []specs.POSIXRlimit{{Type: api.MarkLimit, Soft: 1000000}}}); got != 0 {
		t.Errorf("an ordinary limit is the mark %d", got)
	}
	for text, want := range map[string]uint64{
		"":                     0,
		"Max realtime timeout": 0,
		"Limit  Soft Limit\nMax realtime priority     0     0\nMax realtime timeout      unlimited            unlimited            us        \n": 0,
		"Limit  Soft Limit\nMax realtime timeout      4611686018427387905  unlimited            us        \n":                                    4611686018427387905,
	} {
		if got := limitOf(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}
