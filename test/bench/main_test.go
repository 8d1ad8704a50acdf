package main

import (
	"testing"
	"time"
)

func TestTimesOf(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond)
	}
	got := timesOf(all)
	if want := (Times{N: 100, Min: 1, P50: 51, P90: 91, P99: 100}); got != want {
		t.Errorf("timesOf = %+v, want %+v", got, want)
	}
}
