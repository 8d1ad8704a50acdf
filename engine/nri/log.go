package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/sirupsen/logrus"
)

// logger puts what the library says into the daemon's log. Its steps are for
// debugging; that a plugin fails is not.
type logger struct{ log *slog.Logger }

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
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, says, "says", fmt.Sprintf(format, args...))
	}
}

// relay hands on what libraries say through logrus.
type relay struct{ log *slog.Logger }

// relayLogrus keeps the lines of ttrpc, which speaks of every broken message,
// in the daemon's format.
func relayLogrus(log *slog.Logger) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(relay{log})
}

// Levels are those that the standard logger has on.
func (relay) Levels() []logrus.Level { return logrus.AllLevels }

// Fire hands a line on.
func (r relay) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.WarnLevel {
		level = slog.LevelWarn
	}
	args := []any{"says", e.Message}
	for key, value := range e.Data {
		args = append(args, key, value)
	}
	r.log.Log(context.Background(), level, "connection", args...)
	return nil
}
