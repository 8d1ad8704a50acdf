package cri

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/longshore/longshore/engine"
	"google.golang.org/protobuf/proto"
)

// gather asks about each item, as many at once as there are processors: an
// answer waits for the kernel's files. What is removed meanwhile is left out.
func gather[T, R any](items []T, ask func(*T) (*R, error)) ([]*R, error) {
	found, errs := make([]*R, len(items)), make([]error, len(items))
	var next atomic.Int64
	var asking sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(items)) {
		asking.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(items); i = int(next.Add(1)) - 1 {
				found[i], errs[i] = ifThere(ask(&items[i]))
			}
		})
	}
	asking.Wait()
	return slices.DeleteFunc(found, func(r *R) bool { return r == nil }), errors.Join(errs...)
}

// inTurn is gather for the containers of a pod, where the pods are gathered.
func inTurn[T, R any](items []T, ask func(*T) (*R, error)) ([]*R, error) {
	var found []*R
	for i := range items {
		r, err := ifThere(ask(&items[i]))
		if err != nil {
			return nil, err
		}
		if r != nil {
			found = append(found, r)
		}
	}
	return found, nil
}

func ifThere[R any](r *R, err error) (*R, error) {
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil
	}
	return r, err
}

// A message of a stream carries at most so many items and, beside the first,
// so many bytes: clients take 16 MiB, and a pod's annotations may be 256 KiB.
const (
	chunkItems = 100
	chunkBytes = 4 << 20
)

// inChunks sends a list in messages.
func inChunks[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 1, proto.Size(items[0])
		for n < len(items) && n < chunkItems {
			if size += proto.Size(items[n]); size > chunkBytes {
				break
			}
			n++
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}
