package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/images"
)

// live is the configuration in force. A part of it can change while the daemon
// serves: the log level, runtime handlers and where their shims lie, registries.
type live struct {
	file   string
	level  *slog.LevelVar
	engine *engine.Engine
	images *images.Store
	log    *slog.Logger

	mu  sync.Mutex // guards cfg
	cfg Config
}

// String prints the configuration in force.
func (l *live) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cfg.String()
}

// follow reads the configuration again upon each signal, until ctx ends.
func (l *live) follow(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-signals:
			if err := l.reload(); err != nil {
				l.log.Error("configuration stays as it was", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// reload takes over what can change. A file with an error changes nothing.
func (l *live) reload() error {
	next, err := loadConfig(l.file)
	if err != nil {
		return err
	}
	level, err := logLevel(next.LogLevel)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engine.SetHandlers(next.handlers(), next.ShimDirs)
	l.images.SetRegistries(next.images().Registries)
	// What takes a restart stays, and is told.
	taken := l.cfg
	taken.LogLevel, taken.Handlers, taken.ShimDirs, taken.Images.Registries = next.LogLevel, next.Handlers, next.ShimDirs, next.Images.Registries
	l.cfg = taken
	// It is told at the more talkative of the two levels.
	if level < l.level.Level() {
		l.level.Set(level)
	}
	defer l.level.Set(level)
	l.log.Info("configuration is read again", "needRestart", strings.Join(differing(&taken, &next), " "))
	return nil
}

// differing names the keys, or tables, in which two configurations differ.
func differing(a, b *Config) []string {
	var names []string
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, x.Type().Field(i).Tag.Get("toml"))
		}
	}
	return names
}

func logLevel(name string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return level, fmt.Errorf("configuration: log_level: %w", err)
	}
	return level, nil
}

// newLogger makes the daemon's log, and gives what changes its level.
func newLogger(level string) (*slog.Logger, *slog.LevelVar, error) {
	l, err := logLevel(level)
	if err != nil {
		return nil, nil, err
	}
	live := &slog.LevelVar{}
	live.Set(l)
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: live})), live, nil
}
