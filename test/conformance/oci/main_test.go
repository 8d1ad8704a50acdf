package main

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestParseTAP(t *testing.T) {
	for name, tc := range map[string]struct {
		text   string
		status int
		faults []string
		passed int
	}{
		"passes":             {"TAP version 13\nok 1 - a\n  ---\n  {\n    \"error\": \"x\"\n  }\n  ...\nok 2 # SKIP b\n1..2\n", 0, nil, 1},
		"fails":              {"ok 1\nnot ok 2 - b\n1..2\n", 0, []string{"not ok 2 - b"}, 1},
		"to do":              {"not ok 1 # TODO later\n1..1\n", 0, nil, 0},
		"stops":              {"ok 1\n1..3\n", 0, []string{"1 of 3 points"}, 1},
		"status":             {"1..0\nsomething\n", 1, []string{"exit status 1"}, 0},
		"overstays":          {"ok 1\n", -1, []string{"took too long"}, 1},
		"diagnoses only":     {"  ---\n  {\n    \"error\": \"bad\"\n  }\n  ...\n1..0\n", 0, []string{`"error": "bad"`}, 0},
		"says nothing":       {"", 0, nil, 0},
		"no plan":            {"ok 1\n", 0, []string{"no plan"}, 1},
		"ends before points": {"Bail out! no\n", 0, []string{"Bail out! no"}, 0},
	} {
		r := parseTAP(name, tc.text, tc.status)
		if !slices.Equal(r.faults, tc.faults) || r.passed != tc.passed {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func FuzzParseTAP(f *testing.F) {
	f.Add("ok 1\nnot ok 2\n1..2\n")
	f.Fuzz(func(t *testing.T, text string) { parseTAP("x", text, 0).verdict() })
}

func TestParseKnown(t *testing.T) {
	here := map[string]func() bool{"here": func() bool { return true }, "there": func() bool { return false }}
	known, err := parseKnown(strings.NewReader("# list\n\na # x\nb racy # y\nc here # z\nd there # z\n"), here)
	want := map[string]expectation{"a": {reason: "x"}, "b": {racy: true, reason: "y"}, "c": {reason: "z"}}
	if err != nil || !maps.Equal(known, want) {
		t.Errorf("%v, %v", known, err)
	}
	for _, bad := range []string{"a", "a #", "a b c # d", "a odd # r", "a # x\na # y", "# \n # x\n#\na"} {
		if _, err := parseKnown(strings.NewReader(bad), here); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestListIsWellFormed reads the list that is used.
func TestListIsWellFormed(t *testing.T) {
	if _, err := readKnown("known-failures.txt"); err != nil {
		t.Error(err)
	}
}

func TestJudge(t *testing.T) {
	good, bad := result{name: "good", passed: 1}, result{name: "bad", faults: []string{"why"}}
	for name, tc := range map[string]struct {
		known map[string]expectation
		part  bool
		ok    bool
		last  string
	}{
		"unknown failure": {nil, false, false, "runtime-tools: 1 passed, 1 failed, 0 known\n"},
		"known failure":   {map[string]expectation{"bad": {}}, false, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"passes though":   {map[string]expectation{"bad": {}, "good": {}}, false, false, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"racy":            {map[string]expectation{"bad": {racy: true}, "good": {racy: true}}, false, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"no such":         {map[string]expectation{"bad": {}, "other": {}}, false, false, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"part":            {map[string]expectation{"bad": {}, "other": {}}, true, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
	} {
		var out bytes.Buffer
		if ok := judge(&out, []result{good, bad}, tc.known, tc.part); ok != tc.ok || !strings.HasSuffix(out.String(), tc.last) {
			t.Errorf("%s: %v, %s", name, ok, out.String())
		}
	}
}
