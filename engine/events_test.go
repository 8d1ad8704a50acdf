package engine

import (
	"fmt"
	"testing"
	"time"
)

// eventEngine has one pod with two containers.
func eventEngine() *Engine {
	e := &Engine{pods: map[string]*pod{}, containers: map[string]*container{}, ofPod: map[string]map[string]*container{}}
	e.pods["p"] = &pod{id: "p", rec: Pod{ID: "p", State: PodReady, Config: PodConfig{PodKey: PodKey{Name: "web"}}}}
	for _, id := range []string{"a", "b"} {
		e.addContainer(newContainer(Container{ID: id, PodID: "p", State: ContainerRunning}))
	}
	return e
}

// Whoever reads nothing holds nobody up: it is sent away, and what it had not
// taken it can still read. Others get every event, with what all was like.
func TestSlowSubscriberIsSentAway(t *testing.T) {
	e := eventEngine()
	never, stopNever := e.Events()
	keen, stopKeen := e.Events()
	defer stopKeen()
	const many = 2000
	for i := range many {
		e.publish(Event{PodID: "p", ContainerID: fmt.Sprint(i), Kind: EventStarted, At: time.Now()}) // returns, or the test does not
		ev := <-keen
		if ev.ContainerID != fmt.Sprint(i) || ev.Pod == nil || ev.Pod.Config.Name != "web" || len(ev.Containers) != 2 {
			t.Fatalf("event %d: %+v", i, ev)
		}
	}
	late, stopLate := e.Events()
	e.publish(Event{PodID: "p", ContainerID: "new", Kind: EventStopped})
	if ev := <-late; ev.ContainerID != "new" || len(late) != 0 {
		t.Errorf("who comes late gets %+v, and %d more", ev, len(late))
	}
	stopLate()
	kept := 0
	for range never {
		kept++
	}
	if kept != eventBuffer {
		t.Errorf("%d events of %d are kept for who reads nothing", kept, many)
	}
	stopNever()
	stopNever()
	if stopKeen(); e.events.wanted() {
		t.Error("somebody is still subscribed")
	}
}

func TestDeletedPodIsTold(t *testing.T) {
	e := eventEngine()
	events, stop := e.Events()
	defer stop()
	last := e.pods["p"].rec
	delete(e.pods, "p")
	e.publish(Event{PodID: "p", ContainerID: "p", Kind: EventDeleted, Pod: &last})
	if ev := <-events; ev.Pod == nil || ev.Pod.Config.Name != "web" {
		t.Errorf("%+v", ev)
	}
}
