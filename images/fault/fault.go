// Package fault names the ways in which getting an image can fail, so that the
// packages below images agree on them and a caller can choose a status code.
//
// It owns no state. An error wraps at most one of these; whoever meets the
// cause first decides which.
package fault

import (
	"errors"
	"syscall"
)

var (
	// ErrNotFound says that no such image, manifest or blob exists there.
	ErrNotFound = errors.New("not found")
	// ErrInvalidReference says that the name can never name an image.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrUnauthorized says that the registry refused the credentials, or their absence.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnavailable says that the registry was not reached, or answered that
	// it cannot serve now; trying later may help.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrCorrupt says that what arrived is not what was promised: a digest, a
	// size, a format, or a layer that tries to write where it must not.
	ErrCorrupt = errors.New("corrupt content")
	// ErrNoSpace says that the disk, or the quota on it, is full.
	ErrNoSpace = errors.New("no space left for images")
)

// Known reports whether err already wraps one of this package's errors.
func Known(err error) bool {
	for _, known := range []error{ErrNotFound, ErrInvalidReference, ErrUnauthorized, ErrUnavailable, ErrCorrupt, ErrNoSpace} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// IsFull reports whether err is the kernel's word for a full disk or quota.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
