package engine

import (
	"path/filepath"

	"github.com/longshore/longshore/engine/nri"
)

// Config is what the engine needs to know of the node.
type Config struct {
	RunDir   string // records and pins; what a reboot ends
	StateDir string // writable layers

	CgroupParent string // of pods that name none; a slice's name with SystemdCgroups
	// SystemdCgroups has systemd make the cgroups of pods.
	SystemdCgroups bool
	ShmSize        int64 // bytes of a pod's /dev/shm

	SeccompDefault    string // of containers that say nothing: "unconfined" or "runtime/default"
	AppArmorDefault   string // the same, where the kernel has AppArmor: [DefaultAppArmorProfile], a loaded one, or "unconfined"
	SeccompProfileDir string // where localhost profiles may lie

	// The network; see package cni.
	CNI CNIConfig

	Handlers map[string]Handler // by the names of RuntimeClasses; see [Engine.SetHandlers]
	ShimDirs []string           // where shims of other runtimes are looked for, before PATH

	CDIDirs []string   // specifications of CDI devices; later ones win
	NRI     nri.Config // plugins
	Version string     // the daemon's, as plugins are told

	// RestoreImages lets checkpoints take the place of images, from anyone.
	RestoreImages bool
	Criu          string // the program that saves and restores processes: its path, or a name to look for
}

// CNIConfig says where the network's configuration and state lie.
type CNIConfig struct {
	ConfDir  string
	BinDirs  []string
	CacheDir string
	DataDir  string
	// RequireConf lets no pod have a network before ConfDir has one: the built-in
	// network is not for this node.
	RequireConf bool
}

func (c *Config) podDir(id string) string       { return filepath.Join(c.RunDir, "pods", id) }
func (c *Config) containerDir(id string) string { return filepath.Join(c.RunDir, "containers", id) }
func (c *Config) layerDir(id string) string     { return filepath.Join(c.StateDir, "containers", id) }
func (c *Config) runcDir() string               { return filepath.Join(c.RunDir, "runc") }
func (c *Config) emptyDir() string              { return filepath.Join(c.StateDir, "empty") }
func (c *Config) trashDir() string              { return filepath.Join(c.StateDir, "trash") }
