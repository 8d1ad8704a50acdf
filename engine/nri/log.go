package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/sirupsen/logrus"
)

// output is the daemon's log. The libraries have one for the whole process,
// which they read without a lock, so theirs is set once.
var (
	output   atomic.Pointer[slog.Logger]
	takeLogs sync.Once
)

// logTo puts what the interface's libraries say into a log.
func logTo(log *slog.Logger) {
	output.Store(log)
	takeLogs.Do(func() {
		nrilog.Set(logger{})
		// ttrpc speaks of every broken message, through logrus.
		std := logrus.StandardLogger()
		std.SetOutput(io.Discard)
		std.ReplaceHooks(logrus.LevelHooks{})
		std.AddHook(relay{})
	})
}

// logger hands on what the library says. Its steps are for debugging; that a
// plugin fails is not.
type logger struct{}

// says is the message of every line of the library's.
const says = "plugin interface"

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.put(ctx, slog.LevelDebug, format, args)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.put(ctx, slog.LevelDebug, format, args)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.put(ctx, slog.LevelWarn, format, args)
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	for _, arg := range args {
		// A build without WASM is no failure.
		if err, ok := arg.(error); ok && errors.Is(err, adaptation.ErrWasmDisabled) {
			return
		}
	}
	l.put(ctx, slog.LevelWarn, format, args)
}

func (l logger) put(ctx context.Context, level slog.Level, format string, args []any) {
	if log := output.Load(); log.Enabled(ctx, level) {
		log.Log(ctx, level, says, "says", fmt.Sprintf(format, args...))
	}
}

// relay hands on what libraries say through logrus.
type relay struct{}

// Levels are those that the standard logger has on.
func (relay) Levels() []logrus.Level { return logrus.AllLevels }

// Fire hands a line on.
func (relay) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.WarnLevel {
		level = slog.LevelWarn
	}
	args := []any{"says", e.Message}
	for key, value := range e.Data {
		args = append(args, key, value)
	}
	output.Load().Log(context.Background(), level, "connection", args...)
	return nil
}
