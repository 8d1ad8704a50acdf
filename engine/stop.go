package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	"golang.org/x/sys/unix"
)

// StopContainer ends a container: its stop signal, and after grace SIGKILL. It
// is idempotent; a container that is not there is stopped.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.do(ctx, func(context.Context) error { return e.stopContainer(ctx, c, grace) })
}

// stopContainer takes no semaphore: a second call with less patience shall cut
// the first one short.
func (e *Engine) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	<-c.settled
	if c.failed != nil {
		return nil
	}
	rec := c.snapshot()
	if rec.State == ContainerExited || rec.State == ContainerRemoving {
		return nil
	}
	shim, err := c.connection()
	if err != nil {
		return nil // it has just ended
	}
	if grace > 0 && rec.State == ContainerRunning {
		sig, err := ParseSignal(rec.StopSignal)
		if err != nil {
			return err
		}
		if err := ignoreGone(shim.Kill(ctx, c.id, "", sig, false)); err != nil {
			return fmt.Errorf("stop container %s: %w", c.id, err)
		}
		select {
		case <-c.exited:
			return nil
		case <-time.After(grace):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := ignoreGone(shim.Kill(context.WithoutCancel(ctx), c.id, "", unix.SIGKILL, true)); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ignoreGone takes "it is not there any more" as success.
func ignoreGone(err error) error {
	if errors.Is(err, client.ErrGone) || api.CodeOf(err) == api.CodeNotFound {
		return nil
	}
	return err
}

// ParseSignal reads a signal's name, with or without "SIG", or its number; ""
// is SIGTERM.
func ParseSignal(name string) (syscall.Signal, error) {
	if name == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	upper := "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	const rtMin, rtMax = 34, 64
	for prefix, base := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		rest, ok := strings.CutPrefix(upper, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n := base + offset; n >= rtMin && n <= rtMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("%w: signal %q", ErrInvalid, name)
}
