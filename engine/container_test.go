package engine

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
)

// TestNoContainerIsMadeInAPodThatEnds: one that is claimed while the pod's
// containers are being ended is ended with them, and none is claimed later.
func TestNoContainerIsMadeInAPodThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{cfg: Config{RunDir: t.TempDir()}, containers: map[string]*container{}, ofPod: map[string]map[string]*container{}}
		p := &pod{id: "p", rec: Pod{ID: "p", State: PodReady}}
		if err := os.MkdirAll(e.cfg.podDir("p"), 0o700); err != nil {
			t.Fatal(err)
		}
		claim := func(name string) (*container, error) {
			c, _, err := e.claimContainer(p, ContainerConfig{Name: name})
			return c, err
		}
		fail := func(c *container) { c.failed = errors.New("not made"); close(c.settled) }
		first, err := claim("first")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- e.endContainers(context.Background(), p) }()
		synctest.Wait() // for the first to settle
		second, err := claim("second")
		if err != nil {
			t.Fatal(err)
		}
		fail(first)
		synctest.Wait()
		if len(done) > 0 {
			t.Error("the pod's containers have ended, and one is still being made")
		}
		if c, err := claim("third"); !errors.Is(err, ErrState) {
			t.Errorf("a container is claimed in a pod that is stopping: %v, %v", c, err)
		}
		fail(second)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
