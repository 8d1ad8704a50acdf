package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/safepath"
)

// workshop is a thread with a private mount namespace. Before Linux 6.15
// nothing can be mounted onto a detached mount, so that the root is assembled
// attached there, and taken out as a copy at the end.
type workshop struct {
	jobs chan func()
	done chan struct{}
}

// openWorkshop starts the thread and attaches root in its namespace.
func openWorkshop(root int) (*workshop, error) {
	w := &workshop{jobs: make(chan func()), done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(w.done)
		onOwnThread(func() {
			err := privateMounts()
			if err == nil {
				err = unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
			}
			started <- err
			if err != nil {
				return
			}
			for job := range w.jobs {
				job()
			}
		})
	}()
	if err := <-started; err != nil {
		<-w.done
		return nil, fmt.Errorf("attach the root in a private mount namespace: %w", err)
	}
	return w, nil
}

// run carries out f on the workshop's thread.
func (w *workshop) run(f func() error) error {
	result := make(chan error, 1)
	w.jobs <- func() { result <- f() }
	return <-result
}

// close ends the thread, and its namespace with it.
func (w *workshop) close() {
	close(w.jobs)
	<-w.done
}

// privateMounts gives this thread a copy of the mount namespace, from which
// nothing propagates.
func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// onOwnThread runs f on a thread that is ended after it, since f changes it
// for good, and waits. The first thread cannot end: it stands for the process
// in procfs, so that f never runs there.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		onOwnThread(f) // this goroutine holds the first thread meanwhile
		runtime.UnlockOSThread()
	}()
	<-done
}

// inShop carries out a step that changes mounts inside the root. The first
// that the kernel refuses for a detached tree moves the work to a workshop.
func (a *assembly) inShop(step func() error) error {
	if a.shop != nil {
		return a.shop.run(step)
	}
	err := step()
	if !errors.Is(err, unix.EINVAL) || kernel.noWorkshop {
		return err
	}
	shop, openErr := openWorkshop(a.root)
	if openErr != nil {
		return openErr
	}
	a.shop = shop
	return a.shop.run(step)
}

// outside carries out a step in the workshop, if there is one.
func (a *assembly) outside(step func() error) error {
	if a.shop == nil {
		return step()
	}
	return a.shop.run(step)
}

// finished gives the assembled root as one detached tree. The copy that a
// workshop's work is taken out with keeps peers and masters.
func (a *assembly) finished() (int, error) {
	if a.shop == nil && !a.ordered {
		return a.root, a.protectRoot()
	}
	err := a.inShop(func() error {
		root, err := cloneDetached(a.root)
		if err != nil {
			return err
		}
		old := a.root
		a.root = root
		return unix.Close(old)
	})
	if a.shop == nil && errors.Is(err, unix.EINVAL) {
		// Before Linux 6.15: and nothing is mounted in it, or there were a workshop.
		return a.root, a.protectRoot()
	}
	if err != nil {
		return -1, fmt.Errorf("take the root out of its private mount namespace: %w", err)
	}
	if a.shop != nil {
		a.shop.close()
		a.shop = nil
	}
	if err := a.protectRoot(); err != nil {
		return -1, err
	}
	// What the child changes is in the copy now.
	for _, s := range a.lateSources() {
		if s.fd, err = safepath.OpenPath(a.root, s.spec.Destination); err != nil {
			return -1, err
		}
		a.fds.add(s.fd)
	}
	a.refindDevpts()
	return a.root, nil
}

// cloneDetached copies a tree. Before Linux 6.15 it must be in the caller's mount
// namespace.
func cloneDetached(tree int) (int, error) {
	if kernel.noDetachedTargets && !attached(tree) {
		return -1, unix.EINVAL
	}
	return openTree(tree, "", true)
}

// protectRoot makes the detached root read-only if the spec says so.
func (a *assembly) protectRoot() error {
	if a.spec.Root == nil || !a.spec.Root.Readonly {
		return nil
	}
	if err := changeMount(a.root, mountChange{set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// refindDevpts finds the devpts of a copied root: a terminal opened in the old
// one would have no name that the container can see (ttyname(3)). Where
// something else is mounted over it, the old one stays.
func (a *assembly) refindDevpts() {
	if a.devpts < 0 {
		return
	}
	fd, err := safepath.OpenPath(a.root, a.devptsAt)
	if err != nil {
		return
	}
	a.fds.add(fd)
	var before, now unix.Stat_t
	if errors.Join(unix.Fstat(a.devpts, &before), unix.Fstat(fd, &now)) == nil && now.Dev == before.Dev {
		a.devpts = fd
	}
}

// close releases what the assembly holds but the root.
func (a *assembly) close() {
	if a.shop != nil {
		a.shop.close()
		a.shop = nil
	}
	a.fds.closeAll()
}
