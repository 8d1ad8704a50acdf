// Package undo takes back what an operation had done when a later step fails.
//
// A [Stack] belongs to one goroutine. Push what was taken as soon as it is
// taken; [Stack.Keep] once the whole has succeeded.
package undo

// Stack holds the steps that take back what was done, newest last. The zero
// value is ready to use.
type Stack struct {
	steps []func()
}

// Add pushes the step that takes back what was just done.
func (s *Stack) Add(step func()) { s.steps = append(s.steps, step) }

// Run takes back, newest first, all that was not kept. Call it deferred.
func (s *Stack) Run() {
	for len(s.steps) > 0 {
		last := len(s.steps) - 1
		step := s.steps[last]
		s.steps = s.steps[:last]
		step()
	}
}

// Keep forgets the steps: what was taken stays.
func (s *Stack) Keep() { s.steps = nil }
