package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// idleWindow is how long the runtime is watched doing nothing.
const idleWindow = 3 * time.Second

// cpu reads the CPU time of the runtime's cgroup, which holds its daemon and
// shims but not the containers; 0 without one.
func (s *session) cpu() time.Duration {
	if s.o.Cgroup == "" {
		return 0
	}
	data, err := os.ReadFile(filepath.Join(s.o.Cgroup, "cpuacct.usage"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64) // the kernel writes a number
	return time.Duration(n)
}

// cpuPer gives milliseconds a piece since an earlier reading.
func (s *session) cpuPer(since time.Duration, n int) float64 {
	return float64((s.cpu() - since).Microseconds()) / 1000 / float64(n)
}

// idle measures memory and what the runtime does while nobody asks.
func (s *session) idle(ctx context.Context, pods int, r *Result) error {
	if s.o.Cgroup == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(s.o.Cgroup, "cgroup.procs"))
	if err != nil {
		return err
	}
	var others, daemon float64
	for i, pid := range strings.Fields(string(data)) {
		kib, err := pss(pid)
		if err != nil {
			continue // it has just ended
		}
		if i == 0 {
			daemon = kib // the first that was put there
		} else {
			others += kib
		}
	}
	r.PSSDaemon, r.PSSPod = daemon, others/float64(pods)
	before := s.cpu()
	select {
	case <-time.After(idleWindow):
	case <-ctx.Done():
		return ctx.Err()
	}
	r.IdleCPU = 100 * float64(s.cpu()-before) / float64(idleWindow)
	return nil
}

// pss reads a process's proportional set size in KiB.
func pss(pid string) (float64, error) {
	f, err := os.Open("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		if fields := strings.Fields(scan.Text()); len(fields) > 1 && fields[0] == "Pss:" {
			return strconv.ParseFloat(fields[1], 64)
		}
	}
	return 0, fmt.Errorf("no Pss for process %s", pid)
}
