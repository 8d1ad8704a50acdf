package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Place is where a process is in every hierarchy. Unlike a [Group], its path
// may differ from one to the next.
type Place struct {
	host  *Host
	paths []string // by the index of the hierarchy; "" is unknown
}

// PlaceOf finds where a process is; "self" is the caller.
func (h *Host) PlaceOf(pid string) (Place, error) {
	list, err := readFile("/proc/"+pid, "cgroup")
	if err != nil {
		return Place{}, err
	}
	return h.placeFrom(list), nil
}

// placeFrom reads a /proc/PID/cgroup (cgroups(7)).
func (h *Host) placeFrom(list string) Place {
	p := Place{host: h, paths: make([]string, len(h.Trees))}
	for line := range strings.SplitSeq(list, "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		known := knownControllers(fields[1])
		for i := range h.Trees {
			t := &h.Trees[i]
			if t.Unified && fields[0] == "0" || !t.Unified && len(known) > 0 && slices.Contains(t.Controllers, known[0]) {
				p.paths[i] = fields[2]
			}
		}
	}
	return p
}

// Add moves a process there.
func (p Place) Add(pid int) error {
	var errs []error
	for i, path := range p.paths {
		if path != "" {
			errs = append(errs, writeFile(p.host.Trees[i].Mount+path, "cgroup.procs", strconv.Itoa(pid)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("move process %d: %w", pid, err)
	}
	return nil
}

// Add moves a process into the group.
func (g *Group) Add(pid int) error {
	p := Place{host: g.host}
	for range g.host.Trees {
		p.paths = append(p.paths, g.path)
	}
	return p.Add(pid)
}
