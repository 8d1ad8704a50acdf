package main

import "testing"

func TestArg(t *testing.T) {
	if got := arg([]string{"a"}, 0, "b"); got != "a" {
		t.Errorf("arg 0 = %q", got)
	}
	if got := arg(nil, 0, "b"); got != "b" {
		t.Errorf("arg of none = %q", got)
	}
}
