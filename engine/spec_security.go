package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCapabilities are those of a container that says nothing, as other
// runtimes give them.
var defaultCapabilities = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func addCapabilities(in *SpecInput, spec *specs.Spec) error {
	sec := &in.Config.Security
	if sec.Privileged {
		all := slices.Clone(in.HostCapabilities)
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: []string{}, Ambient: []string{}}
		return nil
	}
	caps := slices.Clone(defaultCapabilities)
	if slices.ContainsFunc(sec.AddCapabilities, isAll) {
		caps = slices.Clone(in.HostCapabilities)
	}
	if slices.ContainsFunc(sec.DropCapabilities, isAll) {
		caps = []string{}
	}
	added, err := capabilities(sec.AddCapabilities, nil)
	if err != nil {
		return err
	}
	ambient, err := capabilities(sec.AddAmbient, in.HostCapabilities)
	if err != nil {
		return err
	}
	dropped, err := capabilities(sec.DropCapabilities, nil)
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(added, ambient) {
		if !slices.Contains(caps, name) {
			caps = append(caps, name)
		}
	}
	isDropped := func(name string) bool { return slices.Contains(dropped, name) }
	// What is ambient must be permitted (capabilities(7)), so it is dropped too.
	caps, ambient = slices.DeleteFunc(caps, isDropped), slices.DeleteFunc(ambient, isDropped)
	// Inheritable stays empty (CVE-2022-24769), save for what is ambient.
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: ambient, Ambient: ambient}
	return nil
}

func isAll(name string) bool { return strings.EqualFold(name, "ALL") }

// capabilities gives full names; ALL stands for all.
func capabilities(names, all []string) ([]string, error) {
	full := []string{}
	for _, name := range names {
		one, err := capability(name)
		switch {
		case err != nil:
			return nil, err
		case one == "":
			full = append(full, all...)
		default:
			full = append(full, one)
		}
	}
	return full, nil
}

// capability gives a capability's full name; "" for ALL.
func capability(name string) (string, error) {
	if isAll(name) {
		return "", nil
	}
	full := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if !slices.Contains(capabilityNames, full) {
		return "", fmt.Errorf("%w: capability %q", ErrInvalid, name)
	}
	return full, nil
}

func addSeccomp(in *SpecInput, spec *specs.Spec) error {
	sec := &in.Config.Security
	if sec.Privileged {
		return nil
	}
	kind := sec.Seccomp.Kind
	if kind == ProfileUnset && in.SeccompDefault == "runtime/default" {
		kind = ProfileDefault
	}
	switch kind {
	case ProfileLocalhost:
		spec.Linux.Seccomp = in.Seccomp
	case ProfileDefault:
		profile, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			return fmt.Errorf("default seccomp profile: %w", err)
		}
		spec.Linux.Seccomp = profile
	}
	return nil
}

// addLabels sets the labels of AppArmor and SELinux where the kernel has them.
func addLabels(in *SpecInput, spec *specs.Spec) error {
	sec := &in.Config.Security
	switch p := sec.AppArmor; {
	case sec.Privileged || p.Kind == ProfileUnconfined:
	case p.Kind == ProfileLocalhost:
		spec.Process.ApparmorProfile = strings.TrimPrefix(p.Name, "localhost/")
	default:
		spec.Process.ApparmorProfile = in.AppArmorDefault
	}
	if l := label(in); in.SELinux && l != nil && !sec.Privileged {
		spec.Process.SelinuxLabel, spec.Linux.MountLabel = l.String(), fileLabel(l)
	}
	return nil
}

// standardDevices is what a container may use beside what it is given: the
// devices of a Linux system that hold nothing (runtime-spec, default devices).
func standardDevices() []specs.LinuxDeviceCgroup {
	char := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	anyPts := int64(136)
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
		char(1, 3, "rwm"), char(1, 5, "rwm"), char(1, 7, "rwm"), char(1, 8, "rwm"), char(1, 9, "rwm"), // null zero full random urandom
		char(5, 0, "rwm"), char(5, 1, "rwm"), char(5, 2, "rwm"), // tty console ptmx
		{Allow: true, Type: "c", Major: &anyPts, Access: "rwm"},
	}
}

func addDevices(in *SpecInput, spec *specs.Spec) error {
	if in.Config.Security.Privileged {
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		spec.Linux.Devices = slices.Clone(in.HostDevices)
	} else {
		spec.Linux.Resources.Devices = append(standardDevices(), in.DeviceRules...)
	}
	for _, d := range in.Devices {
		spec.Linux.Devices = slices.DeleteFunc(spec.Linux.Devices, func(old specs.LinuxDevice) bool { return old.Path == d.Path })
		spec.Linux.Devices = append(spec.Linux.Devices, d)
	}
	return nil
}

// resolveDevices finds the devices that a container asks for on the host; a
// directory stands for all devices below it.
func resolveDevices(in *SpecInput) error {
	for _, d := range in.Config.Devices {
		if strings.Trim(d.Permissions, "rwm") != "" || d.Permissions == "" {
			return fmt.Errorf("%w: device %s: permissions %q", ErrInvalid, d.HostPath, d.Permissions)
		}
		if !filepath.IsAbs(d.ContainerPath) {
			return fmt.Errorf("%w: device %s: path %q in the container is not absolute", ErrInvalid, d.HostPath, d.ContainerPath)
		}
		found, err := devicesAt(d.HostPath, d.ContainerPath)
		if err != nil {
			return fmt.Errorf("%w: device %s: %w", ErrInvalid, d.HostPath, err)
		}
		for _, dev := range found {
			in.Devices = append(in.Devices, dev)
			in.DeviceRules = append(in.DeviceRules, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: d.Permissions})
		}
	}
	if in.Config.Security.Privileged {
		var err error
		in.HostDevices, err = devicesAt("/dev", "/dev")
		return err
	}
	return nil
}

// skippedDevices of the host's /dev are not for a container: it has its own.
var skippedDevices = []string{"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/ptmx", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev"}

// devicesAt describes the device at path, or all below it, as to be seen at
// the path to.
func devicesAt(path, to string) ([]specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		var all []specs.LinuxDevice
		for _, entry := range entries {
			name := filepath.Join(path, entry.Name())
			if slices.Contains(skippedDevices, name) || entry.Type()&os.ModeSymlink != 0 {
				continue
			}
			if !entry.IsDir() && entry.Type()&os.ModeDevice == 0 {
				continue
			}
			below, err := devicesAt(name, filepath.Join(to, entry.Name()))
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
		}
		return all, nil
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return nil, fmt.Errorf("it is not a device")
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return []specs.LinuxDevice{{Path: to, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid}}, nil
}
