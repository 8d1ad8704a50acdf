package engine

import "errors"

// Errors that a caller acts on; others are of the machine's making.
var (
	// ErrNotFound says that there is no such pod or container.
	ErrNotFound = errors.New("not found")
	// ErrInvalid says that what was asked for makes no sense.
	ErrInvalid = errors.New("invalid")
	// ErrExists says that the identity is taken by something else.
	ErrExists = errors.New("already exists")
	// ErrState says that the object is not in a state for the operation.
	ErrState = errors.New("wrong state")
	// ErrNetwork says that the pod network is not ready.
	ErrNetwork = errors.New("network is not ready")
	// ErrTimeout says that a process ran for longer than it was allowed.
	ErrTimeout = errors.New("timed out")
	// ErrSlow says that a client took less than it was sent, for too long.
	ErrSlow = errors.New("the client took too little of the output and was let go")
)
