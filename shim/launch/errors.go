package launch

import "errors"

var (
	// errMissing says that the spec lacks a field that a container needs.
	errMissing = errors.New("missing")
	// errUnsupported says that the spec asks for what this runtime does not do.
	errUnsupported = errors.New("not supported")
)
