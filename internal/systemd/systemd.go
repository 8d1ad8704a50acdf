// Package systemd asks the systemd that is the host's first process for the
// cgroups of pods: it owns the tree, and gives a part of it away as a scope
// unit with Delegate=yes (systemd's CGROUP_DELEGATION document).
//
// It speaks as much D-Bus as two calls need, on systemd's own socket, where no
// bus daemon is between: the shim links this package and pays for what it links
// in every pod. A connection lives for one call. What systemd sends is bounded
// and checked; the names that a client shapes are checked before they are sent.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// socket is where systemd listens for root, without a bus between
// (org.freedesktop.systemd1(5)).
const socket = "/run/systemd/private"

// callTimeout bounds a call: a systemd that is busy answers late, one that
// hangs never.
const callTimeout = 30 * time.Second

// Running reports whether the host was booted with systemd (sd_booted(3)).
func Running() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// Scope is a unit of processes that systemd did not start.
type Scope struct {
	// Name ends with ".scope".
	Name string
	// Slice is the unit it is put below, such as "kubepods-burstable.slice".
	Slice string
	// Description is what systemctl shows.
	Description string
	// PID is the process that systemd moves into the scope. The scope ends
	// when its cgroup, with all below it, has no process left.
	PID int
}

// Path gives where the scope's cgroup is below the hierarchies' roots.
func (s *Scope) Path() (string, error) {
	dir, err := SlicePath(s.Slice)
	if err != nil {
		return "", err
	}
	return dir + "/" + s.Name, checkUnit(s.Name, ".scope")
}

// ErrSlice says that a name is not that of a slice.
var ErrSlice = errors.New("not the name of a slice")

// SlicePath gives the cgroup of a slice: a-b.slice lies in a.slice
// (systemd.slice(5)), "-.slice" is the root.
func SlicePath(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || checkUnit(slice, ".slice") != nil {
		return "", fmt.Errorf("%q: %w", slice, ErrSlice)
	}
	if name == "-" {
		return "", nil
	}
	path, sofar := "", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%q: %w", slice, ErrSlice)
		}
		sofar += part
		path += "/" + sofar + ".slice"
		sofar += "-"
	}
	return path, nil
}

// maxUnit is the length of a unit's name, in bytes (systemd.unit(5)).
const maxUnit = 255

// checkUnit refuses what systemd would not take as a unit's name, and what is
// no name of a directory.
func checkUnit(name, suffix string) error {
	stem, ok := strings.CutSuffix(name, suffix)
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`:-_.\`, r))
	}
	if !ok || stem == "" || len(name) > maxUnit || strings.ContainsFunc(stem, bad) {
		return fmt.Errorf("unit name %.64q: letters, digits, and any of :-_.\\ before %s", name, suffix)
	}
	return nil
}

// StartScope makes the scope, with the cgroup given away and all accounting
// on, and returns when systemd has moved the process.
func StartScope(ctx context.Context, s Scope) error {
	if _, err := s.Path(); err != nil {
		return err
	}
	var m message
	m.str(s.Name)
	m.str("fail") // rather than change jobs that are queued for the unit
	m.array(8, func() {
		m.property("Description", "s", func() { m.str(s.Description) })
		m.property("Slice", "s", func() { m.str(s.Slice) })
		m.property("Delegate", "b", func() { m.u32(1) })
		m.property("DefaultDependencies", "b", func() { m.u32(0) }) // it outlives the order of a shutdown's units
		m.property("CollectMode", "s", func() { m.str("inactive-or-failed") })
		for _, what := range []string{"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"} {
			m.property(what, "b", func() { m.u32(1) })
		}
		m.property("PIDs", "au", func() { m.array(4, func() { m.u32(uint32(s.PID)) }) })
	})
	m.array(8, func() {}) // auxiliary units
	return job(ctx, s.Name, "StartTransientUnit", "ssa(sv)a(sa(sv))", &m)
}

// StopScope ends a scope and its processes. One that is not there is stopped.
func StopScope(ctx context.Context, name string) error {
	if err := checkUnit(name, ".scope"); err != nil {
		return err
	}
	var m message
	m.str(name)
	m.str("replace")
	err := job(ctx, name, "StopUnit", "ss", &m)
	if failed, ok := errors.AsType[*CallError](err); ok && failed.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	return err
}

// job makes a call that queues a job for a unit, and waits for the job's end.
func job(ctx context.Context, unit, method, signature string, body *message) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := dial(ctx, socket)
	if err == nil {
		defer c.close()
		err = c.job(unit, method, signature, body)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return fmt.Errorf("systemd: %s %s: %w", method, unit, err)
	}
	return nil
}
