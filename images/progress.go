package images

import (
	"io"
	"sync"
)

// Progress tells how far a pull has come with one layer.
type Progress struct {
	Blob string // digest of the compressed layer
	Done int64  // bytes read; Size once the layer is there
	Size int64  // bytes in all
	// Complete says that the layer is there, verified and unpacked.
	Complete bool
}

// progressStep is how many bytes go by between two reports.
const progressStep = 1 << 20

// watchers are those who follow a pull, by the pull's key: also who joined a
// pull that another began is told.
type watchers struct {
	mu     sync.Mutex
	serial int
	tell   map[string]map[int]func(Progress)
}

// add makes fn be told until the returned function is called. fn is called by
// one goroutine at a time and must not call the store.
func (w *watchers) add(key string, fn func(Progress)) (remove func()) {
	if fn == nil {
		return func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tell == nil {
		w.tell = map[string]map[int]func(Progress){}
	}
	if w.tell[key] == nil {
		w.tell[key] = map[int]func(Progress){}
	}
	w.serial++
	id := w.serial
	w.tell[key][id] = fn
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.tell[key], id); len(w.tell[key]) == 0 {
			delete(w.tell, key)
		}
	}
}

func (w *watchers) report(key string, p Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fn := range w.tell[key] {
		fn(p)
	}
}

// reporter reports what is read through it, now and then.
type reporter struct {
	src       io.Reader
	report    func(done int64)
	done, due int64
}

func (r *reporter) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.done += int64(n); r.done >= r.due {
		r.due = r.done + progressStep
		r.report(r.done)
	}
	return n, err
}
