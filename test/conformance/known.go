package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// lists are what is known of specs: the reasons by name.
type lists struct {
	failures map[string]string
	skips    map[string]string // by the beginning of the name
}

// readLists reads both lists.
func readLists(failures, skips string) (l lists, err error) {
	if l.failures, err = readKnown(failures); err != nil {
		return l, err
	}
	l.skips, err = readKnown(skips)
	return l, err
}

// maySkip says whether a spec is known to skip itself on some machines.
func (l *lists) maySkip(name string) bool {
	for beginning := range l.skips {
		if strings.HasPrefix(name, beginning) {
			return true
		}
	}
	return false
}

// readKnown reads the list in a file.
func readKnown(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	known, err := parseKnown(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return known, nil
}

// parseKnown reads a list: a spec's name on each line, then " # " and the reason. Lines that begin with # and empty ones say
// nothing. It gives the reasons by name.
func parseKnown(r io.Reader) (map[string]string, error) {
	known := map[string]string{}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, "#")
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		if reason == "" {
			return nil, fmt.Errorf("line %d: no reason after #", number)
		}
		if _, twice := known[name]; twice {
			return nil, fmt.Errorf("line %d: %q is listed twice", number, name)
		}
		known[name] = reason
	}
	return known, lines.Err()
}

// surprises compares what happened with what is known to fail: each line is an
// error. A known spec may be skipped, as machines differ, but must exist; another
// that skips itself must be known for that.
func surprises(specs []spec, known lists) []string {
	var found []string
	seen := map[string]bool{}
	for _, s := range specs {
		seen[s.name] = true
		_, expected := known.failures[s.name]
		switch {
		case s.state == failed && !expected:
			found = append(found, fmt.Sprintf("FAIL %s\n  %s", s.name, strings.ReplaceAll(s.message, "\n", "\n  ")))
		case s.state == passed && expected:
			found = append(found, fmt.Sprintf("PASS, though listed as known to fail: %s", s.name))
		case s.state == skipped && s.message != "" && !expected && !known.maySkip(s.name):
			found = append(found, fmt.Sprintf("SKIP %s\n  %s", s.name, s.message))
		}
	}
	for name := range known.failures {
		if !seen[name] {
			found = append(found, fmt.Sprintf("NO SPEC of this name, though listed as known to fail: %s", name))
		}
	}
	return found
}

// judge prints the surprises and the counts, and says whether all is as known.
func judge(out io.Writer, specs []spec, known lists) bool {
	found := surprises(specs, known)
	for _, line := range found {
		fmt.Fprintln(out, line)
	}
	count := map[state]int{}
	for _, s := range specs {
		count[s.state]++
	}
	fmt.Fprintf(out, "critest: %d passed, %d failed, %d skipped\n", count[passed], count[failed], count[skipped])
	return len(found) == 0
}
