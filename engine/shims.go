package engine

import (
	"sync"

	"github.com/longshore/longshore/shim/client"
)

// podShim is the shim of all containers of a pod whose handler wants one for
// them ([Handler.ShimPerPod]). It is there while a container uses it. The
// containers share its connection, which none of them closes.
type podShim struct {
	mu    sync.Mutex   // guards all below
	conn  *client.Shim // nil: none
	users int          // containers that are being made in it, or that it holds
}

// join takes a container in, with the shim that is there or else with what open
// gives. One that has died is not taken: those whose shim it was will see.
func (s *podShim) join(open func() (*client.Shim, error)) (*client.Shim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && !s.conn.Gone() {
		s.users++
		return s.conn, nil
	}
	conn, err := open()
	if err != nil {
		return nil, err
	}
	if s.conn != nil {
		s.conn.Close()
	}
	s.conn, s.users = conn, 1
	return conn, nil
}

// leave lets a container out. The last one ends the shim.
func (s *podShim) leave(conn *client.Shim) {
	if s.out(conn) {
		endShim(conn)
	}
}

// out reports whether the container was the last.
func (s *podShim) out(conn *client.Shim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return false // it has died, and another took its place
	}
	if s.users--; s.users > 0 {
		return false
	}
	s.conn = nil
	return true
}

// close lets go of the shim; it goes on.
func (s *podShim) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
}

// shimFor gives a shim that will make a container of a pod: one of ours, which
// is the pod's if it has one for all, or a keeper that has another runtime's
// make it. It is given back by [Engine.leaveShim].
func (e *Engine) shimFor(h *Handler, p *pod, c *container) (*client.Shim, error) {
	if h.foreign() {
		return e.shims.Keeper()
	}
	if !p.snapshot().SharedShim {
		return e.shims.Get()
	}
	c.shared = &p.shim
	return p.shim.join(e.shims.Get)
}

// dialShim connects to the shim that a container's record names.
func (e *Engine) dialShim(c *container) (*client.Shim, error) {
	open := func() (*client.Shim, error) { return client.Dial(c.rec.Shim) }
	e.mu.Lock()
	p, ok := e.pods[c.podID]
	e.mu.Unlock()
	if !ok || !p.snapshot().SharedShim {
		return open()
	}
	s, err := p.shim.join(open)
	if err != nil || s.Addr() == c.rec.Shim {
		c.shared = &p.shim
		return s, err
	}
	p.shim.leave(s) // the pod's shim is not this one, which was about to end
	return open()
}

// leaveShim gives a container's shim back. It ends, unless other containers
// use it.
func (e *Engine) leaveShim(c *container, s *client.Shim) {
	if c.shared != nil {
		c.shared.leave(s)
		return
	}
	endShim(s)
}
