package cgroup

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// files are the control files of a group in one hierarchy, as an update writes
// them.
type files struct {
	dir    string
	before *journal // of what they held; nil: nobody asks
}

// write writes values, one after the other, to a file, which must exist.
func (f files) write(file string, values ...string) error {
	f.note(file)
	return writeFile(f.dir, file, values...)
}

// note remembers what a file holds. One that cannot be read holds nothing, or
// is not there, which the write will say.
func (f files) note(file string) {
	if f.before == nil {
		return
	}
	if value, err := readFile(f.dir, file); err == nil {
		f.remember(file, value)
	}
}

// remember is note for a file that does not take what it shows.
func (f files) remember(file, value string) {
	if f.before != nil {
		*f.before = append(*f.before, entry{f.dir, file, value})
	}
}

// writeIfThere writes to a file that only some kernels or configurations have.
func (f files) writeIfThere(file, value string) error {
	err := f.write(file, value)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeFirst writes to the first of the files that exists.
func (f files) writeFirst(value string, names ...string) (err error) {
	for _, file := range names {
		if err = f.write(file, value); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// writeAsked writes to a file that some kernels lack, which is an error if the
// value asks for a limit.
func (f files) writeAsked(file, value string, asked bool) error {
	if asked {
		return f.write(file, value)
	}
	return f.writeIfThere(file, value)
}

// journal is what files held before an update wrote them, the first first.
type journal []entry

type entry struct{ dir, file, value string }

// restore puts all back, the last first: so each step leads to what the kernel
// has taken before.
func (j journal) restore() error {
	var errs []error
	for _, e := range slices.Backward(j) {
		errs = append(errs, e.restore())
	}
	return errors.Join(errs...)
}

func (e *entry) restore() error {
	now, err := readFile(e.dir, e.file)
	if err != nil || now == e.value {
		return err
	}
	if unset, keyed := unsetting(e.file); keyed {
		return e.restoreKeys(now, unset)
	}
	// Nothing is an empty line: what writes nothing does not reach the kernel's parser.
	return writeFile(e.dir, e.file, e.value+"\n")
}

// unsetting says of a file with a line for each device, or interface, which
// takes one line at a time, what follows the key to unset it: "" where every key
// is always there. It is no table, which would cost each shim memory.
func unsetting(file string) (value string, keyed bool) {
	switch file {
	case "io.max":
		return "rbps=max wbps=max riops=max wiops=max", true
	case "io.latency":
		return "target=0", true
	case "io.weight", "io.bfq.weight", "blkio.bfq.weight_device", "blkio.weight_device", "blkio.leaf_weight_device":
		return "default", true
	case "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
		"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device":
		return "0", true
	case "rdma.max", "misc.max", "dmem.max", "dmem.min", "dmem.low", "net_prio.ifpriomap":
		return "", true
	}
	return "", false
}

// restoreKeys unsets the keys that are new and writes the lines that differ.
func (e *entry) restoreKeys(now, unset string) error {
	var errs []error
	had, has := lines(e.value), lines(now)
	for _, line := range has {
		key, _, _ := strings.Cut(line, " ")
		known := slices.ContainsFunc(had, func(l string) bool { return strings.HasPrefix(l, key+" ") })
		if !known && unset != "" {
			errs = append(errs, writeFile(e.dir, e.file, key+" "+unset))
		}
	}
	for _, line := range had {
		if !slices.Contains(has, line) {
			// BFQ shows "default 100" and takes "100".
			errs = append(errs, writeFile(e.dir, e.file, strings.TrimPrefix(line, "default ")))
		}
	}
	return errors.Join(errs...)
}

func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}
