package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// result is what a program said in the Test Anything Protocol.
type result struct {
	name    string
	passed  int
	skipped int
	faults  []string // why it failed
}

func (r result) verdict() string {
	switch {
	case len(r.faults) > 0:
		return "FAIL"
	case r.passed == 0 && r.skipped > 0:
		return "pass (skipped)"
	}
	return "pass"
}

// parseTAP reads a program's output. A program fails by a point that is "not
// ok", by its status, by fewer points than it announced, and, as some announce
// none at all, by an error in its diagnostics.
func parseTAP(name, text string, status int) result {
	r := result{name: name}
	plan, points := -1, 0
	var diagnosed []string
	said := "" // last, beside the protocol: mostly by the runtime
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "not ok"):
			points++
			if !strings.Contains(line, "# TODO") && !strings.Contains(line, "# SKIP") {
				r.faults = append(r.faults, explained(description(line), said))
			}
		case strings.HasPrefix(line, "ok"):
			points++
			if strings.Contains(strings.ToUpper(line), "# SKIP") {
				r.skipped++
			} else {
				r.passed++
			}
		case strings.HasPrefix(line, "1.."):
			if _, err := fmt.Sscanf(line, "1..%d", &plan); err != nil {
				r.faults = append(r.faults, line)
			}
		case strings.HasPrefix(line, "Bail out!"):
			r.faults = append(r.faults, line)
		case strings.HasPrefix(trimmed, "error: "), strings.HasPrefix(trimmed, `"error": `):
			diagnosed = append(diagnosed, trimmed)
		case trimmed == line && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "exit status ") && !strings.HasPrefix(line, "Refer to: "):
			said = line
		}
	}
	if points == 0 {
		r.faults = append(r.faults, diagnosed...)
	}
	switch {
	case status == -1:
		r.faults = append(r.faults, "took too long")
	case status != 0:
		r.faults = append(r.faults, explained(fmt.Sprintf("exit status %d", status), said))
	case plan < 0 && points > 0: // without points, the status is all it says
		r.faults = append(r.faults, "no plan")
	case points < plan:
		r.faults = append(r.faults, fmt.Sprintf("%d of %d points", points, plan))
	}
	return r
}

// description is a failed point without its number, which the same check has in
// each of its containers.
func description(line string) string {
	_, text, ok := strings.Cut(line, " - ")
	if !ok {
		return line
	}
	return text
}

// explained adds what was said to a fault that is a status alone.
func explained(fault, said string) string {
	if strings.HasPrefix(fault, "exit status ") && said != "" {
		return fault + ": " + said
	}
	return fault
}

// judge prints what was not as known, and the counts last. With part, only a
// part of the programs has run.
func judge(out io.Writer, results []result, known map[string]expectation, part bool) bool {
	ok := true
	surprise := func(format string, args ...any) {
		ok = false
		fmt.Fprintf(out, format+"\n", args...)
	}
	var passed, failed, expected int
	for _, r := range results {
		expect, isKnown := known[r.name]
		switch {
		case len(r.faults) == 0 && isKnown && !expect.racy:
			passed++
			surprise("PASS, though listed as known to fail: %s", r.name)
		case len(r.faults) == 0:
			passed++
		default:
			if isKnown {
				r.faults = expect.differences(r.faults)
			}
			if len(r.faults) == 0 {
				expected++
				continue
			}
			failed++
			surprise("FAIL %s\n  %s", r.name, strings.Join(r.faults, "\n  "))
		}
	}
	for name := range known {
		if !part && !slices.ContainsFunc(results, func(r result) bool { return r.name == name }) {
			surprise("NO PROGRAM of this name, though listed as known to fail: %s", name)
		}
	}
	fmt.Fprintf(out, "runtime-tools: %d passed, %d failed, %d known\n", passed, failed, expected)
	return ok
}
