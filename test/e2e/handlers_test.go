package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	commands["killshim"] = verb(killShim)
	commands["reload"] = verb(reload)
	commands["unbroken"] = verb(unbroken)
}

// reload [-quiet|-loud] CONFIG has the daemon read a configuration again, and
// fails as the daemon says that it did.
func reload(s *session, ctx context.Context, args []string, _ io.Writer) error {
	if len(args) > 1 {
		s.node.Quiet, args = args[0] == "-quiet", args[1:]
	}
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	s.node.Extra = string(data)
	if _, err := s.node.WriteConfig(); err != nil {
		return err
	}
	const good, bad = "configuration is read again", "configuration stays as it was"
	log, err := os.ReadFile(s.node.Path("daemon.log"))
	if err != nil {
		return err
	}
	before := len(log)
	if err := unix.Kill(s.node.Pid(), unix.SIGHUP); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		log, err := os.ReadFile(s.node.Path("daemon.log"))
		if err != nil {
			return false, err
		}
		if _, why, ok := bytes.Cut(log[before:], []byte(bad)); ok && bytes.Contains(why, []byte("\n")) {
			return false, fmt.Errorf("%s", why)
		}
		return bytes.Contains(log[before:], []byte(good)), nil
	})
}

// killshim NAME PROGRAM kills those processes of a program, by a word of its
// command line, that belong to a container: its id is in the command line, or
// in the path of an open file.
func killShim(s *session, _ context.Context, args []string, _ io.Writer) error {
	id := s.ids[args[0]]
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	killed := 0
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline") // empty once it has gone
		if !bytes.Contains(line, []byte(args[1])) || !bytes.Contains(line, []byte(id)) && !opens(dir, id) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		killed++
	}
	if killed != 1 {
		return fmt.Errorf("container %s has %d processes of %s", args[0], killed, args[1])
	}
	return nil
}

// opens says whether a process has a file open in whose path there is text.
func opens(dir, text string) bool {
	fds, _ := filepath.Glob(dir + "/fd/*")
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil && strings.Contains(path, text) {
			return true
		}
	}
	return false
}

// unbroken NAME fails unless the log of a container that counts has every
// number from the first on.
func unbroken(s *session, _ context.Context, args []string, out io.Writer) error {
	data, err := os.ReadFile(s.logs[args[0]])
	if err != nil {
		return err
	}
	want := 1
	for record := range strings.Lines(string(data)) {
		var n int
		_, text, _ := strings.Cut(record, " F ")
		if _, err := fmt.Sscanf(text, "tick %d", &n); err != nil || n != want {
			return fmt.Errorf("after number %d comes %q", want-1, record)
		}
		want++
	}
	fmt.Fprintln(out, want-1, "numbers")
	return nil
}
