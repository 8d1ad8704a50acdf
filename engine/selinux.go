package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// labelled adds to the options of a mount which label its files have, whatever
// the directories behind it have; "" is none. The layers of images belong to no
// container, so that nobody may touch them otherwise.
func labelled(options []string, label string) []string {
	if label == "" {
		return options
	}
	return append(slices.Clip(options), "context="+label)
}

// rootLabel is the label of a container's root, as the handler's shim takes it:
// another runtime mounts by mount(2), where a comma of the categories ends the option.
func rootLabel(label string, h *Handler) string {
	if label == "" || !h.foreign() {
		return label
	}
	return strconv.Quote(label)
}

// label is what a client says of the container, or else of its pod.
func label(in *SpecInput) *SELinux {
	if l := in.Config.Security.SELinux; l != nil {
		return l
	}
	return in.Pod.SELinux
}

// String gives the label in the kernel's form. Parts that the client leaves out,
// most often all but the level, are those of the targeted policy's containers.
func (l *SELinux) String() string {
	or := func(part, otherwise string) string {
		if part == "" {
			return otherwise
		}
		return part
	}
	return strings.Join([]string{or(l.User, "system_u"), or(l.Role, "system_r"), or(l.Type, "container_t"), or(l.Level, "s0")}, ":")
}

// fileLabel is the SELinux label of files that a container with a label may
// use: the targeted policy's type, at the container's level.
func fileLabel(l *SELinux) string {
	level := "s0"
	if l != nil && l.Level != "" {
		level = l.Level
	}
	return "system_u:object_r:container_file_t:" + level
}

// checkLabel asks the kernel whether its policy knows the labels of a client. A
// launch would say so too, but files on disk take any label, and keep it.
func (e *Engine) checkLabel(l *SELinux) error {
	if !e.host.seLinux || l == nil {
		return nil
	}
	for _, label := range []string{l.String(), fileLabel(l)} {
		if err := os.WriteFile("/sys/fs/selinux/context", []byte(label), 0); errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: SELinux label %q: the node's policy does not know it", ErrInvalid, label)
		}
	}
	return nil
}

// resolveSELinux checks a container's label. What its pod has made for all of its
// containers has the pod's label: where a container has another one, these files
// get no category, so that every container of the pod may use them.
func (e *Engine) resolveSELinux(in *SpecInput) error {
	l := label(in)
	if in.Config.Security.Privileged {
		return nil
	}
	if err := e.checkLabel(l); err != nil {
		return err
	}
	if !e.host.seLinux || l == nil || in.Pod.SELinux != nil && fileLabel(l) == fileLabel(in.Pod.SELinux) {
		return nil
	}
	shared := []string{hostnameFile, hostsFile, resolvFile}
	if in.Pod.Namespaces.IPC != ModeHost {
		shared = append(shared, "shm")
	}
	for _, name := range shared {
		if err := setLabel(filepath.Join(in.PodDir, name), fileLabel(nil)); err != nil {
			return fmt.Errorf("label %s of pod: %w", name, err)
		}
	}
	return nil
}

// labelLog makes the log of a criu that works on a container with a label: the
// container's processes write to it as well.
func labelLog(path string, spec *specs.Spec) error {
	if spec.Linux == nil || spec.Linux.MountLabel == "" {
		return nil
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := setLabel(path, spec.Linux.MountLabel); err != nil {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// setLabel labels a file, or what a link is, where the file system has labels.
func setLabel(path, label string) error {
	err := unix.Lsetxattr(path, "security.selinux", []byte(label), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
