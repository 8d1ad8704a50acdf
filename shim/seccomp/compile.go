package seccomp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// machine is one audit architecture, as the kernel tells it to a filter.
type machine struct {
	audit uint32
	abis  []abi // x86-64 has two
}

// machines gives those a kernel can meet, its own first.
func machines(goarch string) []machine {
	x86 := machine{unix.AUDIT_ARCH_I386, []abi{i386}}
	arm32 := machine{unix.AUDIT_ARCH_ARM, []abi{arm}}
	switch goarch {
	case "amd64":
		return []machine{{unix.AUDIT_ARCH_X86_64, []abi{amd64, x32}}, x86}
	case "386":
		return []machine{x86}
	case "arm64":
		return []machine{{unix.AUDIT_ARCH_AARCH64, []abi{arm64}}, arm32}
	case "arm":
		return []machine{arm32}
	}
	return nil
}

// abiOf translates a profile's architecture. Those that no machine with a table
// here can run are known but not wanted: a call by one would be killed anyway.
func abiOf(a specs.Arch) (which abi, wanted bool, err error) {
	switch a {
	case specs.ArchX86_64:
		return amd64, true, nil
	case specs.ArchX86:
		return i386, true, nil
	case specs.ArchX32:
		return x32, true, nil
	case specs.ArchAARCH64:
		return arm64, true, nil
	case specs.ArchARM:
		return arm, true, nil
	case specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
		specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64,
		specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB:
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("architecture %.64q: %w", string(a), unix.EINVAL)
}

// hit is a rule that reaches a number.
type hit struct {
	number uint32
	// carried is the first argument of socketcall or ipc through which the rule's
	// call is reached; 0 for a call by its own number.
	carried uint32
	rule    *rule
}

// compiler holds a profile resolved to numbers.
type compiler struct {
	machines []machine
	listed   [abis]bool
	hits     [abis][]hit // ascending, in the profile's order for one number
	last     [abis]int64 // highest number the profile names, -1 for none
	fallback action
	notify   bool
}

func newCompiler(p *specs.LinuxSeccomp, goarch string) (*compiler, error) {
	c := &compiler{machines: machines(goarch)}
	if len(c.machines) == 0 {
		return nil, fmt.Errorf("no system call table for %s: %w", goarch, unix.ENOTSUP)
	}
	var err error
	if c.fallback, err = actionOf(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("default %w", err)
	}
	if p.DefaultAction == specs.ActNotify {
		return nil, fmt.Errorf("SCMP_ACT_NOTIFY as default action: %w", unix.EINVAL)
	}
	c.listed[c.machines[0].abis[0]] = true
	for _, a := range p.Architectures {
		which, wanted, err := abiOf(a)
		if err != nil {
			return nil, err
		}
		c.listed[which] = c.listed[which] || wanted
	}
	count := 0
	for i := range p.Syscalls {
		count += len(p.Syscalls[i].Names) * (1 + len(p.Syscalls[i].Args))
	}
	if count > maxRules {
		return nil, fmt.Errorf("%d rules, at most %d are possible: %w", count, maxRules, ErrTooLarge)
	}
	for which := range c.hits {
		c.last[which] = -1
		if c.listed[which] {
			c.hits[which] = make([]hit, 0, count)
		}
	}
	for i := range p.Syscalls {
		if err := c.addSyscall(&p.Syscalls[i]); err != nil {
			return nil, err
		}
	}
	for _, hits := range c.hits {
		slices.SortStableFunc(hits, func(a, b hit) int {
			return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.carried, b.carried))
		})
	}
	return c, nil
}

func (c *compiler) addSyscall(s *specs.LinuxSyscall) error {
	rules, err := expand(s)
	if err != nil {
		return fmt.Errorf("rule for %.64q: %w", s.Names, err)
	}
	if len(s.Names) == 0 {
		return fmt.Errorf("rule without names: %w", unix.EINVAL)
	}
	for _, name := range s.Names {
		if name == "" {
			return fmt.Errorf("rule without a name: %w", unix.EINVAL)
		}
		if s.Action == specs.ActNotify {
			// The agent's answer to the runtime itself would need this call.
			if name == "write" {
				return fmt.Errorf("SCMP_ACT_NOTIFY for write: %w", unix.EINVAL)
			}
			c.notify = true
		}
		for i := range rules {
			c.addRule(name, &rules[i])
		}
	}
	return nil
}

