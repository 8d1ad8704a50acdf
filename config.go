package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/engine/nri"
	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/pelletier/go-toml/v2"
)

// Config is the daemon's configuration. Every option, its meaning and its
// default are written here and nowhere else; "longshore config" prints them.
type Config struct {
	Socket    string `toml:"socket" comment:"The unix socket on which the container runtime interface is served."`
	RunDir    string `toml:"run_dir" comment:"Records and sockets that a reboot ends; a tmpfs."`
	StateDir  string `toml:"state_dir" comment:"Images and writable layers; an overlayfs must be able to use it."`
	Shim      string `toml:"shim" comment:"The shim's binary; empty: longshore-shim beside this binary."`
	IdleShims int    `toml:"idle_shims" comment:"How many shims are started ahead."`
	LogLevel  string `toml:"log_level" comment:"debug, info, warn or error."`

	ShimDirs []string                 `toml:"shim_dirs" comment:"Where shims of other runtimes are looked for, before PATH."`
	Handlers map[string]HandlerConfig `toml:"handlers" comment:"What RuntimeClasses may ask for, by name. SIGHUP has these read again, as shim_dirs, images.registries and log_level."`

	Streaming  StreamingConfig  `toml:"streaming" comment:"Exec, attach and port-forward for kubelet."`
	Pods       PodsConfig       `toml:"pods" comment:"Defaults of pods and containers."`
	Network    NetworkConfig    `toml:"network" comment:"The pod network."`
	Images     ImagesConfig     `toml:"images" comment:"Where images come from."`
	CDI        CDIConfig        `toml:"cdi" comment:"Devices by the Container Device Interface."`
	Checkpoint CheckpointConfig `toml:"checkpoint" comment:"Saving containers to files and restoring them."`
	NRI        NRIConfig        `toml:"nri" comment:"Plugins of the Node Resource Interface, which see and adjust pods and containers."`
}

// HandlerConfig is about one runtime handler.
type HandlerConfig struct {
	RuntimeType     string   `toml:"runtime_type" comment:"Empty: our own shim. Another runtime's: io.containerd.NAME.vN is containerd-shim-NAME-vN; or a path."`
	OCIRuntime      string   `toml:"oci_runtime" comment:"What io.containerd.runc.v2 runs; empty: runc."`
	ConfigPath      string   `toml:"config_path" comment:"The other runtime's own configuration."`
	Annotations     []string `toml:"annotations" comment:"Which annotations of pods and containers the other runtime gets, as patterns."`
	Seccomp         string   `toml:"seccomp" comment:"Of containers that say nothing: unconfined or runtime/default; empty: pods.seccomp."`
	UserNamespaces  string   `toml:"user_namespaces" comment:"auto gives pods that say nothing a user namespace with ids of their own; empty: only those that ask."`
	ShimPer         string   `toml:"shim_per" comment:"container or pod: for what there is one process of the shim. One per pod takes less memory, and all containers of the pod end with it. Another runtime than runc may need it: it has one virtual machine, say, for a pod. Empty: container for our own shim and for runc, else pod."`
	CgroupNamespace string   `toml:"cgroup_namespace" comment:"private or host: whether containers see their own cgroup as the root; empty: private."`
}

// CDIConfig is about devices that have a specification.
type CDIConfig struct {
	SpecDirs []string `toml:"spec_dirs" comment:"Where specifications lie; of two for one device the one in the later directory wins."`
}

// CheckpointConfig is about checkpoint and restore.
type CheckpointConfig struct {
	Criu string `toml:"criu" comment:"The program criu, 3.16 or later: its path, or its name to look for it."`

	RestoreImages bool `toml:"restore_images" comment:"Let an image, or an archive named instead of one, be a checkpoint. Whoever writes a checkpoint decides what its processes may do."`
}

// NRIConfig is about plugins.
type NRIConfig struct {
	Enabled             bool            `toml:"enabled"`
	Socket              string          `toml:"socket" comment:"Where plugins register."`
	DisableConnections  bool            `toml:"disable_connections" comment:"Only the plugins of plugin_dir."`
	PluginDir           string          `toml:"plugin_dir" comment:"Plugins that the daemon starts, named INDEX-NAME."`
	PluginConfigDir     string          `toml:"plugin_config_dir" comment:"Their configuration: INDEX-NAME.conf or NAME.conf."`
	RegistrationTimeout Duration        `toml:"registration_timeout" comment:"For a plugin that has connected."`
	RequestTimeout      Duration        `toml:"request_timeout" comment:"For each answer of a plugin; one that misses it is dropped."`
	Validator           ValidatorConfig `toml:"default_validator" comment:"What plugins may not adjust."`
}

