package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// report is the state of a container as it is printed: the specification's, and
// what runc has besides.
type report struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     string               `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

func (ct *container) report() (report, error) {
	p, err := ct.process()
	if err != nil {
		return report{}, err
	}
	status, err := ct.status(p)
	if err != nil {
		return report{}, err
	}
	r := report{
		Version: ct.Version, ID: ct.ID, Pid: p.Pid(), Status: status, Bundle: ct.Bundle, Rootfs: ct.Rootfs,
		Created: ct.Created, Annotations: ct.Annotations, Owner: fmt.Sprint(ct.Owner),
	}
	if ct.Owner == 0 {
		r.Owner = "root"
	}
	return r, nil
}

// state prints the state of a container as JSON.
func (c *cli) state(args []string) error {
	ids, err := parse(newFlags("state"), args, 1, 1)
	if err != nil {
		return err
	}
	ct, err := c.open(ids[0])
	if err != nil {
		return err
	}
	r, err := ct.report()
	if err != nil {
		return err
	}
	return c.printJSON(r)
}

func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// list prints every container of the root.
func (c *cli) list(args []string) error {
	f := newFlags("list")
	var format string
	var quiet bool
	f.StringVar(&format, "format", "table", "")
	f.StringVar(&format, "f", "table", "")
	f.BoolVar(&quiet, "quiet", false, "")
	f.BoolVar(&quiet, "q", false, "")
	if _, err := parse(f, args, 0, 0); err != nil {
		return err
	}
	reports, err := c.reports()
	if err != nil {
		return err
	}
	switch {
	case quiet:
		for _, r := range reports {
			fmt.Fprintln(c.out, r.ID)
		}
		return nil
	case format == "json":
		return json.NewEncoder(c.out).Encode(reports)
	case format != "table":
		return fmt.Errorf("list: format %q: %w", format, errUsage)
	}
	w := tabwriter.NewWriter(c.out, 12, 1, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
	for _, r := range reports {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", r.ID, r.Pid, r.Status, r.Bundle, r.Created, r.Owner)
	}
	return w.Flush()
}

func (c *cli) reports() ([]report, error) {
	dirs, err := os.ReadDir(c.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	reports := []report{}
	for _, dir := range dirs {
		if !dir.IsDir() || dir.Name() == filters {
			continue
		}
		ct, err := c.open(dir.Name())
		if err == nil {
			var r report
			if r, err = ct.report(); err == nil {
				reports = append(reports, r)
				continue
			}
		}
		if !errors.Is(err, errNotExist) { // one that goes or comes is not there
			c.warn(err)
		}
	}
	return reports, nil
}
