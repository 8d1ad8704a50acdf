// Command bench measures a container runtime through its CRI socket, ours or
// any other: how long each call takes, how soon a pod is ready, how many there
// are in a second, and what a pod costs in CPU time and memory.
//
// Without -endpoint it starts a private daemon of ours. Results are printed as
// a table and, with -json, as one JSON object a line, so that series of
// different runtimes, interleaved, can be compared.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"text/tabwriter"
	"time"
)

// options are what a series depends on.
type options struct {
	Name     string `json:"name"`
	Endpoint string `json:"-"`
	Image    string `json:"image"`
	Command  string `json:"-"`
	Pods     int    `json:"pods"`
	Parallel int    `json:"parallel"`
	Network  string `json:"network"` // pod or host
	Execs    int    `json:"-"`
	Cgroup   string `json:"-"` // of the runtime's processes, for its CPU and memory
	Bin      string `json:"-"`
	JSON     bool   `json:"-"`
}

func main() {
	var o options
	flag.StringVar(&o.Name, "name", "longshore", "name of the series")
	flag.StringVar(&o.Endpoint, "endpoint", "", "CRI socket; empty starts a private daemon of ours")
	flag.StringVar(&o.Image, "image", "localhost/longshore/hello:latest", "image, which must be there")
	flag.StringVar(&o.Command, "command", "/bin/guest pause", "the container's command")
	flag.IntVar(&o.Pods, "n", 60, "pods")
	flag.IntVar(&o.Parallel, "c", 1, "pods at a time")
	flag.StringVar(&o.Network, "network", "pod", "pod or host")
	flag.IntVar(&o.Execs, "execs", 50, "ExecSync calls")
	flag.StringVar(&o.Cgroup, "cgroup", "", "cpuacct cgroup in which the runtime runs")
	flag.StringVar(&o.Bin, "bin", "../bin", "directory of our binaries")
	flag.BoolVar(&o.JSON, "json", false, "print JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if o.Endpoint == "" {
		end, err := ownDaemon(ctx, o)
		if err != nil {
			return err
		}
		defer end()
	}
	s, err := connect(o)
	if err != nil {
		return err
	}
	result, err := s.series(ctx)
	if err != nil {
		return err
	}
	if o.JSON {
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	return result.print()
}

// Result is what a series gives. Times are in milliseconds.
type Result struct {
	options
	Calls     map[string]Times `json:"calls"` // by RPC; "pod ready" is Run + Create + Start, "pod gone" Stop + Remove
	PerSecond float64          `json:"podsPerSecond"`
	CPUStart  float64          `json:"cpuMsPerPodStart,omitempty"` // of the runtime's processes
	CPUExec   float64          `json:"cpuMsPerExec,omitempty"`
	CPUGone   float64          `json:"cpuMsPerPodGone,omitempty"`
	PSSPod    float64          `json:"pssKiBPerPod,omitempty"` // of all but the daemon
	PSSDaemon float64          `json:"pssKiBDaemon,omitempty"`
	IdleCPU   float64          `json:"idleCPUPercent,omitempty"` // of a core, with all pods live
}

// Times describes how long calls took.
type Times struct {
	N                  int
	Min, P50, P90, P99 float64
}

func timesOf(all []time.Duration) Times {
	slices.Sort(all)
	at := func(q float64) float64 {
		return float64(all[min(len(all)-1, int(q*float64(len(all))))].Microseconds()) / 1000
	}
	return Times{N: len(all), Min: at(0), P50: at(0.5), P90: at(0.9), P99: at(0.99)}
}

func (r *Result) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s: %d pods, %d at a time, %s network\t\t\t\t\t\n", r.Name, r.Pods, r.Parallel, r.Network)
	fmt.Fprintln(w, "ms\tn\tmin\tp50\tp90\tp99\t")
	for _, name := range callOrder {
		if t, ok := r.Calls[name]; ok {
			fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t\n", name, t.N, t.Min, t.P50, t.P90, t.P99)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("pods per second %.1f; CPU ms per pod start %.1f, gone %.1f, exec %.2f; PSS KiB per pod %.0f, daemon %.0f; idle CPU %.2f %%\n",
		r.PerSecond, r.CPUStart, r.CPUGone, r.CPUExec, r.PSSPod, r.PSSDaemon, r.IdleCPU)
	return nil
}
