// Package chain runs the plugins of a CNI network configuration list, one after
// the other, as sections 3 and 4 of the CNI specification have it.
//
// It belongs to whoever attaches one pod, and holds no state but the cached
// results of ADD: one file per attachment, in the format of libcni, so that a
// node can change between runtimes. libcni itself stays in the daemon, which
// reads an operator's files with it: its tracing links an HTTP stack, whose
// packages would cost every shim 240 KiB of private memory.
//
// What is read here, a list, a cached result or a plugin's answer, is decoded
// before it is used, and no name reaches a path before it was checked.
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// Exec runs single plugins.
type Exec interface {
	// FindInPath gives what ExecPlugin takes for a plugin's type.
	FindInPath(name string, dirs []string) (string, error)
	// ExecPlugin is one call: configuration in, result out; the command and the
	// parameters are in the environment.
	ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error)
}

// Runner says how to run plugins.
type Runner struct {
	Exec     Exec
	BinDirs  []string // where FindInPath looks
	CacheDir string   // results are kept below it; empty is /var/lib/cni
}

// Attachment is one interface of one container in one network.
type Attachment struct {
	ContainerID, NetNS, IfName string
	// Args are CNI_ARGS.
	Args [][2]string
	// Capabilities are given to the plugins that declare them, as runtimeConfig.
	Capabilities map[string]any
}

func (a *Attachment) validate() error {
	if !ValidName(a.ContainerID) {
		return fmt.Errorf("container id %.64q is not valid in CNI", a.ContainerID)
	}
	if !validInterface(a.IfName) {
		return fmt.Errorf("interface name %.32q is not valid", a.IfName)
	}
	return nil
}

// object is a configuration with all its keys, known or not.
type object map[string]json.RawMessage

// with gives a copy in which the values replace what has their keys.
func (o object) with(values map[string]any) (object, error) {
	out := maps.Clone(o)
	for key, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		out[key] = text
	}
	return out, nil
}

// config is what a plugin reads: its own part of the list, completed.
func (r *Runner) config(l *List, p *plugin, a *Attachment, prev types.Result) ([]byte, error) {
	values := map[string]any{"name": l.Name, "cniVersion": l.CNIVersion}
	if prev != nil {
		values["prevResult"] = prev
	}
	given := map[string]any{}
	for name, value := range a.Capabilities {
		if p.capabilities[name] {
			given[name] = value
		}
	}
	if len(given) > 0 {
		values["runtimeConfig"] = given
	}
	conf, err := p.raw.with(values)
	if err != nil {
		return nil, fmt.Errorf("configuration of plugin %s: %w", p.kind, err)
	}
	return json.Marshal(conf)
}

// call runs one plugin of the list.
func (r *Runner) call(ctx context.Context, command string, p *plugin, conf []byte, a *Attachment) ([]byte, error) {
	path, err := r.Exec.FindInPath(p.kind, r.BinDirs)
	if err != nil {
		return nil, err
	}
	return r.Exec.ExecPlugin(ctx, path, conf, r.environ(command, a))
}

func (r *Runner) environ(command string, a *Attachment) []string {
	args := make([]string, len(a.Args))
	for i, pair := range a.Args {
		args[i] = pair[0] + "=" + pair[1]
	}
	environ := slices.DeleteFunc(os.Environ(), func(pair string) bool { return strings.HasPrefix(pair, "CNI_") })
	return append(environ, "CNI_COMMAND="+command, "CNI_CONTAINERID="+a.ContainerID, "CNI_NETNS="+a.NetNS,
		"CNI_ARGS="+strings.Join(args, ";"), "CNI_IFNAME="+a.IfName,
		"CNI_PATH="+strings.Join(r.BinDirs, string(os.PathListSeparator)))
}

// Add runs the chain with ADD and keeps the result, that of the last plugin,
// for later commands. What ran before a failure is not taken back.
func (r *Runner) Add(ctx context.Context, l *List, a *Attachment) (types.Result, error) {
	if err := a.validate(); err != nil {
		return nil, err
	}
	var result types.Result
	for i := range l.plugins {
		p := &l.plugins[i]
		conf, err := r.config(l, p, a, result)
		if err != nil {
			return nil, err
		}
		out, err := r.call(ctx, "ADD", p, conf, a)
		if err == nil {
			result, err = DecodeResult(out, l.CNIVersion)
		}
		if err != nil {
			return nil, fmt.Errorf("plugin %s (add): %w", p.kind, err)
		}
	}
	return result, r.remember(l, a, result)
}

