package engine

import (
	"fmt"
	"strings"
)

// PodState is where a pod is in its life.
type PodState string

// ContainerState is where a container is in its life.
type ContainerState string

// The states of a pod. One that ends in "ing" announces an act under way.
const (
	PodCreating PodState = "creating"
	PodReady    PodState = "ready"
	PodStopping PodState = "stopping"
	PodStopped  PodState = "stopped"
	PodRemoving PodState = "removing"
)

// The states of a container.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerStarting ContainerState = "starting"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

// A transition is a move that an event makes.
type transition[S ~string] struct {
	from S
	on   string
	to   S
}

// podMoves and containerMoves are the state machines; ARCHITECTURE.md shows
// them as they are printed by [Diagram].
var podMoves = []transition[PodState]{
	{PodCreating, "sandbox made", PodReady},
	{PodCreating, "failed", PodRemoving},
	{PodReady, "StopPodSandbox", PodStopping},
	{PodStopping, "network and namespaces gone", PodStopped},
	{PodStopped, "RemovePodSandbox", PodRemoving},
}

var containerMoves = []transition[ContainerState]{
	{ContainerCreating, "process at the gate", ContainerCreated},
	{ContainerCreating, "failed", ContainerRemoving},
	{ContainerCreated, "StartContainer", ContainerStarting},
	{ContainerStarting, "execve happened", ContainerRunning},
	{ContainerStarting, "process ended", ContainerExited},
	{ContainerCreated, "process ended", ContainerExited},
	{ContainerRunning, "process ended", ContainerExited},
	{ContainerExited, "RemoveContainer", ContainerRemoving},
}

// may reports whether a machine has the move.
func may[S ~string](moves []transition[S], from, to S) bool {
	for _, m := range moves {
		if m.from == from && m.to == to {
			return true
		}
	}
	return false
}

// known reports whether a machine has the state.
func known[S ~string](moves []transition[S], state S) bool {
	for _, m := range moves {
		if m.from == state || m.to == state {
			return true
		}
	}
	return false
}

// Diagram prints both state machines as a Mermaid diagram.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	draw(&b, "pod", podMoves)
	draw(&b, "container", containerMoves)
	return b.String()
}

func draw[S ~string](b *strings.Builder, name string, moves []transition[S]) {
	fmt.Fprintf(b, "  state %s {\n", name)
	fmt.Fprintf(b, "    [*] --> %s_%s\n", name, moves[0].from)
	last := moves[len(moves)-1].to
	for _, m := range moves {
		fmt.Fprintf(b, "    %s_%s --> %s_%s: %s\n", name, m.from, name, m.to, m.on)
	}
	fmt.Fprintf(b, "    %s_%s --> [*]\n  }\n", name, last)
}
