package main

import (
	"bytes"
	"reflect"
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
		"fails":              {"ok 1\nnot ok 2 - b\n1..2\n", 0, []string{"b"}, 1},
		"to do":              {"not ok 1 # TODO later\n1..1\n", 0, nil, 0},
		"stops":              {"ok 1\n1..3\n", 0, []string{"1 of 3 points"}, 1},
		"status":             {"1..0\nsomething\n", 1, []string{"exit status 1: something"}, 0},
		"status explained":   {"TAP version 13\nno such\nnot ok 1 - exit status 1\n1..1\n", 0, []string{"exit status 1: no such"}, 0},
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
	known, err := parseKnown(strings.NewReader("# list\n\na # x\n  f # 1\n\n g\nb racy # y\n f\nc here # z\n f\nd there # z\n f\n"), here)
	want := map[string]expectation{
		"a": {reason: "x", faults: []string{"f # 1", "g"}}, "b": {racy: true, reason: "y", faults: []string{"f"}}, "c": {reason: "z", faults: []string{"f"}},
	}
	if err != nil || !reflect.DeepEqual(known, want) {
		t.Errorf("%v, %v", known, err)
	}
	for _, bad := range []string{"a", "a #", "a b c # d", "a odd # r", "a # x\n f\na # y\n f", "# \n # x\n#\na", "a # x", "d there # x", " f\na # x\n f"} {
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
	good, bad := result{name: "good", passed: 1}, result{name: "bad", faults: []string{"why: 7"}}
	why := []string{"why"}
	for name, tc := range map[string]struct {
		known map[string]expectation
		part  bool
		ok    bool
		last  string
	}{
		"unknown failure": {nil, false, false, "runtime-tools: 1 passed, 1 failed, 0 known\n"},
		"known failure":   {map[string]expectation{"bad": {faults: why}}, false, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"another fault":   {map[string]expectation{"bad": {faults: []string{"what"}}}, false, false, "runtime-tools: 1 passed, 1 failed, 0 known\n"},
		"one that passed": {map[string]expectation{"bad": {faults: []string{"why", "what"}}}, false, false, "runtime-tools: 1 passed, 1 failed, 0 known\n"},
		"passes though":   {map[string]expectation{"bad": {faults: why}, "good": {}}, false, false, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"racy":            {map[string]expectation{"bad": {racy: true, faults: []string{"why", "or not"}}, "good": {racy: true}}, false, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"no such":         {map[string]expectation{"bad": {faults: why}, "other": {}}, false, false, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
		"part":            {map[string]expectation{"bad": {faults: why}, "other": {}}, true, true, "runtime-tools: 1 passed, 0 failed, 1 known\n"},
	} {
		var out bytes.Buffer
		if ok := judge(&out, []result{good, bad}, tc.known, tc.part); ok != tc.ok || !strings.HasSuffix(out.String(), tc.last) {
			t.Errorf("%s: %v, %s", name, ok, out.String())
		}
	}
}
