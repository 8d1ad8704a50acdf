package cri

import (
	"context"
	"errors"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/engine/criu"
	"github.com/longshore/longshore/images"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// codeOf lists the errors that have a code of their own, first match first.
var codeOf = []struct {
	err    error
	code   codes.Code
	prefix string // that kubelet understands (cri-api, pkg/errors)
}{
	{engine.ErrNotFound, codes.NotFound, ""},
	{engine.ErrInvalid, codes.InvalidArgument, ""},
	{engine.ErrExists, codes.AlreadyExists, ""},
	{engine.ErrState, codes.FailedPrecondition, ""},
	{criu.ErrUnusable, codes.FailedPrecondition, ""},
	{engine.ErrNetwork, codes.Unavailable, ""},
	{engine.ErrTimeout, codes.DeadlineExceeded, ""},
	{images.ErrNotFound, codes.NotFound, ""},
	{images.ErrInvalidReference, codes.InvalidArgument, ""},
	{images.ErrUnauthorized, codes.Unauthenticated, ""},
	{images.ErrUnavailable, codes.Unavailable, "RegistryUnavailable: "},
	{images.ErrCorrupt, codes.DataLoss, ""},
	{images.ErrNoSpace, codes.ResourceExhausted, ""},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	{context.Canceled, codes.Canceled, ""},
}

// coder is an error that brings a gRPC code from a shim.
type coder interface {
	error
	GRPCCode() int32
}

// withCode gives an error its gRPC code. This is the one place that chooses
// codes.
func withCode(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, known := range codeOf {
		if errors.Is(err, known.err) {
			return status.Error(known.code, known.prefix+err.Error())
		}
	}
	if c, ok := errors.AsType[coder](err); ok {
		return status.Error(codes.Code(c.GRPCCode()), err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}
