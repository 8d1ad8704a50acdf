package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// access is a set of rights on a device, in the kernel's BPF_DEVCG_ACC_* bits.
type access uint32

const (
	accMknod access = 1 << iota
	accRead
	accWrite
	accAll = accMknod | accRead | accWrite
)

// anyNumber stands for every major or minor number.
const anyNumber int64 = -1

// maxDeviceRules bounds the rules of one container: each becomes up to eight
// BPF instructions, and kernels before 5.2 take 4096 of them.
const maxDeviceRules = 500

// deviceRule is one rule for one kind of device: 'b' or 'c'.
type deviceRule struct {
	allow        bool
	kind         byte
	major, minor int64
	access       access
}

// deviceRules checks the rules of a specification and splits those for all
// devices ("a") by kind. What no rule names is denied.
//
// For each right of a request the last rule that matches decides, and every
// right must be allowed. That is what the ordered list says when read as a
// list, and both versions' enforcement is derived from it.
func deviceRules(in []specs.LinuxDeviceCgroup) ([]deviceRule, error) {
	if len(in) > maxDeviceRules {
		return nil, fmt.Errorf("%d device rules, at most %d are possible: %w", len(in), maxDeviceRules, unix.EINVAL)
	}
	var out []deviceRule
	for _, d := range in {
		r := deviceRule{allow: d.Allow, major: anyNumber, minor: anyNumber}
		for _, n := range []struct {
			from *int64
			to   *int64
		}{{d.Major, &r.major}, {d.Minor, &r.minor}} {
			if n.from == nil || *n.from == anyNumber {
				continue
			}
			if *n.from < 0 || *n.from > 1<<31-1 {
				return nil, fmt.Errorf("device number %d: %w", *n.from, unix.EINVAL)
			}
			*n.to = *n.from
		}
		var err error
		if r.access, err = parseAccess(d.Access); err != nil {
			return nil, err
		}
		kinds := ""
		switch d.Type {
		case "", "a":
			kinds = "bc"
		case "b":
			kinds = "b"
		case "c", "u":
			kinds = "c"
		default:
			return nil, fmt.Errorf("device type %.16q: %w", d.Type, unix.EINVAL)
		}
		for i := range len(kinds) {
			r.kind = kinds[i]
			out = append(out, r)
		}
	}
	return out, nil
}

func parseAccess(s string) (access, error) {
	if s == "" {
		return accAll, nil
	}
	var a access
	for _, c := range s {
		switch c {
		case 'r':
			a |= accRead
		case 'w':
			a |= accWrite
		case 'm':
			a |= accMknod
		default:
			return 0, fmt.Errorf("device access %.16q: %w", s, unix.EINVAL)
		}
	}
	return a, nil
}

func (a access) String() string {
	var s strings.Builder
	for _, c := range []struct {
		bit  access
		text string
	}{{accRead, "r"}, {accWrite, "w"}, {accMknod, "m"}} {
		if a&c.bit != 0 {
			s.WriteString(c.text)
		}
	}
	return s.String()
}

// devices sets the rules by a program in the cgroup2 tree, and by version 1's list
// where there is none, or the kernel takes none. On a hybrid host too it is the
// program: it says what the list cannot (an exception to an exception), it takes the
// place of another in one step, and nothing that a container writes to version 1's
// tree, if it may mount that, widens it.
func (u *update) devices(res *specs.LinuxResources) error {
	if len(res.Devices) == 0 {
		return nil
	}
	host := u.group.host
	t, ok := host.tree("devices")
	if !ok {
		denies := func(d specs.LinuxDeviceCgroup) bool { return !d.Allow }
		return refuse("no devices controller", wish{"devices", slices.ContainsFunc(res.Devices, denies)})
	}
	rules, err := deviceRules(res.Devices)
	if err != nil {
		return err
	}
	if unified := host.unified(); unified != nil {
		err := attachDeviceFilter(u.group.dir(unified), deviceProgram(rules))
		if t.Unified || !errors.Is(err, errNoFilter) {
			return err
		}
	}
	list, err := deviceList(rules)
	if err != nil {
		return err
	}
	return setDevices1(u.group.dir(t), list)
}

// allowed is what version 1's device controller holds: all or nothing per kind
// by default, and entries with the rights that differ from it.
type allowed struct {
	all     bool
	entries []deviceRule // allow is not used
}

