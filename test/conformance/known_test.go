package main

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseKnown(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want map[string]string
		err  string
	}{
		"empty":          {"", map[string]string{}, ""},
		"comment":        {"# a comment\n\n  # another\n", map[string]string{}, ""},
		"one":            {"[k8s.io] a b  # is broken\n", map[string]string{"[k8s.io] a b": "is broken"}, ""},
		"reason has #":   {"a # see #12\n", map[string]string{"a": "see #12"}, ""},
		"no reason":      {"# top\na\n", nil, "line 2: no reason"},
		"empty reason":   {"a #  \n", nil, "line 1: no reason"},
		"listed twice":   {"a # x\nb # x\na # y\n", nil, `line 3: "a" is listed twice`},
		"no end of line": {"a # x", map[string]string{"a": "x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseKnown(strings.NewReader(test.text))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || !maps.Equal(got, test.want) {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

// The list in use must be readable, or a run ends before it begins.
func TestKnownFailures(t *testing.T) {
	if _, err := readLists("known-failures.txt", "known-skips.txt"); err != nil {
		t.Error(err)
	}
}

func TestSurprises(t *testing.T) {
	known := lists{failures: map[string]string{"k": "reason"}, skips: map[string]string{"may ": "reason"}}
	for name, test := range map[string]struct {
		specs []spec
		want  []string
	}{
		"as known":             {[]spec{{"k", failed, "m"}, {"p", passed, ""}, {"s", skipped, ""}}, nil},
		"known is skipped":     {[]spec{{"k", skipped, "has no network"}}, nil},
		"may skip itself":      {[]spec{{"k", failed, ""}, {"may do so", skipped, "has no use"}}, nil},
		"skips itself":         {[]spec{{"k", failed, ""}, {"u", skipped, "has no use"}}, []string{"SKIP u\n  has no use"}},
		"unknown fails":        {[]spec{{"k", failed, ""}, {"u", failed, "at x.go:1: 1\n2"}}, []string{"FAIL u\n  at x.go:1: 1\n  2"}},
		"known passes":         {[]spec{{"k", passed, ""}}, []string{"PASS, though listed as known to fail: k"}},
		"known does not exist": {[]spec{{"p", passed, ""}}, []string{"NO SPEC of this name, though listed as known to fail: k"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := surprises(test.specs, known); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestJudgeCountsLast(t *testing.T) {
	var out bytes.Buffer
	ok := judge(&out, []spec{{"k", failed, ""}, {"p", passed, ""}, {"q", passed, ""}, {"s", skipped, ""}}, lists{failures: map[string]string{"k": "reason"}})
	if want := "critest: 2 passed, 1 failed, 1 skipped\n"; !ok || out.String() != want {
		t.Errorf("judge gives %v and prints %q, want %q", ok, out.String(), want)
	}
	out.Reset()
	ok = judge(&out, []spec{{"u", failed, "why"}}, lists{})
	if want := "FAIL u\n  why\ncritest: 0 passed, 1 failed, 0 skipped\n"; ok || out.String() != want {
		t.Errorf("judge gives %v and prints %q, want %q", ok, out.String(), want)
	}
}

func TestParseReport(t *testing.T) {
	f, err := os.Open("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := parseReport(f)
	if err != nil {
		t.Fatal(err)
	}
	want := []spec{
		{"[k8s.io] Container runtime should support log starts", passed, ""},
		{"[k8s.io] AppArmor enforces", skipped, "AppArmor is disabled on this host"},
		{"[k8s.io] Image Manager pulls", failed, "failed at image.go:53: not found"},
		{"[k8s.io] PodSandbox hangs", failed, "timedout at pod.go:70: A spec timeout occurred"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseReportTellsOfHalfARun(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":      "PASS",
		"cut short":     `[{"SpecialSuiteFailureReasons": ["Interrupted by User"], "SpecReports": []}]`,
		"set-up failed": `[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "panicked"}]}]`,
	} {
		if specs, err := parseReport(strings.NewReader(text)); err == nil {
			t.Errorf("%s: got %v and no error", name, specs)
		}
	}
}
