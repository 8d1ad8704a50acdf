package engine

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLabelsOfMounts: files that a container shares with nobody have its level,
// unless it is privileged or the kernel has no SELinux.
func TestLabelsOfMounts(t *testing.T) {
	level := &SELinux{Level: "s0:c4,c7"}
	const want = "system_u:object_r:container_file_t:s0:c4,c7"
	for name, test := range map[string]struct {
		in   SpecInput
		want string
	}{
		"the container's": {SpecInput{SELinux: true, Config: ContainerConfig{Security: Security{SELinux: level}}}, want},
		"the pod's":       {SpecInput{SELinux: true, Pod: PodConfig{SELinux: level}}, want},
		"none":            {SpecInput{SELinux: true}, ""},
		"privileged":      {SpecInput{SELinux: true, Config: ContainerConfig{Security: Security{SELinux: level, Privileged: true}}}, ""},
		"no SELinux":      {SpecInput{Config: ContainerConfig{Security: Security{SELinux: level}}}, ""},
	} {
		spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
		if err := addLabels(&test.in, spec); err != nil {
			t.Fatal(err)
		}
		if spec.Linux.MountLabel != test.want {
			t.Errorf("%s: %q", name, spec.Linux.MountLabel)
		}
		options := labelled([]string{"volatile"}, rootLabel(spec.Linux.MountLabel, &Handler{}))
		if slices.Contains(options, "context="+want) != (test.want != "") || !slices.Contains(options, "volatile") {
			t.Errorf("%s: %q", name, options)
		}
	}
	// Another runtime's shim hands options to mount(2), which a comma ends.
	if got := labelled(nil, rootLabel(want, &Handler{RuntimeType: "io.containerd.runc.v2"})); !slices.Equal(got, []string{`context="` + want + `"`}) {
		t.Errorf("for another runtime: %q", got)
	}
	e := &Engine{host: hostFacts{seLinux: true}}
	if got := e.sandboxOf(Pod{Config: PodConfig{SELinux: level}}).MountLabel; got != want {
		t.Errorf("shared memory: %q", got)
	}
	// Not all of the containers need be privileged.
	if got := e.sandboxOf(Pod{Config: PodConfig{SELinux: level, Privileged: true}}).MountLabel; got != want {
		t.Errorf("shared memory of a privileged pod: %q", got)
	}
	e.host.seLinux = false
	if got := e.sandboxOf(Pod{Config: PodConfig{SELinux: level}}).MountLabel; got != "" {
		t.Errorf("shared memory without SELinux: %q", got)
	}
}
