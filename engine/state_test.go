package engine

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what is generated")

// TestDiagramInTheDocument holds that ARCHITECTURE.md shows the state machines
// as they are.
func TestDiagramInTheDocument(t *testing.T) {
	const path, begin, end = "../ARCHITECTURE.md", "-update -->\n", "<!-- end of state diagram -->"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the diagram", path)
	}
	want := "```mermaid\n" + Diagram() + "```\n"
	if old == want {
		return
	}
	if !*update {
		t.Fatalf("%s does not show the state machines as they are; run go test ./engine -run Diagram -update", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyTheTablesMoves(t *testing.T) {
	if !may(podMoves, PodCreating, PodReady) || may(podMoves, PodStopped, PodReady) {
		t.Error("a pod may go from stopped to ready, or not from creating to ready")
	}
	if !may(containerMoves, ContainerRunning, ContainerExited) || may(containerMoves, ContainerExited, ContainerRunning) {
		t.Error("a container may run after it has exited, or not exit after it has run")
	}
}