// Del runs the chain backwards with DEL and forgets the result. A result that
// cannot be read is left out: DEL has to work without.
func (r *Runner) Del(ctx context.Context, l *List, a *Attachment) error {
	if err := a.validate(); err != nil {
		return err
	}
	var prev types.Result
	if l.atLeast("0.4.0") {
		if cached, err := r.recall(l, a); err == nil {
			prev = cached
		}
	}
	for i := range l.plugins {
		p := &l.plugins[len(l.plugins)-1-i]
		if err := r.command(ctx, "DEL", l, p, a, prev); err != nil {
			return fmt.Errorf("plugin %s (delete): %w", p.kind, err)
		}
	}
	return r.forget(l, a)
}

// Check asks every plugin whether the attachment is as ADD left it.
func (r *Runner) Check(ctx context.Context, l *List, a *Attachment) error {
	if err := a.validate(); err != nil {
		return err
	}
	if !l.atLeast("0.4.0") {
		return fmt.Errorf("configuration version %q has no CHECK command", l.CNIVersion)
	}
	if l.disableCheck {
		return nil
	}
	prev, err := r.recall(l, a)
	if err != nil {
		return err
	}
	for i := range l.plugins {
		if err := r.command(ctx, "CHECK", l, &l.plugins[i], a, prev); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) command(ctx context.Context, command string, l *List, p *plugin, a *Attachment, prev types.Result) error {
	conf, err := r.config(l, p, a, prev)
	if err != nil {
		return err
	}
	_, err = r.call(ctx, command, p, conf, a)
	return err
}

// Status asks every plugin whether it can serve an ADD; nil where the version
// of the list has no such question. The first error ends it, so that its code
// stays what the plugin gave.
func (r *Runner) Status(ctx context.Context, l *List) error {
	if !l.atLeast("1.1.0") {
		return nil
	}
	for i := range l.plugins {
		if err := r.command(ctx, "STATUS", l, &l.plugins[i], &Attachment{}, nil); err != nil {
			return err
		}
	}
	return nil
}

// GC deletes the attachments with a cached result that are not among the valid
// ones, and tells the plugins of the rest.
func (r *Runner) GC(ctx context.Context, l *List, valid []types.GCAttachment) error {
	if l.disableGC {
		return nil
	}
	stale, err := r.attachments(l)
	errs := []error{err}
	for _, a := range stale {
		if slices.Contains(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName}) {
			continue
		}
		if err := r.Del(ctx, l, a); err != nil {
			errs = append(errs, fmt.Errorf("stale attachment %s of %s: %w", a.IfName, a.ContainerID, err))
		}
	}
	if !l.atLeast("1.1.0") {
		return errors.Join(errs...)
	}
	// The specification's first text had the second key.
	values := map[string]any{"name": l.Name, "cniVersion": l.CNIVersion, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
	for i := range l.plugins {
		p := &l.plugins[i]
		conf, err := p.raw.with(values)
		if err == nil {
			var text []byte
			if text, err = json.Marshal(conf); err == nil {
				_, err = r.call(ctx, "GC", p, text, &Attachment{})
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("plugin %s (gc): %w", p.kind, err))
		}
	}
	return errors.Join(errs...)
}

// DecodeResult reads what a plugin printed. A result without a version has that
// of the configuration, as plugins have long relied upon.
func DecodeResult(out []byte, confVersion string) (types.Result, error) {
	var raw object
	if err := json.Unmarshal(out, &raw); err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	var printed string
	if text, ok := raw["cniVersion"]; ok {
		if err := json.Unmarshal(text, &printed); err != nil {
			return nil, fmt.Errorf("result: cniVersion: %w", err)
		}
	}
	if printed == "" {
		if raw == nil {
			raw = object{} // the plugin printed null
		}
		printed = confVersion
		completed, err := raw.with(map[string]any{"cniVersion": printed})
		if err != nil {
			return nil, fmt.Errorf("result: %w", err)
		}
		if out, err = json.Marshal(completed); err != nil {
			return nil, fmt.Errorf("result: %w", err)
		}
	}
	result, err := create.Create(printed, out)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	return result, nil
}

// FindInPath gives the path of the plugin's binary in the first of the
// directories that has it.
func FindInPath(name string, dirs []string) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("plugin name %.64q is not valid", name)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("plugin %q in %s: %w", name, strings.Join(dirs, ", "), os.ErrNotExist)
}

// atLeast compares versions of the specification; a version that is none is
// below all.
func (l *List) atLeast(least string) bool {
	ok, err := version.GreaterThanOrEqualTo(l.CNIVersion, least)
	return err == nil && ok
}
