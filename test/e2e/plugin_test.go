package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/longshore/longshore/test/plugin"
)

func (s *session) pluginLog(name string) string { return s.node.Path("plugin-" + name + ".log") }

// plugin start NAME FILE.acts, plugin stop NAME, plugin install NAME FILE.acts,
// plugin says NAME TEXT..., plugin log NAME, plugin forget NAME. A plugin is
// named INDEX-NAME; one that is installed is started by the daemon.
func pluginVerb(s *session, ctx context.Context, args []string, out io.Writer) error {
	name := args[1]
	switch args[0] {
	case "start":
		return s.startPlugin(ctx, name, args[2])
	case "stop":
		cmd := s.plugins[name]
		delete(s.plugins, name)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // of the signal
		return nil
	case "install":
		return s.installPlugin(name, args[2])
	case "says":
		return s.pluginSays(ctx, name, strings.Join(args[2:], " "))
	case "log":
		data, err := os.ReadFile(s.pluginLog(name))
		out.Write(data)
		return err
	case "forget": // what it has said
		return os.Truncate(s.pluginLog(name), 0)
	}
	return fmt.Errorf("plugin %s: no such verb", args[0])
}

// updateAll FILE.json NAME... updates containers at once, again and again.
func updateAll(s *session, ctx context.Context, args []string, out io.Writer) error {
	const rounds = 20
	errs := make([]error, len(args))
	var wg sync.WaitGroup
	for i, name := range args[1:] {
		wg.Go(func() {
			for range rounds {
				errs[i] = errors.Join(errs[i], update(s, ctx, []string{name, args[0]}, out))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *session) pluginEnv(name, acts string) []string {
	return []string{plugin.EnvActs + "=" + acts, plugin.EnvLog + "=" + s.pluginLog(name)}
}

func (s *session) startPlugin(ctx context.Context, name, acts string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Remove(s.pluginLog(name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(s.pluginEnv(name, acts), plugin.EnvName+"="+name, plugin.EnvSocket+"="+s.node.PluginSocket())
	if err := cmd.Start(); err != nil {
		return err
	}
	if s.plugins == nil {
		s.plugins = map[string]*exec.Cmd{}
	}
	s.plugins[name] = cmd
	return s.pluginSays(ctx, name, "Synchronize")
}

// installPlugin puts a script where the daemon finds its plugins.
func (s *session) installPlugin(name, acts string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(acts)
	if err != nil {
		return err
	}
	dir := s.node.Path("nri")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	kept := s.node.Path("plugin-" + name + ".acts")
	if err := os.WriteFile(kept, data, 0o644); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\n%s exec %s\n", strings.Join(s.pluginEnv(name, kept), " "), self)
	return os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755)
}

func (s *session) pluginSays(ctx context.Context, name, text string) error {
	err := poll(ctx, func() (bool, error) {
		data, err := os.ReadFile(s.pluginLog(name))
		if os.IsNotExist(err) {
			return false, nil
		}
		return bytes.Contains(data, []byte(text)), err
	})
	if err != nil {
		data, _ := os.ReadFile(s.pluginLog(name))
		return fmt.Errorf("plugin %s does not say %q: %w\n%s", name, text, err, data)
	}
	return nil
}
