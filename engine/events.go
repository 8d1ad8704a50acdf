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
// then the pod's, with what the pod and its containers were like then.
type Event struct {
	PodID       string
	ContainerID string
	Kind        EventKind
	At          time.Time
	Pod         *Pod // nil only if it had gone
	Containers  []Container
}

// bus hands events to subscribers. It never waits for one: whoever falls behind
// is sent away, so that it knows that it has missed something.
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
			delete(b.subs, ch)
			close(ch)
		}
	}
}

func (b *bus) wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

// publish tells subscribers, if there are any, what has happened.
func (e *Engine) publish(ev Event) {
	if !e.events.wanted() {
		return
	}
	if pod, err := e.Pod(ev.PodID); err == nil {
		ev.Pod = &pod
	}
	ev.Containers = e.ContainersOf(ev.PodID)
	e.events.publish(ev)
}

// Events gives what happens from now on, until stop is called. The channel is
// closed if the caller is more than a thousand events behind.
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