// ValidatorConfig is about the built-in validator of adjustments; its keys are
// those of other runtimes.
type ValidatorConfig struct {
	Enabled                     bool     `toml:"enable"`
	RejectOCIHooks              bool     `toml:"reject_oci_hook_adjustment"`
	RejectRuntimeDefaultSeccomp bool     `toml:"reject_runtime_default_seccomp_adjustment" comment:"Changes of the runtime's default profile."`
	RejectUnconfinedSeccomp     bool     `toml:"reject_unconfined_seccomp_adjustment" comment:"Profiles for containers that have none."`
	RejectCustomSeccomp         bool     `toml:"reject_custom_seccomp_adjustment" comment:"Changes of localhost profiles."`
	RejectNamespaces            bool     `toml:"reject_namespace_adjustment"`
	RejectSysctls               bool     `toml:"reject_sysctl_adjustment"`
	RequiredPlugins             []string `toml:"required_plugins" comment:"Without these no container is made."`
	TolerateMissingAnnotation   string   `toml:"tolerate_missing_plugins_annotation" comment:"The annotation by which a pod does without them."`
}

// StreamingConfig is about exec, attach and port-forward.
type StreamingConfig struct {
	Address  string `toml:"address" comment:"Host and port; port 0 takes a free one."`
	CertFile string `toml:"cert_file" comment:"A certificate makes the server speak TLS; it is read again when it has changed."`
	KeyFile  string `toml:"key_file"`

	IdleTimeout Duration `toml:"idle_timeout" comment:"A stream that carries nothing for so long is closed, and so is one whose client takes nothing."`
}

// Duration is a time span as a configuration writes it: 90s, 4h.
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(text []byte) error {
	span, err := time.ParseDuration(string(text))
	*d = Duration(span)
	return err
}

// PodsConfig is what pods get that say nothing else.
type PodsConfig struct {
	CgroupDriver       string `toml:"cgroup_driver" comment:"Who makes cgroups: cgroupfs, systemd, or auto for systemd where it runs."`
	CgroupParent       string `toml:"cgroup_parent" comment:"Of pods that name none: a path, with systemd a slice; empty: /longshore or longshore.slice."`
	ShmSize            int64  `toml:"shm_size" comment:"Size of /dev/shm, in bytes."`
	Seccomp            string `toml:"seccomp" comment:"Of containers that say nothing: unconfined or runtime/default."`
	AppArmor           string `toml:"apparmor" comment:"The same, where the kernel has AppArmor: longshore-default, which is loaded by apparmor_parser, another loaded profile, or unconfined."`
	SeccompProfileRoot string `toml:"seccomp_profile_root" comment:"Where relative localhost profiles lie."`
}

// NetworkConfig says where CNI's configuration and state lie.
type NetworkConfig struct {
	ConfDir  string   `toml:"conf_dir" comment:"The first conflist here is the pod network; without any, a built-in bridge is."`
	BinDirs  []string `toml:"bin_dirs" comment:"Plugins that are not built in."`
	CacheDir string   `toml:"cache_dir"`
	DataDir  string   `toml:"data_dir" comment:"Which addresses are taken."`

	RequireConf bool `toml:"require_conf" comment:"Wait for a conflist, and never use the built-in bridge: for nodes whose network is installed by a pod."`
}

// ImagesConfig is about registries.
type ImagesConfig struct {
	ParallelLayers int                       `toml:"parallel_layers" comment:"How many layers of an image are fetched at once."`
	Registries     map[string]RegistryConfig `toml:"registries" comment:"By the host in an image's name, e.g. [images.registries.\"docker.io\"]"`
}

// RegistryConfig is about one registry.
type RegistryConfig struct {
	Mirrors  []string `toml:"mirrors" comment:"Base URLs that are tried first, in this order."`
	Insecure bool     `toml:"insecure" comment:"Plain HTTP, or TLS without a check."`
	CAFile   string   `toml:"ca_file"`
}