// deviceList turns the ordered rules into version 1's form. Rules that punch a
// hole into a wider entry cannot be expressed there and are refused: allowing
// more than was asked would be worse.
func deviceList(rules []deviceRule) (allowed, error) {
	var list allowed
	for i := 0; i < len(rules); i++ {
		r := rules[i]
		// A rule for everything arrives as a pair, block then character.
		if everything(r) && i+1 < len(rules) && everything(rules[i+1]) && rules[i+1].allow == r.allow && rules[i+1].kind != r.kind {
			list = allowed{all: r.allow}
			i++
			continue
		}
		var err error
		if list.entries, err = merge(list.entries, r, r.allow != list.all); err != nil {
			return allowed{}, err
		}
	}
	return list, nil
}

func everything(r deviceRule) bool {
	return r.major == anyNumber && r.minor == anyNumber && r.access == accAll
}

// merge adds the rights of r to the entries, or takes them away.
func merge(entries []deviceRule, r deviceRule, add bool) ([]deviceRule, error) {
	if add {
		i := slices.IndexFunc(entries, func(e deviceRule) bool { return sameDevice(e, r) })
		if i >= 0 {
			entries[i].access |= r.access
			return entries, nil
		}
		return append(entries, r), nil
	}
	kept := entries[:0]
	for _, e := range entries {
		if e.kind == r.kind && e.access&r.access != 0 && overlap(e.major, r.major) && overlap(e.minor, r.minor) {
			if !covers(r.major, e.major) || !covers(r.minor, e.minor) {
				return nil, fmt.Errorf("device rule %s is an exception to %s, which cgroup v1 cannot express: %w", r, e, unix.EINVAL)
			}
			e.access &^= r.access
		}
		if e.access != 0 {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

func sameDevice(a, b deviceRule) bool {
	return a.kind == b.kind && a.major == b.major && a.minor == b.minor
}

func overlap(a, b int64) bool { return a == b || a == anyNumber || b == anyNumber }

func covers(wide, narrow int64) bool { return wide == anyNumber || wide == narrow }

// String gives the rule as devices.allow and devices.list spell it.
func (r deviceRule) String() string {
	number := func(n int64) string {
		if n == anyNumber {
			return "*"
		}
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%c %s:%s %s", r.kind, number(r.major), number(r.minor), r.access)
}

// setDevices1 brings the group to the wanted list. From one list of allowed
// devices to another it adds first and takes away then, so that a running
// process does not lose for a moment what it keeps.
func setDevices1(dir string, want allowed) error {
	now, err := readFile(dir, "devices.list")
	if err != nil {
		return err
	}
	write := func(file string, entries []deviceRule) error {
		lines := make([]string, len(entries))
		for i, e := range entries {
			lines[i] = e.String()
		}
		if len(lines) == 0 {
			return nil
		}
		return writeFile(dir, file, lines...)
	}
	if want.all {
		if err := writeFile(dir, "devices.allow", "a"); err != nil {
			return err
		}
		return write("devices.deny", want.entries)
	}
	has, err := parseDeviceList(now)
	if err != nil {
		return fmt.Errorf("parse %s/devices.list: %w", dir, err)
	}
	if has.all {
		if err := writeFile(dir, "devices.deny", "a"); err != nil {
			return err
		}
		return write("devices.allow", want.entries)
	}
	if err := write("devices.allow", subtract(want.entries, has.entries)); err != nil {
		return err
	}
	return write("devices.deny", subtract(has.entries, want.entries))
}

// subtract gives the rights in a that b lacks.
func subtract(a, b []deviceRule) []deviceRule {
	var rest []deviceRule
	for _, e := range a {
		for _, other := range b {
			if sameDevice(e, other) {
				e.access &^= other.access
			}
		}
		if e.access != 0 {
			rest = append(rest, e)
		}
	}
	return rest
}

// parseDeviceList reads the kernel's devices.list. "a *:* rwm" is the default
// "all", whose exceptions the kernel does not show.
func parseDeviceList(text string) (allowed, error) {
	var list allowed
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "a ") {
			return allowed{all: true}, nil
		}
		r := deviceRule{major: anyNumber, minor: anyNumber}
		var major, minor, rights string
		if _, err := fmt.Sscanf(strings.Replace(line, ":", " ", 1), "%c %s %s %s", &r.kind, &major, &minor, &rights); err != nil {
			return allowed{}, fmt.Errorf("%q: %w", line, err)
		}
		for _, n := range []struct {
			text string
			to   *int64
		}{{major, &r.major}, {minor, &r.minor}} {
			if n.text == "*" {
				continue
			}
			if _, err := fmt.Sscan(n.text, n.to); err != nil {
				return allowed{}, fmt.Errorf("%q: %w", line, err)
			}
		}
		var err error
		if r.access, err = parseAccess(rights); err != nil {
			return allowed{}, err
		}
		list.entries = append(list.entries, r)
	}
	return list, nil
}
