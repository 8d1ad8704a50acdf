package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/bundle"
	"github.com/longshore/longshore/shim/launch"
	"golang.org/x/sys/unix"
)

// A container that is restored from a checkpoint is made by criu. It has to run
// in the container's control group and cgroup namespace, with the container's
// root mounted, so this binary runs itself once more, becomes that, and then
// becomes criu; the process that criu restores is a child of the shim.

// restoreCommand is the word by which the shim runs itself for that.
const restoreCommand = "restore-process"

// restoreLimit bounds a restore, which reads all of the container's memory.
const restoreLimit = 10 * time.Minute

// maxRestoreOutput bounds how much of the end of its output an error quotes.
const maxRestoreOutput = 512

// reserveContainer makes a container whose process will be restored.
func reserveContainer(req *api.CreateTaskRequest, cfg launch.Config, streams *streams) (*container, error) {
	launched, err := launch.Reserve(cfg)
	if err != nil {
		return nil, classify(err)
	}
	c := &container{id: req.ID, bundle: req.Bundle, launched: launched, execs: map[string]*process{}, restored: true}
	c.init = newProcess("", streams)
	c.restoring = make(chan error, 1)
	return c, nil
}

// joinRestore waits for a restore that an earlier daemon has begun.
func (c *container) joinRestore() error {
	err := <-c.restoring
	c.restoring <- err
	return err
}

// restore lets criu make the container's first process. If that fails the
// container has ended.
func (c *container) restore() (err error) {
	defer func() { c.restoring <- err }()
	err = c.runRestore()
	if err == nil {
		c.init.begin(c.launched.Init(), api.StatusRunning)
		go c.watchInit()
		if c.isDoomed() {
			return c.killAll()
		}
		return nil
	}
	if killErr := c.launched.Cgroup().Kill(); killErr != nil && !errors.Is(killErr, unix.ENOENT) {
		err = errors.Join(err, killErr)
	}
	c.neverRan(api.Exit{Code: 255, Message: err.Error()})
	return fmt.Errorf("restore container %s: %w", c.id, err)
}

// doom notes that a container which is being restored shall end as soon as it
// has a process: what restores it may not be in its control group yet. It says
// whether that is so.
func (c *container) doom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.running() != nil {
		return false
	}
	c.doomed = true
	return true
}

// isDoomed is asked once there is a process.
func (c *container) isDoomed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doomed
}

// neverRan records the end of a container that has had no process.
func (c *container) neverRan(exit api.Exit) {
	c.init.streams.abandon()
	exit.ExitedAtNS = time.Now().UnixNano()
	if err := atomicfile.WriteJSON(filepath.Join(c.bundle, api.ExitFile), exit, atomicfile.Volatile); err != nil {
		fmt.Fprintln(os.Stderr, "longshore-shim: exit record:", err)
	}
	c.init.finish(exit)
}

func (c *container) runRestore() error {
	options, err := os.ReadFile(filepath.Join(c.bundle, api.RestoreOptionsFile))
	if err != nil {
		return err
	}
	r, err := readRestore(c.bundle)
	if err != nil {
		return err
	}
	talk, err := openTalk(options, r.Images, c.bundle)
	if err != nil {
		return err
	}
	defer talk.close()
	go talk.listen()
	err = c.runCriu(talk.theirs)
	pid, console, refused := talk.restored()
	if err == nil {
		err = refused
	}
	if err == nil {
		err = c.launched.Adopt(pid, console)
	}
	if err != nil && console != nil {
		console.Close()
	}
	return err
}

// runCriu runs the program that restores to its end. socket is for its protocol.
func (c *container) runCriu(socket *os.File) error {
	out, err := os.OpenFile(filepath.Join(c.bundle, "restore.out"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	// The places that api.RestoreStdin and so on name.
	files := []*os.File{null, out, out, null, null, null, null, null, socket, null}
	child := c.init.streams.child
	for i, f := range []*os.File{child.Stdin, child.Stdout, child.Stderr} {
		if f != nil {
			files[api.RestoreStdin+i] = f
		}
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"longshore-shim", restoreCommand, c.bundle}, &os.ProcAttr{Files: files})
	if err != nil {
		return err
	}
	late := time.AfterFunc(restoreLimit, func() { _ = p.Kill() })
	state, err := p.Wait()
	late.Stop()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%v%s", state, ending(out))
	}
	return err
}

// ending quotes the end of a program's output.
func ending(out *os.File) string {
	st, err := out.Stat()
	if err != nil || st.Size() == 0 {
		return ""
	}
	buf := make([]byte, min(st.Size(), maxRestoreOutput))
	n, _ := out.ReadAt(buf, st.Size()-int64(len(buf)))
	return ": " + strings.TrimSpace(string(buf[:n]))
}

// readRestore reads what the daemon has decided.
func readRestore(dir string) (*api.Restore, error) {
	var r api.Restore
	path := filepath.Join(dir, api.RestoreFile)
	err := bundle.Visit(path, func(text []byte) error { return leanjson.Unmarshal(text, &r) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &r, nil
}

// placeFile opens a file as descriptor place, which execve keeps. What had that
// number, something of Go's runtime, is not needed any more.
func placeFile(path string, place int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if fd == place {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	} else {
		err = unix.Dup3(fd, place, 0)
	}
	if err != nil {
		return fmt.Errorf("place %s as descriptor %d: %w", path, place, err)
	}
	return nil
}

// becomeCriu is the process that restores: it does not return but with an
// error.
func becomeCriu(dir string) error {
	r, err := readRestore(dir)
	if err != nil {
		return err
	}
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if err := host.Load(r.Cgroup).Add(os.Getpid()); err != nil {
		return err
	}
	runtime.LockOSThread() // whose namespaces the program will have
	namespaces := unix.CLONE_NEWNS
	if r.NewCgroup {
		namespaces |= unix.CLONE_NEWCGROUP
	}
	if err := unix.Unshare(namespaces); err != nil {
		return fmt.Errorf("unshare namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range r.Mounts {
		if err := launch.MountAt(launch.Mount{Type: m.Type, Source: m.Source, Options: m.Options, Target: m.Target}); err != nil {
			return err
		}
	}
	for place, path := range map[int]string{api.RestoreNetNS: r.NetNS, api.RestorePIDNS: r.PIDNS} {
		if path == "" {
			continue
		}
		if err := placeFile(path, place); err != nil {
			return err
		}
	}
	err = unix.Exec(r.Program, []string{r.Program, "swrk", strconv.Itoa(api.RestoreSocket)}, r.Env)
	return &os.PathError{Op: "execute", Path: r.Program, Err: err}
}
