package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
)

// ps lists the processes of a container: their ids, or what the host's ps(1)
// says of them.
func (c *cli) ps(args []string) error {
	f := newFlags("ps")
	var format string
	f.StringVar(&format, "format", "table", "")
	f.StringVar(&format, "f", "table", "")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("ps: %w", flagError(err))
	}
	if f.NArg() == 0 {
		return fmt.Errorf("ps: want a container: %w", errUsage)
	}
	ct, err := c.open(f.Arg(0))
	if err != nil {
		return err
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	pids, err := group.Procs()
	if err != nil {
		return err
	}
	switch format {
	case "json":
		if pids == nil {
			pids = []int{}
		}
		return json.NewEncoder(c.out).Encode(pids)
	case "table":
		return table(c.out, pids, f.Args()[1:])
	}
	return fmt.Errorf("ps: format %q: %w", format, errUsage)
}

// table prints the lines of ps(1) that are about pids.
func table(w io.Writer, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	text, err := exec.Command("ps", options...).Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
	}
	lines, err := linesAbout(string(text), pids)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, lines)
	return err
}

// linesAbout keeps the heading and the lines whose column PID is one of pids.
func linesAbout(text string, pids []int) (string, error) {
	var kept strings.Builder
	column := -1
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if column < 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return "", errors.New("ps: no column PID")
			}
			kept.WriteString(line)
			continue
		}
		if column >= len(fields) {
			continue
		}
		pid, err := strconv.Atoi(fields[column])
		if err == nil && slices.Contains(pids, pid) {
			kept.WriteString(line)
		}
	}
	return kept.String(), nil
}

// pause freezes every process of a container.
func (c *cli) pause(args []string) error {
	return c.freeze("pause", args, []specs.ContainerState{specs.StateCreated, specs.StateRunning}, (*cgroup.Group).Freeze)
}

// resume lets a frozen container go on.
func (c *cli) resume(args []string) error {
	return c.freeze("resume", args, []specs.ContainerState{statePaused}, (*cgroup.Group).Thaw)
}

func (c *cli) freeze(verb string, args []string, from []specs.ContainerState, step func(*cgroup.Group) error) error {
	ids, err := parse(newFlags(verb), args, 1, 1)
	if err != nil {
		return err
	}
	ct, _, status, err := c.openWithStatus(ids[0])
	if err != nil {
		return err
	}
	defer ct.unlock()
	if !slices.Contains(from, status) {
		return fmt.Errorf("%s container %s: it is %s: %w", verb, ct.ID, status, unix.EINVAL)
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	return step(group)
}
