// Package cni finds the network configuration of a node and says whether it is
// usable.
//
// It is the daemon's side: it reads files and runs nothing. What it hands out,
// a [Network], is self-contained bytes that a shim passes to package plugin.
// The first file of the configuration directory, by name, decides; a broken one
// is an error and never silently gives way to the next, for pods would then
// join another network than the operator wrote. Without any file there is a
// network of our own, so that a node works as installed.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/longshore/longshore/cni/chain"
)

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// Config says where things are. Empty fields get the usual places.
type Config struct {
	// ConfDir holds the configuration files: /etc/cni/net.d.
	ConfDir string
	// BinDirs hold the plugins that are not built in: /opt/cni/bin.
	BinDirs []string
	// CacheDir keeps the results of ADD for DEL and CHECK. It may be on a tmpfs.
	CacheDir string
	// DataDir keeps the addresses given out: /var/lib/cni/networks.
	DataDir string
	// MaxConf is how many configuration files are tried: 1 by default, which is
	// also all that makes sense for pods. 0 stands for 1.
	MaxConf int
	// DefaultSubnets are the networks of the built-in default, at most one per
	// address family; without any, [DefaultSubnets].
	DefaultSubnets []string
	// RequireConf makes a directory without configuration an error, for nodes
	// whose network is installed by a pod.
	RequireConf bool
}

// Network is a network pods can join.
type Network struct {
	Name string
	// Raw is the configuration list, complete: plugins that were files of their
	// own are in it.
	Raw []byte
	// Source is the file's path, or [BuiltIn].
	Source string

	types   []string // the plugins' types
	binDirs []string
}

// BuiltIn is the [Network.Source] of the default network.
const BuiltIn = "built-in default"

// ErrNoConfig says that the directory has no configuration and none is built in.
var ErrNoConfig = errors.New("no CNI configuration")

// Load reads the node's network.
func Load(cfg Config) (*Network, error) {
	cfg.fill()
	files, err := libcni.ConfFiles(cfg.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("list CNI configurations: %w", err)
	}
	if len(files) == 0 {
		if cfg.RequireConf {
			return nil, fmt.Errorf("%w in %s", ErrNoConfig, cfg.ConfDir)
		}
		return defaultNetwork(cfg)
	}
	slices.Sort(files)
	var errs []error
	for _, file := range files[:min(len(files), cfg.MaxConf)] {
		n, err := loadFile(file)
		if err == nil {
			n.binDirs = cfg.BinDirs
			return n, nil
		}
		errs = append(errs, fmt.Errorf("CNI configuration %s: %w", file, err))
	}
	return nil, errors.Join(errs...)
}

func (c *Config) fill() {
	if c.ConfDir == "" {
		c.ConfDir = "/etc/cni/net.d"
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{"/opt/cni/bin"}
	}
	c.MaxConf = max(c.MaxConf, 1)
}

func loadFile(file string) (*Network, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxConfig)
	}
	var list *libcni.NetworkConfigList
	if strings.HasSuffix(file, ".conflist") {
		list, err = libcni.NetworkConfFromFile(file)
	} else {
		list, err = singleFile(file)
	}
	if err != nil {
		return nil, err
	}
	return newNetwork(list, file)
}

// singleFile reads a configuration of one plugin, or a list under another name.
func singleFile(file string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var shape struct {
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return nil, err
	}
	if shape.Plugins != nil {
		return libcni.NetworkConfFromBytes(data)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf)
}

func newNetwork(list *libcni.NetworkConfigList, source string) (*Network, error) {
	if !chain.ValidName(list.Name) {
		return nil, fmt.Errorf("network name %.64q is not valid", list.Name)
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins in the list")
	}
	if newer, err := version.GreaterThan(versionOf(list), version.Current()); err != nil {
		return nil, err
	} else if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s", list.CNIVersion, version.Current())
	}
	n := &Network{Name: list.Name, Source: source}
	for _, p := range list.Plugins {
		n.types = append(n.types, p.Network.Type)
	}
	var err error
	if n.Raw, err = complete(list); err != nil {
		return nil, err
	}
	return n, nil
}

func versionOf(list *libcni.NetworkConfigList) string {
	if list.CNIVersion == "" {
		return "0.1.0"
	}
	return list.CNIVersion
}

// complete writes the list with all plugins inline, so that it means the same
// when the files have changed.
func complete(list *libcni.NetworkConfigList) ([]byte, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	for key, value := range map[string]any{"plugins": plugins, "loadOnlyInlinedPlugins": true, "cniVersion": versionOf(list)} {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		raw[key] = text
	}
	delete(raw, "cniVersions") // chosen by now
	return json.Marshal(raw)
}

// Status says why pods cannot join the network, nil if they can, as far as that
// shows without running a plugin: each must be built in or installed.
func (n *Network) Status() error {
	var errs []error
	for _, name := range n.types {
		if chain.BuiltInType(name) || installed(name, n.binDirs) {
			continue
		}
		errs = append(errs, fmt.Errorf("network %s: plugin %q is not in %s: %w", n.Name, name, strings.Join(n.binDirs, ", "), fs.ErrNotExist))
	}
	return errors.Join(errs...)
}

func installed(name string, dirs []string) bool {
	if name == "" || strings.ContainsRune(name, '/') {
		return false
	}
	for _, dir := range dirs {
		info, err := os.Stat(filepath.Join(dir, name))
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