// defaultConfig is the configuration of a daemon that is told nothing.
func defaultConfig() Config {
	return Config{
		Socket:    "/run/longshore/longshore.sock",
		RunDir:    "/run/longshore",
		StateDir:  "/var/lib/longshore",
		IdleShims: 2,
		LogLevel:  "info",
		Streaming: StreamingConfig{Address: "127.0.0.1:0", IdleTimeout: Duration(4 * time.Hour)},
		Pods: PodsConfig{CgroupDriver: "auto", ShmSize: 64 << 20, Seccomp: "unconfined", AppArmor: engine.DefaultAppArmorProfile,
			SeccompProfileRoot: "/var/lib/kubelet/seccomp"},
		ShimDirs: []string{}, Handlers: map[string]HandlerConfig{"longshore": {Annotations: []string{}}},
		Network: NetworkConfig{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"},
			CacheDir: "/var/lib/cni", DataDir: "/var/lib/cni/networks"},
		Images:     ImagesConfig{ParallelLayers: 3},
		Checkpoint: CheckpointConfig{Criu: "criu"},
		CDI:        CDIConfig{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		NRI: NRIConfig{Enabled: true, Socket: "/var/run/nri/nri.sock", PluginDir: "/opt/nri/plugins", PluginConfigDir: "/etc/nri/conf.d",
			RegistrationTimeout: Duration(5 * time.Second), RequestTimeout: Duration(2 * time.Second), Validator: ValidatorConfig{RequiredPlugins: []string{}}},
	}
}

// defaultConfigFile is read if it is there and no other is named.
const defaultConfigFile = "/etc/longshore/config.toml"

// loadConfig reads a configuration over the defaults. An unknown key is an
// error with its line.
func loadConfig(path string) (Config, error) {
	cfg := defaultConfig()
	named := path != ""
	if !named {
		path = defaultConfigFile
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return cfg, nil
	}
	if err != nil {
		return cfg, fmt.Errorf("configuration: %w", err)
	}
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, describe(err))
	}
	return cfg, cfg.check()
}

// describe adds the line to what the TOML library says.
func describe(err error) error {
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		first := unknown.Errors[0]
		row, _ := first.Position()
		return fmt.Errorf("line %d: unknown key %q", row, joinKey(first.Key()))
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := wrong.Position()
		return fmt.Errorf("line %d: %w", row, err)
	}
	return err
}

func joinKey(key toml.Key) string {
	out := ""
	for i, part := range key {
		if i > 0 {
			out += "."
		}
		out += part
	}
	return out
}

// check refuses what cannot work.
func (c *Config) check() error {
	for name, path := range map[string]string{"socket": c.Socket, "run_dir": c.RunDir, "state_dir": c.StateDir,
		"network.conf_dir": c.Network.ConfDir, "network.cache_dir": c.Network.CacheDir, "network.data_dir": c.Network.DataDir,
		"nri.socket": c.NRI.Socket, "nri.plugin_dir": c.NRI.PluginDir, "nri.plugin_config_dir": c.NRI.PluginConfigDir} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("configuration: %s: %q is not an absolute path", name, path)
		}
	}
	if err := c.checkHandlers(); err != nil {
		return err
	}
	if c.Pods.Seccomp != "unconfined" && c.Pods.Seccomp != "runtime/default" {
		return fmt.Errorf("configuration: pods.seccomp: %q is neither unconfined nor runtime/default", c.Pods.Seccomp)
	}
	if !slices.Contains([]string{"auto", "cgroupfs", "systemd"}, c.Pods.CgroupDriver) {
		return fmt.Errorf("configuration: pods.cgroup_driver: %q is none of auto, cgroupfs and systemd", c.Pods.CgroupDriver)
	}
	if bySystemd, parent := c.cgroups(); bySystemd {
		if _, err := systemd.SlicePath(filepath.Base(parent)); err != nil {
			return fmt.Errorf("configuration: pods.cgroup_parent, with systemd as cgroup driver: %w", err)
		}
	}
	if (c.Streaming.CertFile == "") != (c.Streaming.KeyFile == "") {
		return errors.New("configuration: streaming: cert_file and key_file need each other")
	}
	if c.Streaming.IdleTimeout <= 0 {
		return fmt.Errorf("configuration: streaming.idle_timeout: %v is not more than 0", time.Duration(c.Streaming.IdleTimeout))
	}
	for _, dir := range c.CDI.SpecDirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("configuration: cdi.spec_dirs: %q is not an absolute path", dir)
		}
	}
	if c.NRI.RegistrationTimeout <= 0 || c.NRI.RequestTimeout <= 0 {
		return fmt.Errorf("configuration: nri: a time-out of 0 or less")
	}
	if criu := c.Checkpoint.Criu; criu == "" || strings.Contains(criu, "/") && !filepath.IsAbs(criu) {
		return fmt.Errorf("configuration: checkpoint.criu: %q is neither an absolute path nor a name", criu)
	}
	if c.IdleShims < 0 {
		return fmt.Errorf("configuration: idle_shims: %d is less than 0", c.IdleShims)
	}
	return nil
}

// String prints the configuration as a file with comments.
func (c *Config) String() string {
	var b bytes.Buffer
	encoder := toml.NewEncoder(&b).SetIndentTables(false)
	if err := encoder.Encode(c); err != nil {
		return "# " + err.Error() + "\n" // a struct of plain values encodes
	}
	return b.String()
}

// shimBinary is the path of the shim's binary.
func (c *Config) shimBinary() (string, error) {
	if c.Shim != "" {
		return c.Shim, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(self), "longshore-shim"), nil
}

