package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/cni/chain"
	"github.com/longshore/longshore/cni/nat"
)

// builtIn marks the path of a plugin inside this process.
const builtIn = "built-in:"

const (
	// maxOutput bounds what a plugin may print.
	maxOutput = 1 << 20
	// pipeGrace is how long a killed plugin's children may hold its output open.
	pipeGrace = time.Second
	// busyAttempts bounds how often a plugin that is being written is tried:
	// another process may have inherited its writer for a moment (ETXTBSY).
	busyAttempts = 5
)

// executor runs plugins for a chain: in this process where it can.
type executor struct {
	dataDir   string
	netNSGoes bool      // see [Attachment]
	nat       *nat.Conn // opened when first needed
}

// close ends what the plugins of a chain shared.
func (e *executor) close() {
	if e.nat != nil {
		e.nat.Close()
	}
}

// withNAT lends the chain's connection to nftables.
func (e *executor) withNAT(do func(*nat.Conn) error) error {
	if e.nat == nil {
		var err error
		if e.nat, err = nat.Open(); err != nil {
			return err
		}
	}
	return do(e.nat)
}

// FindInPath gives the path of a plugin, or the mark of a built-in one.
func (e *executor) FindInPath(name string, dirs []string) (string, error) {
	if chain.BuiltInType(name) {
		return builtIn + name, nil
	}
	return chain.FindInPath(name, dirs)
}

// ExecPlugin is one plugin call as the specification has it: command and
// parameters in the environment, configuration in, result out.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name, ok := strings.CutPrefix(path, builtIn)
	if !ok {
		return runForeign(ctx, path, stdin, environ)
	}
	c, err := newCall(stdin, environ)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", name, err)
	}
	c.exec = e
	result, err := c.run(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", name, err)
	}
	if result == nil {
		return nil, nil
	}
	as, err := result.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("plugin %s: %w", name, err)
	}
	return json.Marshal(as)
}

// bounded keeps the beginning of what a plugin prints.
type bounded struct {
	kept []byte
	cut  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := min(len(p), maxOutput-len(b.kept))
	b.kept = append(b.kept, p[:room]...)
	b.cut = b.cut || room < len(p)
	return len(p), nil
}

// runForeign runs a plugin's binary. When the context ends it is killed.
func runForeign(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := filepath.Base(path)
	for attempt := 1; ; attempt++ {
		var stdout, stderr bounded
		cmd := exec.CommandContext(ctx, path)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
		cmd.Env = environ
		cmd.WaitDelay = pipeGrace
		// A plugin may be a script: what it has started ends with it.
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		err := cmd.Run()
		switch {
		case err == nil && stdout.cut:
			return nil, fmt.Errorf("plugin %s: output is longer than %d bytes", name, maxOutput)
		case err == nil:
			return stdout.kept, nil
		case errors.Is(err, unix.ETXTBSY) && attempt < busyAttempts:
			continue
		case ctx.Err() != nil:
			return nil, fmt.Errorf("plugin %s: %w", name, context.Cause(ctx))
		}
		return nil, pluginError(name, err, stdout.kept, stderr.kept)
	}
}

// pluginError reads the error a plugin prints as JSON; the specification's
// codes stay visible.
func pluginError(name string, err error, stdout, stderr []byte) error {
	var printed types.Error
	if json.Unmarshal(stdout, &printed) == nil && (printed.Code != 0 || printed.Msg != "") {
		printed.Msg = "plugin " + name + ": " + printed.Msg
		return &printed
	}
	const most = 1024
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = strings.TrimSpace(string(stdout))
	}
	return fmt.Errorf("plugin %s: %w: %.*s", name, err, most, text)
}

// call is one call of a built-in plugin.
type call struct {
	command, containerID, netNS, ifName, args string
	path                                      []string
	stdin                                     []byte
	environ                                   []string
	conf                                      types.PluginConf
	prev                                      *types100.Result // nil where there is none
	exec                                      *executor
}

// supported are the specification's versions a built-in plugin speaks.
func supported(v string) bool {
	switch v {
	case "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0":
		return true
	}
	return false
}

func newCall(stdin []byte, environ []string) (*call, error) {
	c := &call{stdin: stdin, environ: environ}
	for _, pair := range environ {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "CNI_COMMAND":
			c.command = value
		case "CNI_CONTAINERID":
			c.containerID = value
		case "CNI_NETNS":
			c.netNS = value
		case "CNI_IFNAME":
			c.ifName = value
		case "CNI_ARGS":
			c.args = value
		case "CNI_PATH":
			c.path = filepath.SplitList(value)
		}
	}
	if c.command == "VERSION" {
		return c, nil
	}
	if err := json.Unmarshal(stdin, &c.conf); err != nil {
		return nil, fmt.Errorf("parse configuration: %w", err)
	}
	if !supported(c.conf.CNIVersion) {
		return nil, &types.Error{Code: types.ErrIncompatibleCNIVersion, Msg: fmt.Sprintf("configuration version %q is not supported", c.conf.CNIVersion)}
	}
	if c.conf.RawPrevResult == nil {
		return c, nil
	}
	if err := version.ParsePrevResult(&c.conf); err != nil {
		return nil, fmt.Errorf("previous result: %w", err)
	}
	var err error
	if c.prev, err = types100.NewResultFromResult(c.conf.PrevResult); err != nil {
		return nil, fmt.Errorf("previous result: %w", err)
	}
	return c, nil
}

// parse reads the plugin's own part of the configuration.
func (c *call) parse(into any) error {
	if err := json.Unmarshal(c.stdin, into); err != nil {
		return fmt.Errorf("parse configuration: %w", err)
	}
	return nil
}

// commands are what a built-in plugin does; gc and status may be nil.
type commands struct {
	add            func(context.Context) (*types100.Result, error)
	del, check     func(context.Context) error
	gc, statusFunc func(context.Context) error
}

func (c *call) run(ctx context.Context, name string) (types.Result, error) {
	var p commands
	switch name {
	case "bridge":
		p = c.bridge()
	case "host-local":
		p = c.hostLocal()
	case "loopback":
		p = c.loopback()
	case "portmap":
		p = c.portmap()
	}
	var step func(context.Context) error
	switch c.command {
	case "ADD":
		if c.netNS == "" {
			return nil, errors.New("no network namespace")
		}
		result, err := p.add(ctx)
		if err != nil {
			return nil, err
		}
		result.CNIVersion = types100.ImplementedSpecVersion
		return result, nil
	case "DEL":
		step = p.del
	case "CHECK":
		if c.prev == nil && name != "host-local" {
			return nil, errors.New("check without a previous result")
		}
		step = p.check
	case "GC":
		step = p.gc
	case "STATUS":
		step = p.statusFunc
	default:
		return nil, fmt.Errorf("command %q is not supported", c.command)
	}
	if step == nil {
		return nil, nil
	}
	return nil, step(ctx)
}
