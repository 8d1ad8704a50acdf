package undo

import (
	"slices"
	"testing"
)

func TestRunGoesNewestFirst(t *testing.T) {
	var s Stack
	var got []int
	for i := range 3 {
		s.Add(func() { got = append(got, i) })
	}
	s.Run()
	s.Run()
	if want := []int{2, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
}

func TestKeepForgets(t *testing.T) {
	var s Stack
	s.Add(func() { t.Error("a kept step ran") })
	s.Keep()
	s.Run()
}
