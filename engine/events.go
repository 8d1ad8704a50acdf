package engine

import (
	"sync"
	"time"
)

// EventKind is what happened.
type EventKind int

// What can happen to a pod or container.
const (
	EventCreated EventKind = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event says what happened to a container, or to a pod, whose ContainerID is
// then the pod's.
type Event struct {
	PodID       string
	ContainerID string
	Kind        EventKind
	At          time.Time
}

// bus hands events to subscribers. A subscriber that is slow loses events; it
// never holds up the engine.
type bus struct {
	mu   sync.Mutex // guards subs
	subs map[chan Event]struct{}
}

// eventBuffer is how far a subscriber may fall behind.
const eventBuffer = 1024

func (b *bus) publish(ev Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- ev:
		default:
		}
	}
}

// Events gives what happens from now on, until stop is called. Events that the
// caller does not take in time are lost.
func (e *Engine) Events() (events <-chan Event, stop func()) {
	ch := make(chan Event, eventBuffer)
	b := &e.events
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = map[chan Event]struct{}{}
	}
	b.subs[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
	}
}
