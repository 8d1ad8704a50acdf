package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// errNoMatch makes pgrep end with 1 and without a word, as the real one does.
var errNoMatch = errors.New("no process matches")

// pgrep prints the ids of processes whose names contain the pattern, except
// its own.
func pgrep(proc string, args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: pgrep PATTERN")
	}
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return err
	}
	found := false
	for _, file := range files {
		name, err := os.ReadFile(file)
		pid := filepath.Base(filepath.Dir(file))
		if err != nil || pid == fmt.Sprint(os.Getpid()) || !strings.Contains(strings.TrimSpace(string(name)), args[0]) {
			continue // one that has ended since it was listed is no error
		}
		found = true
		fmt.Fprintln(out, pid)
	}
	if !found {
		return errNoMatch
	}
	return nil
}

// ipcs lists shared memory segments as the first columns of ipcs -m.
func ipcs(path string, out io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprint(out, "\n------ Shared Memory Segments --------\nkey        shmid      perms      bytes\n")
	lines := bufio.NewScanner(f)
	lines.Scan() // the names of the columns
	for lines.Scan() {
		// proc(5): key shmid perms size ...
		if c := strings.Fields(lines.Text()); len(c) >= 4 {
			fmt.Fprintf(out, "%-10s %-10s %-10s %s\n", c[0], c[1], c[2], c[3])
		}
	}
	return lines.Err()
}