// addRule enters a rule under a name's number in every convention.
func (c *compiler) addRule(name string, r *rule) {
	numbers, known := lookup(name)
	for which := range abis {
		if known && numbers[which] >= 0 {
			c.enter(which, hit{number: uint32(numbers[which]), rule: r})
		}
	}
	via, argument, ok := multiplexed(name)
	if !ok || r.action == c.fallback {
		return
	}
	numbers, _ = lookup(via)
	c.enter(i386, hit{uint32(numbers[i386]), argument, r})
}

func (c *compiler) enter(which abi, h hit) {
	if !c.listed[which] {
		return
	}
	if which != arm || h.number < armPrivate {
		c.last[which] = max(c.last[which], int64(h.number))
	}
	if h.rule.action != c.fallback {
		c.hits[which] = append(c.hits[which], h)
	}
}

// verdictOf makes one verdict of the rules that reach one number. Those carried
// by the call with one first argument hide each other as those for a number do,
// and become conditions on that argument.
func (c *compiler) verdictOf(hits []hit) verdict {
	v := verdict{action: c.fallback}
	for len(hits) > 0 && !v.final {
		carried := hits[0].carried
		var sub verdict
		n := 0
		for ; n < len(hits) && hits[n].carried == carried; n++ {
			if carried == 0 {
				v.add(*hits[n].rule)
			} else {
				rest := slices.DeleteFunc(slices.Clone(hits[n].rule.conditions), func(d condition) bool { return d.arg == 0 })
				sub.add(rule{rest, hits[n].rule.action})
			}
		}
		first := condition{mask: ^uint64(0), value: uint64(carried)}
		for _, r := range sub.rules {
			v.add(rule{append([]condition{first}, r.conditions...), r.action})
		}
		if sub.final {
			v.add(rule{[]condition{first}, sub.action})
		}
		hits = hits[n:]
	}
	v.sortRules()
	return v
}

// segment is the verdict for the numbers from start to the next segment.
type segment struct {
	start uint32
	verdict
}

// partition is a machine's numbers divided into segments, ascending.
type partition []segment

// from sets the verdict for the number start and those after it. A segment that
// begins at the same number gives way, and one that decides alike goes on.
func (p *partition) from(start uint32, v verdict) {
	all := *p
	if n := len(all); n > 0 && all[n-1].start == start {
		all = all[:n-1]
	}
	if n := len(all); n == 0 || len(all[n-1].rules)+len(v.rules) > 0 || all[n-1].action != v.action {
		all = append(all, segment{start, v})
	}
	*p = all
}

// segments divides all numbers of one machine.
func (c *compiler) segments(m machine) partition {
	var p partition
	plain := func(start uint32, a action) { p.from(start, verdict{action: a}) }
	for _, which := range m.abis {
		base := uint32(0)
		if which == x32 {
			base = x32Bit
		}
		if !c.listed[which] {
			// x32 calls a profile does not list are calls by a foreign architecture.
			// -1 is no call: a tracer put it there.
			if c.beyond(amd64) == enosys {
				plain(base, enosys)
			} else {
				plain(base, killThread)
				plain(^uint32(0), c.fallback)
			}
			continue
		}
		plain(base, c.fallback)
		private, _ := slices.BinarySearchFunc(c.hits[which], armPrivate, func(h hit, n int) int { return cmp.Compare(int64(h.number), int64(n)) })
		if which != arm {
			private = len(c.hits[which])
		}
		c.addHits(&p, c.hits[which][:private])
		plain(uint32(c.last[which]+1)|base, c.beyond(which))
		if which == arm {
			// Arm's private calls lie beyond the newest, apart from the others.
			plain(armPrivate, c.fallback)
			c.addHits(&p, c.hits[which][private:])
		}
	}
	return p
}

func (c *compiler) addHits(p *partition, hits []hit) {
	for len(hits) > 0 {
		number, n := hits[0].number, 1
		for n < len(hits) && hits[n].number == number {
			n++
		}
		p.from(number, c.verdictOf(hits[:n]))
		p.from(number+1, verdict{action: c.fallback})
		hits = hits[n:]
	}
}

// beyond is the verdict on calls newer than the profile.
func (c *compiler) beyond(which abi) action {
	if c.last[which] < 0 || c.fallback.permissive() {
		return c.fallback
	}
	return enosys
}
