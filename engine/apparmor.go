package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// DefaultAppArmorProfile is the profile that the engine loads itself.
const DefaultAppArmorProfile = "longshore-default"

// appArmorProfiles lists what the kernel has loaded, "NAME (MODE)" per line.
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// appArmorRules is what a container may by default: everything with its own
// files, processes of its own profile and the network, but no mounts, and no
// writes to what /proc and /sys say of the whole machine.
const appArmorRules = `profile ` + DefaultAppArmorProfile + ` flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=` + DefaultAppArmorProfile + `,
  ptrace (trace,read,tracedby,readby) peer=` + DefaultAppArmorProfile + `,
  deny mount,
  deny /proc/* w,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** wklx,
  deny /proc/sys/[^kn]** wklx,
  deny /proc/sys/kernel/[^s]** wklx,
  deny /proc/sys/kernel/s[^h]** wklx,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /sys/[^f]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
`

// parserTimeout bounds the compilation of those rules.
const parserTimeout = 30 * time.Second

// appArmor gives containers their default profile, where the kernel has
// AppArmor. Nothing is loaded before the first container.
type appArmor struct {
	enabled bool
	profile string // of containers that say nothing

	mu     sync.Mutex // guards the rest
	loaded bool
	failed error // why it cannot be loaded; it is tried once
}

// name gives the default profile, "" if there is none to give: with the error
// of the first attempt alone.
func (a *appArmor) name(ctx context.Context) (string, error) {
	if !a.enabled || a.profile == "unconfined" {
		return "", nil
	}
	if a.profile != DefaultAppArmorProfile {
		return a.profile, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return "", nil
	}
	if !a.loaded {
		if a.failed = loadAppArmor(ctx); a.failed != nil {
			return "", a.failed
		}
		a.loaded = true
	}
	return a.profile, nil
}

// loadAppArmor loads the default profile, unless it is there. The kernel takes
// compiled rules only, and the one compiler is apparmor_parser(8).
func loadAppArmor(ctx context.Context) error {
	if ok, err := hasAppArmorProfile(appArmorProfiles, DefaultAppArmorProfile); ok || err != nil {
		return err
	}
	parser, err := findParser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), parserTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(appArmorRules)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w: %s", DefaultAppArmorProfile, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// findParser looks beside PATH where distributions have it: a daemon's PATH may
// leave the system's directories out.
func findParser() (string, error) {
	for _, name := range []string{"apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("load AppArmor profile %s: apparmor_parser: %w", DefaultAppArmorProfile, fs.ErrNotExist)
}

// hasAppArmorProfile says whether the kernel has a profile of that name.
func hasAppArmorProfile(list, name string) (bool, error) {
	f, err := os.Open(list)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if line := lines.Text(); strings.HasPrefix(line, name+" (") {
			return true, nil
		}
	}
	return false, lines.Err()
}

// check refuses a profile that the kernel does not have, which would
// otherwise be found out when the container starts.
func (a *appArmor) check(p Profile) error {
	name := strings.TrimPrefix(p.Name, "localhost/")
	if p.Kind != ProfileLocalhost || name == "unconfined" {
		return nil
	}
	if !a.enabled {
		return fmt.Errorf("%w: AppArmor profile %q: the kernel has no AppArmor", ErrInvalid, name)
	}
	ok, err := hasAppArmorProfile(appArmorProfiles, name)
	if err == nil && !ok {
		err = fmt.Errorf("%w: AppArmor profile %q is not loaded", ErrInvalid, name)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil // a confined daemon cannot read the list
	}
	return err
}

// resolveAppArmor checks the profile that a container names, or finds the
// default. That this cannot be loaded keeps no container from running: it is
// said once.
func (e *Engine) resolveAppArmor(in *SpecInput) error {
	sec := &in.Config.Security
	if sec.Privileged {
		return nil
	}
	if err := e.appArmor.check(sec.AppArmor); err != nil {
		return err
	}
	name, err := e.appArmor.name(e.life)
	if err != nil {
		e.log.Warn("containers without an AppArmor profile of their own are unconfined", "err", err)
	}
	in.AppArmorDefault = name
	return nil
}
