package cri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestGatherKeepsTheOrder(t *testing.T) {
	items := make([]int, 500)
	for i := range items {
		items[i] = i
	}
	got, err := gather(items, func(i *int) (*int, error) {
		if *i%3 == 0 {
			return nil, fmt.Errorf("%d: %w", *i, engine.ErrNotFound)
		}
		return i, nil
	})
	if err != nil || len(got) != 333 || !slices.IsSortedFunc(got, func(a, b *int) int { return *a - *b }) {
		t.Errorf("%d of them, %v", len(got), err)
	}
	one, err := inTurn(items[:5], func(i *int) (*int, error) {
		if *i%3 == 0 {
			return nil, engine.ErrNotFound
		}
		return i, nil
	})
	if err != nil || len(one) != 3 || *one[0] != 1 {
		t.Errorf("in turn: %d of them, %v", len(one), err)
	}
	broken := errors.New("broken")
	if _, err := inTurn(items, func(*int) (*int, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := gather(items, func(*int) (*int, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if got, err := gather(nil, func(*int) (*int, error) { return nil, broken }); len(got) != 0 || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// TestChunksFitAMessage holds that each item is sent once, in order, and that no
// message is longer than a client takes.
func TestChunksFitAMessage(t *testing.T) {
	for name, note := range map[string]int{"small": 10, "as long as Kubernetes lets annotations be": 256 << 10, "longer than a chunk": 5 << 20} {
		items := make([]*runtimeapi.PodSandbox, 130)
		text := strings.Repeat("x", note)
		for i := range items {
			items[i] = &runtimeapi.PodSandbox{Id: fmt.Sprint(i), Annotations: map[string]string{"a": text}}
		}
		var sent []*runtimeapi.PodSandbox
		err := inChunks(items, func(chunk []*runtimeapi.PodSandbox) error {
			if size := len(chunk) * note; size > 16<<20 || len(chunk) == 0 || len(chunk) > chunkItems {
				t.Errorf("%s: a message of %d items and %d bytes", name, len(chunk), size)
			}
			sent = append(sent, chunk...)
			return nil
		})
		if err != nil || !slices.Equal(sent, items) {
			t.Errorf("%s: %d of %d sent, %v", name, len(sent), len(items), err)
		}
	}
}
