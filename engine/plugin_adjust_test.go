package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// plainSpec is a container's specification before anybody changes it.
func plainSpec(t testing.TB) *specs.Spec {
	t.Helper()
	spec, err := BuildSpec(&SpecInput{ID: "c", PodDir: "/run/p", Config: ContainerConfig{Name: "c", Args: []string{"run"}}, CgroupPath: "/pods/p/c"})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestAnAdjustedControlGroupIsTheContainersOwn(t *testing.T) {
	e := &Engine{cfg: Config{CgroupParent: "/pods"}, containers: map[string]*container{}}
	c := newContainer(Container{ID: "c", PodID: "p", CgroupPath: "/pods/p/c"})
	other := newContainer(Container{ID: "other", PodID: "q", CgroupPath: "/pods/q/other"})
	e.containers["c"], e.containers["other"] = c, other
	for group, ok := range map[string]bool{
		"/pods/p/c": true, "/elsewhere/c": true, "/pods/p/special": true, "/pods/q/oth": true,
		"": false, "/": false, "relative/c": false, "/pods/../c": false, "/pods": false, "/pods/p": false, "/pods/q": false, "/pods/q/other": false,
		"slice:prefix:name": false,
	} {
		spec := plainSpec(t)
		spec.Linux.CgroupsPath = group
		err := e.checkAdjusted(Pod{ID: "p"}, c, spec, 100)
		if (err == nil) != ok {
			t.Errorf("control group %q: %v", group, err)
		}
	}
	if err := e.checkAdjusted(Pod{ID: "p"}, c, plainSpec(t), maxAdjustedSpec+1); err == nil {
		t.Error("a specification of any size is taken")
	}
}

func TestLimitsOfPluginsGoOverThoseAskedFor(t *testing.T) {
	base := linuxResources(&Resources{CPUShares: 2, MemoryLimit: 1000, CpusetCPUs: "0", Unified: map[string]string{"a": "1", "b": "2"}})
	over := (&api.LinuxResources{
		Cpu:    &api.LinuxCPU{Quota: api.Int64(int64(50)), Cpus: "1"},
		Memory: &api.LinuxMemory{Limit: api.Int64(int64(500)), Reservation: api.Int64(int64(400))},
		Pids:   &api.LinuxPids{Limit: 7}, Unified: map[string]string{"b": "3"},
	}).ToOCI()
	got, err := json.Marshal(mergeOCI(base, over))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"memory":{"limit":500,"reservation":400},"cpu":{"shares":2,"quota":50,"cpus":"1"},"pids":{"limit":7},"unified":{"a":"1","b":"3"}}`
	if string(got) != want {
		t.Errorf("merged = %s, want %s", got, want)
	}
	if *base.Memory.Limit != 1000 || base.Unified["b"] != "2" {
		t.Error("what was asked for is changed")
	}
	back := resourcesOf(mergeOCI(base, over))
	if back.MemoryLimit != 500 || back.CPUShares != 2 || back.CPUQuota != 50 || back.CpusetCPUs != "1" {
		t.Errorf("limits = %+v", back)
	}
}

// FuzzAdjustSpec gives what a plugin may send to what changes a specification.
func FuzzAdjustSpec(f *testing.F) {
	for _, a := range []*api.ContainerAdjustment{
		{Args: []string{"x"}, Env: []*api.KeyValue{{Key: "-A"}, {Key: "", Value: "="}}},
		{Mounts: []*api.Mount{{Destination: "-/proc"}, {Destination: "", Options: []string{"rprivate", ""}}}},
		{Hooks: &api.Hooks{Poststop: []*api.Hook{{}}}, Rlimits: []*api.POSIXRlimit{{Type: "X"}}, CDIDevices: []*api.CDIDevice{{Name: "a/b=c"}}},
		{Linux: &api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{Syscalls: []*api.LinuxSyscall{{Args: []*api.LinuxSeccompArg{{}}}}},
			Namespaces: []*api.LinuxNamespace{{Type: "-pid"}, {Type: "odd"}}, Scheduler: &api.LinuxScheduler{Policy: 99}, IoPriority: &api.LinuxIOPriority{Class: 9},
			Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}}, Rdt: &api.LinuxRdt{Remove: true}, MemoryPolicy: &api.LinuxMemoryPolicy{Mode: 99}}},
	} {
		data, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var adjust api.ContainerAdjustment
		if proto.Unmarshal(data, &adjust) != nil {
			return
		}
		for _, m := range adjust.Mounts { // the library looks up the host's mounts for these
			for i, o := range m.Options {
				m.Options[i] = strings.NewReplacer("rshared", "", "rslave", "").Replace(o)
			}
		}
		spec := plainSpec(t)
		if err := AdjustSpec(spec, &adjust, nil); err != nil {
			return
		}
		if _, err := json.Marshal(spec); err != nil {
			t.Errorf("the specification cannot be written: %v", err)
		}
	})
}

// FuzzInjectCDI gives any file to what reads CDI specifications.
func FuzzInjectCDI(f *testing.F) {
	f.Add(`{"cdiVersion": "1.1.0", "kind": "a.b/c", "devices": [{"name": "d", "containerEdits": {"env": ["A=b"], "additionalGids": [5]}}]}`)
	f.Add("cdiVersion: 0.3.0\nkind: a.b/c\ndevices:\n- name: d\n  containerEdits:\n    mounts: [{hostPath: /a, containerPath: /b}]\n")
	f.Add("cdiVersion: &a [*a]")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data string) {
		if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		spec := plainSpec(t)
		if err := InjectCDI(spec, []string{dir}, []string{"a.b/c=d"}); err != nil {
			return
		}
		if _, err := json.Marshal(spec); err != nil {
			t.Errorf("the specification cannot be written: %v", err)
		}
	})
}
