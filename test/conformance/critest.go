package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
)

// grace is what critest gets to write its report once its time is over.
const grace = 30 * time.Second

// critest runs the specs in the node's room and reads its report.
func critest(ctx context.Context, n *node.Node, program, logs string, o options) ([]spec, error) {
	out, err := os.Create(filepath.Join(logs, "critest.log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	// Directories that specs forget go with the node's.
	tmp := n.Path("tmp")
	if err := os.Mkdir(tmp, 0o1777); err != nil {
		return nil, err
	}
	report := filepath.Join(logs, "report.json")
	endpoint := "unix://" + n.Socket()
	ctx, cancel := context.WithTimeout(ctx, o.limit+2*grace)
	defer cancel()
	args := append([]string{"-runtime-endpoint", endpoint, "-image-endpoint", endpoint, "-ginkgo.no-color",
		"-nri-socket", n.PluginSocket(), "-ginkgo.json-report", report, "-ginkgo.timeout", o.limit.String(), "-ginkgo.focus", o.focus}, o.extra...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Dir = tmp
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) }
	cmd.WaitDelay = grace
	n.Room.Do(func() { err = cmd.Start() })
	if err != nil {
		return nil, err
	}
	waitErr := cmd.Wait() // that specs failed is known better from the report
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("run critest: %w", err)
	}
	file, err := os.Open(report)
	if err != nil {
		return nil, errors.Join(waitErr, err)
	}
	defer file.Close()
	return parseReport(file)
}

// state is how a spec ended.
type state int

const (
	failed state = iota // anything but the other two
	passed
	skipped
)

// spec is one test of critest and its end.
type spec struct {
	name    string // the names of its containers and its own, by spaces
	state   state
	message string // of a failure: what and where; why a spec has skipped itself, "" for one that was left out
}

// parseReport reads Ginkgo's JSON report. That a run was cut short, or that its
// set-up failed, is an error beside what the specs said until then.
func parseReport(r io.Reader) ([]spec, error) {
	var suites []struct {
		SpecialSuiteFailureReasons []string
		SpecReports                []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct {
				Message  string
				Location struct {
					FileName   string
					LineNumber int
				}
			}
		}
	}
	if err := json.NewDecoder(r).Decode(&suites); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var specs []spec
	var short error
	for _, suite := range suites {
		if len(suite.SpecialSuiteFailureReasons) > 0 {
			short = fmt.Errorf("critest was cut short: %s", strings.Join(suite.SpecialSuiteFailureReasons, ", "))
		}
		for _, s := range suite.SpecReports {
			if s.LeafNodeType != "It" {
				if s.State == "passed" {
					continue
				}
				short = fmt.Errorf("%s of critest %s: %s", s.LeafNodeType, s.State, s.Failure.Message)
				continue
			}
			one := spec{name: strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")}
			switch s.State {
			case "passed":
				one.state = passed
			case "skipped", "pending":
				one.state, one.message = skipped, s.Failure.Message
			default:
				one.message = fmt.Sprintf("%s at %s:%d: %s", s.State, filepath.Base(s.Failure.Location.FileName),
					s.Failure.Location.LineNumber, s.Failure.Message)
			}
			specs = append(specs, one)
		}
	}
	return specs, short
}
