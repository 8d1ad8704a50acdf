package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/longshore/longshore/cri"
	"github.com/longshore/longshore/cri/stream"
	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/shim/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// socketMode lets root alone in.
const socketMode = 0o660

// serve runs the daemon until ctx ends, with the configuration that file holds,
// which it reads again upon SIGHUP. No container is touched by its end.
func serve(ctx context.Context, file string, cfg *Config) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP) // one that comes early must not end us
	defer signal.Stop(hangups)
	log, level, err := newLogger(cfg.LogLevel)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log) // what the streaming libraries have to say
	for _, dir := range []string{cfg.RunDir, cfg.StateDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	unlock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := listen(cfg.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	store, err := images.Open(filepath.Join(cfg.StateDir, "images"), cfg.images(), log)
	if err != nil {
		return err
	}
	defer store.Close()
	binary, err := cfg.shimBinary()
	if err != nil {
		return err
	}
	shims, err := client.NewPool(binary, filepath.Join(cfg.RunDir, "shims"), cfg.IdleShims, log)
	if err != nil {
		return err
	}
	defer shims.Close()
	e, err := engine.New(cfg.engine(), store, shims, log)
	if err != nil {
		return err
	}
	defer e.Close()
	if err := e.Recover(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := e.StartPlugins(); err != nil {
		return err
	}
	streams, err := newStreams(&cfg.Streaming, e, log)
	if err != nil {
		return err
	}
	now := &live{file: file, level: level, engine: e, images: store, log: log, cfg: *cfg}
	var following sync.WaitGroup
	defer following.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	following.Go(func() { now.follow(ctx, hangups) })
	server := cri.New(e, store, streams, version(), now.String, log).GRPC()
	registerAdmin(server, store)
	log.Info("serving", "socket", cfg.Socket, "version", version())
	return serveUntil(ctx, server, l, streams, log)
}

// serveUntil serves both servers until ctx ends or one of them fails.
func serveUntil(ctx context.Context, server *grpc.Server, l net.Listener, streams *stream.Server, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var serving sync.WaitGroup
	serving.Go(func() { cancel(streams.Serve()) })
	serving.Go(func() { cancel(server.Serve(l)) })
	<-ctx.Done()
	log.Info("stopping")
	// Clients that wait are told so; what they asked for goes on.
	server.Stop()
	closeErr := streams.Close()
	serving.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return closeErr
}

func newStreams(cfg *StreamingConfig, e *engine.Engine, log *slog.Logger) (*stream.Server, error) {
	out := stream.Config{Address: cfg.Address, Idle: time.Duration(cfg.IdleTimeout)}
	if cfg.CertFile != "" {
		var err error
		if out.Certificates, err = stream.Certificates(cfg.CertFile, cfg.KeyFile, log); err != nil {
			return nil, fmt.Errorf("streaming server: %w", err)
		}
	}
	return stream.Listen(out, e)
}
