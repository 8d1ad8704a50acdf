package cri

import (
	"fmt"
	"math"
	"strings"

	"github.com/longshore/longshore/engine"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a request says must be done or be refused by name. Here is refused what
// has no translation: values that the interface does not define, combinations
// that it rules out, and what is another system's. FIELDS.md lists what becomes
// of each field.

// invalid says that a field's value is refused.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", engine.ErrInvalid, field, fmt.Sprintf(format, args...))
}

func checkPodConfig(c *runtimeapi.PodSandboxConfig) error {
	if proto.Size(c.GetWindows()) > 0 {
		return invalid("windows", "this node runs Linux")
	}
	for _, p := range c.PortMappings {
		if _, known := runtimeapi.Protocol_name[int32(p.Protocol)]; !known {
			return invalid("port_mappings.protocol", "%d is not defined", p.Protocol)
		}
	}
	const context = "linux.security_context."
	sec := c.GetLinux().GetSecurityContext()
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil {
		return invalid(context+"run_as_group", "there is no run_as_user")
	}
	if err := checkGroupsPolicy(sec.GetSupplementalGroupsPolicy()); err != nil {
		return err
	}
	o := sec.GetNamespaceOptions()
	if err := checkNamespaces(o, context+"namespace_options."); err != nil {
		return err
	}
	if o.GetNetwork() == runtimeapi.NamespaceMode_TARGET || o.GetPid() == runtimeapi.NamespaceMode_TARGET || o.GetIpc() == runtimeapi.NamespaceMode_TARGET {
		return invalid(context+"namespace_options", "a pod cannot share the namespace of a container")
	}
	return nil
}

// checkNamespaces refuses modes that are not defined, and network and IPC of a
// container's own, which no pod has.
func checkNamespaces(o *runtimeapi.NamespaceOption, context string) error {
	for _, kind := range []struct {
		name string
		mode runtimeapi.NamespaceMode
		own  bool
	}{{"network", o.GetNetwork(), false}, {"pid", o.GetPid(), true}, {"ipc", o.GetIpc(), false}} {
		if _, known := modes[kind.mode]; !known || kind.mode == runtimeapi.NamespaceMode_CONTAINER && !kind.own {
			return invalid(context+kind.name, "mode %s is not supported", kind.mode)
		}
	}
	hasTarget := o.GetNetwork() == runtimeapi.NamespaceMode_TARGET || o.GetPid() == runtimeapi.NamespaceMode_TARGET || o.GetIpc() == runtimeapi.NamespaceMode_TARGET
	if hasTarget != (o.GetTargetId() != "") {
		return invalid(context+"target_id", "it is %q, and goes with mode TARGET", o.GetTargetId())
	}
	if err := checkMappings(context+"userns_options.uids", o.GetUsernsOptions().GetUids()); err != nil {
		return err
	}
	return checkMappings(context+"userns_options.gids", o.GetUsernsOptions().GetGids())
}

// checkMappings refuses ranges that are empty or end beyond the last id, as the
// kernel would without a word of which.
func checkMappings(field string, maps []*runtimeapi.IDMapping) error {
	for _, m := range maps {
		if m.Length == 0 {
			return invalid(field, "length 0 of the mapping of %d", m.ContainerId)
		}
		if last := math.MaxUint32 - m.Length; m.HostId > last || m.ContainerId > last {
			return invalid(field, "%d ids from %d on, mapped to %d, end beyond the last id", m.Length, m.ContainerId, m.HostId)
		}
	}
	return nil
}

func checkGroupsPolicy(p runtimeapi.SupplementalGroupsPolicy) error {
	if _, known := runtimeapi.SupplementalGroupsPolicy_name[int32(p)]; !known {
		return invalid("linux.security_context.supplemental_groups_policy", "%d is not defined", p)
	}
	return nil
}

func checkContainerConfig(c *runtimeapi.ContainerConfig) error {
	if proto.Size(c.GetWindows()) > 0 {
		return invalid("windows", "this node runs Linux")
	}
	if _, known := runtimeapi.Signal_name[int32(c.StopSignal)]; !known {
		return invalid("stop_signal", "%d is not defined", c.StopSignal)
	}
	for _, kv := range c.Envs {
		// The name is what stands before the first "=", and a NUL ends both.
		if kv.Key == "" || strings.ContainsAny(kv.Key, "=\x00") {
			return invalid("envs.key", "%q cannot be a variable's name", kv.Key)
		}
		if strings.Contains(string(kv.Value), "\x00") {
			return invalid("envs.value", "the value of %s has a NUL byte", kv.Key)
		}
	}
	for _, m := range c.Mounts {
		if err := checkMount(m); err != nil {
			return err
		}
	}
	const context = "linux.security_context."
	sec := c.GetLinux().GetSecurityContext()
	if sec.GetRunAsUser() != nil && sec.GetRunAsUsername() != "" {
		return invalid(context+"run_as_username", "%q is given beside run_as_user %d", sec.RunAsUsername, sec.RunAsUser.Value)
	}
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil && sec.GetRunAsUsername() == "" {
		return invalid(context+"run_as_group", "there is neither run_as_user nor run_as_username")
	}
	if err := checkGroupsPolicy(sec.GetSupplementalGroupsPolicy()); err != nil {
		return err
	}
	return checkNamespaces(sec.GetNamespaceOptions(), context+"namespace_options.")
}

func checkMount(m *runtimeapi.Mount) error {
	field := func(name string) string { return fmt.Sprintf("mounts.%s of %s", name, m.ContainerPath) }
	if _, known := runtimeapi.MountPropagation_name[int32(m.Propagation)]; !known {
		return invalid(field("propagation"), "%d is not defined", m.Propagation)
	}
	if err := checkMappings(field("uidMappings"), m.UidMappings); err != nil {
		return err
	}
	if err := checkMappings(field("gidMappings"), m.GidMappings); err != nil {
		return err
	}
	if m.GetImage().GetImage() == "" {
		if proto.Size(m.Image) > 0 {
			return invalid(field("image"), "it names no image")
		}
		if m.ImageSubPath != "" {
			return invalid(field("image_sub_path"), "it is %q, and there is no image", m.ImageSubPath)
		}
		return nil
	}
	if m.HostPath != "" {
		return invalid(field("host_path"), "it is %q, and there is an image as well", m.HostPath)
	}
	if !m.Readonly {
		return invalid(field("readonly"), "an image's mount is read-only, and shall say so")
	}
	if m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return invalid(field("propagation"), "an image's mount is private")
	}
	return nil
}
