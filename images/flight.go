package images

import (
	"context"
	"sync"
)

// flights runs one call per key, however many ask for it at once. A call does
// not depend on who asked first: it goes on while anyone waits for it, and is
// cancelled when the last one has left.
type flights[T any] struct {
	spawn func(func()) error

	mu    sync.Mutex
	calls map[string]*flight[T]
}

type flight[T any] struct {
	done    chan struct{} // closed once value and err are set
	value   T
	err     error
	waiting int
	cancel  context.CancelFunc
}

// do runs fn, or waits for the run that is under way; joined tells which.
func (f *flights[T]) do(ctx context.Context, key string, fn func(context.Context) (T, error)) (value T, joined bool, err error) {
	f.mu.Lock()
	call, joined := f.calls[key]
	if !joined {
		call, err = f.start(ctx, key, fn)
		if err != nil {
			f.mu.Unlock()
			return value, false, err
		}
	}
	call.waiting++
	f.mu.Unlock()
	defer f.leave(key, call)
	select {
	case <-call.done:
		return call.value, joined, call.err
	case <-ctx.Done():
		return value, joined, context.Cause(ctx)
	}
}

func (f *flights[T]) start(ctx context.Context, key string, fn func(context.Context) (T, error)) (*flight[T], error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	call := &flight[T]{done: make(chan struct{}), cancel: cancel}
	err := f.spawn(func() {
		call.value, call.err = fn(ctx)
		cancel()
		f.forget(key, call)
		close(call.done)
	})
	if err != nil {
		cancel()
		return nil, err
	}
	if f.calls == nil {
		f.calls = map[string]*flight[T]{}
	}
	f.calls[key] = call
	return call, nil
}

func (f *flights[T]) forget(key string, call *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls[key] == call {
		delete(f.calls, key)
	}
}

func (f *flights[T]) leave(key string, call *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if call.waiting--; call.waiting > 0 {
		return
	}
	call.cancel()
	// Who comes now must not join what is being given up.
	if f.calls[key] == call {
		delete(f.calls, key)
	}
}

// cancelAll gives up every call; whoever waits gets its error.
func (f *flights[T]) cancelAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, call := range f.calls {
		call.cancel()
	}
}

// parallel runs the tasks, at most limit at once and in order of their start,
// and returns the first error, which ends the others.
func parallel(ctx context.Context, limit int, tasks []func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	slots := make(chan struct{}, limit)
	for _, task := range tasks {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			if err := task(ctx); err != nil {
				cancel(err)
			}
			<-slots
		})
	}
	running.Wait()
	return context.Cause(ctx)
}
