package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// expectation is what a known failure means here.
type expectation struct {
	racy   bool // it may pass as well
	reason string
	faults []string // parts of what it says; by any other it fails

	elsewhere bool // its condition does not hold here
}

// conditions say on which machines a failure is to be expected.
var conditions = map[string]func() bool{
	"no-cap-sys-resource": func() bool { return !hasCapability(24) },
	"hybrid":              func() bool { return !missing("/sys/fs/cgroup/unified/cgroup.procs") },
	"no-hugetlb1":         func() bool { return missing("/sys/fs/cgroup/hugetlb") },
	"no-net-cls":          func() bool { return missing("/sys/fs/cgroup/net_cls") },
	"no-leaf-weight":      func() bool { return missing("/sys/fs/cgroup/blkio/blkio.leaf_weight") },
	"no-selinux":          func() bool { return missing("/sys/fs/selinux/enforce") },
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// hasCapability says whether this process may hand a capability on.
func hasCapability(number int) bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && set&(1<<number) != 0
		}
	}
	return false
}

// readKnown reads the list of known failures.
func readKnown(path string) (map[string]expectation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	known, err := parseKnown(file, conditions)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return known, nil
}

// parseKnown gives what is expected of programs: on a line a name, then "racy" or
// the name of a condition, if there is one, and "# reason"; below, on lines that
// begin with a space, the faults.
func parseKnown(r io.Reader, conditions map[string]func() bool) (map[string]expectation, error) {
	known := map[string]expectation{}
	lines := bufio.NewScanner(r)
	var last string
	all := map[string]expectation{} // those of other machines too
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(lines.Text(), " ") {
			e, ok := all[last]
			if !ok {
				return nil, fmt.Errorf("line %d: a fault of no program", number)
			}
			e.faults = append(e.faults, line)
			all[last] = e
			continue
		}
		words, reason, _ := strings.Cut(line, "#")
		fields := strings.Fields(words)
		e := expectation{reason: strings.TrimSpace(reason)}
		if e.reason == "" || len(fields) == 0 || len(fields) > 2 {
			return nil, fmt.Errorf("line %d: want a name, perhaps a condition, and # with a reason", number)
		}
		last = fields[0]
		if _, twice := all[last]; twice {
			return nil, fmt.Errorf("line %d: %s is listed twice", number, last)
		}
		if len(fields) == 2 {
			holds, ok := conditions[fields[1]]
			e.racy = fields[1] == "racy"
			if !ok && !e.racy {
				return nil, fmt.Errorf("line %d: no condition %q", number, fields[1])
			}
			e.elsewhere = ok && !holds()
		}
		all[last] = e
	}
	for name, e := range all {
		if len(e.faults) == 0 {
			return nil, fmt.Errorf("%s: no fault is listed", name)
		}
		if !e.elsewhere {
			known[name] = e
		}
	}
	return known, lines.Err()
}

// differences says what of a failed program's faults is not as expected.
func (e expectation) differences(faults []string) (all []string) {
	met := make([]bool, len(e.faults))
	for _, fault := range faults {
		i := slices.IndexFunc(e.faults, func(known string) bool { return strings.Contains(fault, known) })
		if i < 0 {
			all = append(all, fault)
		} else {
			met[i] = true
		}
	}
	for i, known := range e.faults {
		if !met[i] && !e.racy {
			all = append(all, "no longer so, though listed: "+known)
		}
	}
	return all
}
