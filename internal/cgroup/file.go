package cgroup

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one control file; the longest is cgroup.procs,
// with the four million processes that a kernel has at most.
const maxFile = 32 << 20

// writeFile writes one value to a control file, which must exist. One value is
// one write(2): the kernel takes each as a command.
func writeFile(dir, file string, values ...string) error {
	name := dir + "/" + file
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for _, value := range values {
		// Shrinking a memory limit reclaims, and a signal ends that early.
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Write(fd, []byte(value))
		}
		if err != nil {
			return fmt.Errorf("write %q to %s: %w", value, name, err)
		}
	}
	return nil
}

// pageSize is enough for all files but a few.
const pageSize = 4096

// pages are buffers for readFile: on the stack they would double that of every
// goroutine that reads a file.
var pages = sync.Pool{New: func() any { return new([pageSize]byte) }}

// readFile reads a control file without its last newline. Statistics read a
// dozen files per group, so it is done in as few system calls as it can be.
func readFile(dir, file string) (string, error) {
	name := dir + "/" + file
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	page := pages.Get().(*[pageSize]byte)
	defer pages.Put(page)
	data := page[:0]
	for len(data) < maxFile {
		if len(data) == cap(data) {
			data = slices.Grow(data, len(data))
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "read", Path: name, Err: err}
		}
		data = data[:len(data)+n]
		// The kernel fills whole pages of records; half a page is surely the end.
		if n == 0 || len(data) < pageSize/2 {
			break
		}
	}
	return strings.TrimSuffix(string(data), "\n"), nil
}

// readUint reads a number; "max" and version 1's -1 are [Unlimited].
func readUint(dir, file string) (uint64, error) {
	text, err := readFile(dir, file)
	if err != nil {
		return 0, err
	}
	n, err := parseUint(text)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", filepath.Join(dir, file), err)
	}
	return n, nil
}

func parseUint(text string) (uint64, error) {
	if text == "max" || text == "-1" {
		return Unlimited, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

// keyed calls visit for each "key value" line of a flat keyed file.
func keyed(text string, visit func(key string, value uint64)) {
	for line := range strings.SplitSeq(text, "\n") {
		key, value, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		if n, err := parseUint(value); err == nil {
			visit(key, n)
		}
	}
}

// readKey reads one line of a flat keyed file; a missing key is 0.
func readKey(dir, file, key string) (uint64, error) {
	text, err := readFile(dir, file)
	var found uint64
	keyed(text, func(k string, v uint64) {
		if k == key {
			found = v
		}
	})
	return found, err
}

// readEvent reads a key of cgroup.events: "populated" or "frozen".
func readEvent(dir, key string) (uint64, error) { return readKey(dir, "cgroup.events", key) }
