package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// freezeTimeout bounds the wait for a group to stand still: a process in
	// uninterruptible sleep (a dead NFS server) keeps it from that.
	freezeTimeout = 2 * time.Second
	// freezeRetry is how often version 1's freezer, which sends no event, is asked.
	freezeRetry = time.Millisecond
	// killRounds bounds how often the list of processes is read again while
	// they fork; frozen processes do not.
	killRounds = 100
)

// errNoFreezer is met on version 1 where the freezer is not mounted.
var errNoFreezer = fmt.Errorf("no freezer: %w", unix.EOPNOTSUPP)

// Kill sends SIGKILL to every process of the group and below. It does not wait
// for their end: see [Group.WaitEmpty]. Where the processes are in a cgroup2
// tree the kernel does it in one step (cgroup.kill, Linux 5.14); else they are
// frozen, signalled and thawed, so that none escapes by forking.
func (g *Group) Kill() error {
	if g.path == "/" {
		return errRoot
	}
	t, err := g.populated()
	if err != nil || t == nil {
		return err
	}
	if t.Unified && !g.host.NoKillFile {
		err := writeFile(g.dir(t), "cgroup.kill", "1")
		if err == nil && g.host.Mode != V2 {
			err = g.signalEach(true) // another tool's processes may be in version 1 only
		}
		if err == nil || !gone(err) {
			return wrapKill(g.path, err)
		}
		if !exists(g.dir(t)) {
			return nil
		}
	}
	return wrapKill(g.path, g.killEach())
}

func wrapKill(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("kill cgroup %s: %w", path, err)
}

// killEach is for where the kernel does not kill a group as a whole. The group
// stands still meanwhile, so that no child is born unseen.
func (g *Group) killEach() error {
	pids, err := g.everywhere()
	if err != nil || len(pids) == 0 {
		return err
	}
	// One that does not stand still is signalled nevertheless.
	frozen := g.Freeze()
	err = g.signalEach(frozen != nil)
	if errors.Is(frozen, errNoFreezer) || errors.Is(frozen, fs.ErrNotExist) {
		return err
	}
	if thawed := g.Thaw(); !gone(thawed) { // it may go with its last process
		err = errors.Join(err, thawed)
	}
	return err
}

// signalEach sends SIGKILL to each process of the group; with again until it
// finds no new one.
func (g *Group) signalEach(again bool) error {
	killed := map[int]bool{}
	for range killRounds {
		pids, err := g.everywhere()
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(pids, func(pid int) bool { return killed[pid] })
		for _, pid := range fresh {
			killed[pid] = true
		}
		if err := g.signal(fresh, unix.SIGKILL); err != nil {
			return err
		}
		if len(fresh) == 0 || !again {
			break
		}
	}
	return nil
}

// Signal sends a signal to every process of the group and below, and says how
// many there were. Those that fork meanwhile may leave children without.
func (g *Group) Signal(sig unix.Signal) (int, error) {
	pids, err := g.everywhere()
	if err != nil {
		return 0, err
	}
	return len(pids), g.signal(pids, sig)
}

// signalBatch bounds how many processes are held at once.
const signalBatch = 256

// signal sends a signal to those processes that are still in the group. An id
// may have become that of a process elsewhere since it was listed, so each is
// held, the list is read again, and who is on it is signalled.
func (g *Group) signal(pids []int, sig unix.Signal) error {
	for batch := range slices.Chunk(pids, signalBatch) {
		held := map[int]int{} // pidfds by their ids
		for _, pid := range batch {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				held[pid] = fd
			} else if err != unix.ESRCH && err != unix.EINVAL { // gone, or a thread's now
				closeAll(held)
				return fmt.Errorf("open process %d: %w", pid, err)
			}
		}
		err := g.signalHeld(held, sig)
		closeAll(held)
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) signalHeld(held map[int]int, sig unix.Signal) error {
	still, err := g.everywhere()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range still {
		if fd, ok := held[pid]; ok {
			if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
				errs = append(errs, fmt.Errorf("signal %d: %w", pid, err))
			}
		}
	}
	return errors.Join(errs...)
}

func closeAll(fds map[int]int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Freeze stops every process of the group and below, and returns when they
// stand still; after two seconds it gives up with [os.ErrDeadlineExceeded] and
// leaves the group freezing.
func (g *Group) Freeze() error { return g.setFrozen(true) }

// Thaw lets a frozen group go on.
func (g *Group) Thaw() error { return g.setFrozen(false) }

func (g *Group) setFrozen(freeze bool) error {
	if g.path == "/" {
		return errRoot
	}
	t, err := g.populated()
	if err != nil || t == nil {
		return err
	}
	verb := "thaw"
	if freeze {
		verb = "freeze"
	}
	if t.Unified {
		err = freeze2(g.dir(t), freeze)
	} else if t, ok := g.host.tree("freezer"); ok && !t.Unified {
		err = freeze1(g.dir(t), freeze)
	} else {
		err = errNoFreezer
	}
	if err != nil {
		return fmt.Errorf("%s cgroup %s: %w", verb, g.path, err)
	}
	return nil
}

// FreezerDir is the directory by whose files the group is frozen, for a program
// that does so itself: of the cgroup2 tree, or of version 1's freezer. It is
// empty if the group holds no process or there is no freezer.
func (g *Group) FreezerDir() (string, error) {
	t, err := g.populated()
	if err != nil || t == nil {
		return "", err
	}
	if !t.Unified {
		var ok bool
		if t, ok = g.host.tree("freezer"); !ok {
			return "", nil
		}
	}
	return g.dir(t), nil
}

func freeze2(dir string, freeze bool) error {
	value, want := "0", uint64(0)
	if freeze {
		value, want = "1", 1
	}
	if err := writeFile(dir, "cgroup.freeze", value); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), freezeTimeout, os.ErrDeadlineExceeded)
	defer cancel()
	return waitEvent(ctx, dir, "frozen", want)
}

// freeze1 asks version 1's freezer until it is done. Version 1 tells nobody
// when that is; the question itself makes the kernel look again.
func freeze1(dir string, freeze bool) error {
	want := "THAWED"
	if freeze {
		want = "FROZEN"
	}
	again := time.NewTicker(freezeRetry)
	defer again.Stop()
	late := time.NewTimer(freezeTimeout)
	defer late.Stop()
	for {
		if err := writeFile(dir, "freezer.state", want); err != nil {
			return err
		}
		state, err := readFile(dir, "freezer.state")
		if err != nil || state == want {
			return err
		}
		select {
		case <-again.C:
		case <-late.C:
			return fmt.Errorf("%s is %s: %w", filepath.Join(dir, "freezer.state"), state, os.ErrDeadlineExceeded)
		}
	}
}

// WaitEmpty returns when no process is left in the group or below it, or with
// the context's cause. Zombies do not count. On cgroup2 the kernel tells;
// version 1 has no such event, so there the processes are waited for one by
// one through pidfds until a look finds none.
func (g *Group) WaitEmpty(ctx context.Context) error {
	for {
		t, err := g.populated()
		if err != nil || t == nil {
			return err
		}
		if t.Unified {
			if err := waitEvent(ctx, g.dir(t), "populated", 0); err != nil {
				return fmt.Errorf("wait for cgroup %s to be empty: %w", g.path, err)
			}
			if g.host.Mode == V2 {
				return nil
			}
			continue // another tool's processes may be in version 1 only
		}
		pids, err := g.everywhere()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := waitExit(ctx, pids[0]); err != nil {
			return fmt.Errorf("wait for cgroup %s to be empty: %w", g.path, err)
		}
	}
}
