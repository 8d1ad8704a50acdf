package cri

import (
	"context"
	"log/slog"

	"github.com/longshore/longshore/cri/stream"
	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/images"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Server answers for RuntimeService and ImageService.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	engine  *engine.Engine
	images  *images.Store
	streams *stream.Server
	config  func() string // the daemon's configuration, for verbose answers
	version string
	log     *slog.Logger
}

// New makes a server; config gives the daemon's configuration as text.
func New(e *engine.Engine, store *images.Store, streams *stream.Server, version string, config func() string, log *slog.Logger) *Server {
	return &Server{engine: e, images: store, streams: streams, version: version, config: config, log: log}
}

// maxMessage is what kubelet receives at most, in bytes (cri-client, utils.go).
const maxMessage = 16 << 20

// GRPC makes a gRPC server that answers for both services.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	return g
}

// unary gives every error its code and logs those of the node's making.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	return resp, s.outcome(ctx, info.FullMethod, err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.outcome(ss.Context(), info.FullMethod, handler(srv, ss))
}

func (s *Server) outcome(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	err = withCode(err)
	if code := status.Code(err); code == codes.Unknown || code == codes.Internal {
		s.log.ErrorContext(ctx, "request failed", "method", method, "err", err)
	} else {
		s.log.DebugContext(ctx, "request refused", "method", method, "err", err)
	}
	return err
}