// cgroups says whether systemd makes cgroups, and where pods go that do not say.
func (c *Config) cgroups() (bySystemd bool, parent string) {
	bySystemd = c.Pods.CgroupDriver == "systemd" || c.Pods.CgroupDriver == "auto" && systemd.Running()
	switch {
	case c.Pods.CgroupParent != "":
		return bySystemd, c.Pods.CgroupParent
	case bySystemd:
		return true, "longshore.slice"
	}
	return false, "/longshore"
}

func (c *Config) engine() engine.Config {
	bySystemd, parent := c.cgroups()
	return engine.Config{RunDir: c.RunDir, StateDir: c.StateDir, SystemdCgroups: bySystemd, CgroupParent: parent, ShmSize: c.Pods.ShmSize,
		CDIDirs: c.CDI.SpecDirs, NRI: c.NRI.host(), Version: version(), Criu: c.Checkpoint.Criu, RestoreImages: c.Checkpoint.RestoreImages,
		SeccompDefault: c.Pods.Seccomp, AppArmorDefault: c.Pods.AppArmor, SeccompProfileDir: c.Pods.SeccompProfileRoot, Handlers: c.handlers(), ShimDirs: c.ShimDirs,
		CNI: engine.CNIConfig{ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: c.Network.CacheDir, DataDir: c.Network.DataDir, RequireConf: c.Network.RequireConf}}
}

// handlerName is what a RuntimeClass may name (a DNS label).
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (c *Config) checkHandlers() error {
	for _, dir := range c.ShimDirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("configuration: shim_dirs: %q is not an absolute path", dir)
		}
	}
	handlers := c.handlers()
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		of, h := c.Handlers[name], handlers[name]
		if !handlerName.MatchString(name) {
			return fmt.Errorf("configuration: handlers: %q is no name of a RuntimeClass's handler", name)
		}
		if of.UserNamespaces != "" && of.UserNamespaces != "auto" {
			return fmt.Errorf("configuration: handlers.%s.user_namespaces: %q is not auto", name, of.UserNamespaces)
		}
		if !slices.Contains([]string{"", "private", "host"}, of.CgroupNamespace) {
			return fmt.Errorf("configuration: handlers.%s.cgroup_namespace: %q is neither private nor host", name, of.CgroupNamespace)
		}
		if !slices.Contains([]string{"", "container", "pod"}, of.ShimPer) {
			return fmt.Errorf("configuration: handlers.%s.shim_per: %q is neither container nor pod", name, of.ShimPer)
		}
		if err := h.Check(); err != nil {
			return fmt.Errorf("configuration: handlers.%s.%w", name, err)
		}
	}
	return nil
}

func (c *Config) handlers() map[string]engine.Handler {
	out := map[string]engine.Handler{}
	for name, h := range c.Handlers {
		handler := engine.Handler{Seccomp: h.Seccomp, UserNamespaces: h.UserNamespaces == "auto", HostCgroupNamespace: h.CgroupNamespace == "host",
			RuntimeType: h.RuntimeType, OCIRuntime: h.OCIRuntime, ConfigPath: h.ConfigPath, Annotations: h.Annotations}
		handler.ShimPerPod = h.ShimPer == "pod" || h.ShimPer == "" && handler.WantsSandbox()
		out[name] = handler
	}
	return out
}

func (c *NRIConfig) host() nri.Config {
	v := &c.Validator
	return nri.Config{Enabled: c.Enabled, Socket: c.Socket, NoConnections: c.DisableConnections, PluginDir: c.PluginDir,
		PluginConfigDir: c.PluginConfigDir, RegistrationTimeout: time.Duration(c.RegistrationTimeout), RequestTimeout: time.Duration(c.RequestTimeout),
		Validator: nri.Validator{Enable: v.Enabled, RejectOCIHookAdjustment: v.RejectOCIHooks,
			RejectRuntimeDefaultSeccompAdjustment: v.RejectRuntimeDefaultSeccomp, RejectUnconfinedSeccompAdjustment: v.RejectUnconfinedSeccomp,
			RejectCustomSeccompAdjustment: v.RejectCustomSeccomp, RejectNamespaceAdjustment: v.RejectNamespaces,
			RejectSysctlAdjustment: v.RejectSysctls, RequiredPlugins: v.RequiredPlugins, TolerateMissingAnnotation: v.TolerateMissingAnnotation}}
}

func (c *Config) images() images.Config {
	out := images.Config{MaxConcurrentLayers: c.Images.ParallelLayers, Registries: map[string]images.Registry{}}
	for host, r := range c.Images.Registries {
		out.Registries[host] = images.Registry{Mirrors: r.Mirrors, Insecure: r.Insecure, CA: r.CAFile}
	}
	return out
}
