package main

import "sync"

// keyedMutex is a mutex for each name. The zero value is ready to use.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*heldKey
}

type heldKey struct {
	sync.Mutex
	users int
}

// lock waits for the name and gives the function that unlocks it.
func (k *keyedMutex) lock(name string) func() {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*heldKey{}
	}
	h := k.held[name]
	if h == nil {
		h = &heldKey{}
		k.held[name] = h
	}
	h.users++
	k.mu.Unlock()
	h.Lock()
	return func() {
		h.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(k.held, name)
		}
	}
}
