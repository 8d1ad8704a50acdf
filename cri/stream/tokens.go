package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// tokenLife is how long a URL may be used, as with other runtimes.
	tokenLife = time.Minute
	// maxTokens bounds the URLs that nobody has used yet.
	maxTokens = 1000
)

// tokens remembers what was asked for by a name that cannot be guessed. A token
// serves once, within its life, and for what it was given out for. The zero
// value is empty.
type tokens struct {
	mu    sync.Mutex // guards all below
	byID  map[string]token
	order []string // oldest first; may name tokens that are gone
}

type token struct {
	kind    string
	asked   any
	expires time.Time
}

// add gives a new token for a request, or ResourceExhausted if too many are
// out.
func (t *tokens) add(kind string, asked any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for len(t.order) > 0 {
		oldest, ok := t.byID[t.order[0]]
		if ok && now.Before(oldest.expires) {
			break
		}
		delete(t.byID, t.order[0])
		t.order = t.order[1:]
	}
	if len(t.byID) >= maxTokens {
		return "", status.Errorf(codes.ResourceExhausted, "%d streaming requests wait for their clients", maxTokens)
	}
	if t.byID == nil {
		t.byID = map[string]token{}
	}
	id := rand.Text() // 128 bits
	t.byID[id] = token{kind, asked, now.Add(tokenLife)}
	t.order = append(t.order, id)
	return id, nil
}

// take gives what a token was given out for, once.
func (t *tokens) take(kind, id string) (asked any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.byID[id]
	if !ok {
		return nil, false
	}
	delete(t.byID, id)
	return found.asked, found.kind == kind && time.Now().Before(found.expires)
}
