package main

import "testing"

func TestShowKeepsToItsDirectory(t *testing.T) {
	s := &show{dir: "/tmp/x"}
	if got := s.socket(); got != "/tmp/x/run/longshore.sock" {
		t.Errorf("socket = %s", got)
	}
}
