package cri

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/longshore/longshore/engine"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// specCase is one request in testdata/spec: what a client sends and what the
// image says.
type specCase struct {
	Pod       json.RawMessage    `json:"pod"`
	Container json.RawMessage    `json:"container"`
	Image     engine.ImageConfig `json:"image"`
	User      engine.User        `json:"user"`
	TargetPid int                `json:"targetPid"`
	CDI       map[string]string  `json:"cdi"`    // specifications of devices, by file
	Adjust    json.RawMessage    `json:"adjust"` // what plugins want changed
	Error     string             `json:"error"`  // wanted instead of a specification
}

// TestSpec translates each request into an OCI specification and compares it
// with the golden file beside it.
func TestSpec(t *testing.T) {
	cases, err := filepath.Glob("testdata/spec/*.request.json")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".request.json"), func(t *testing.T) { checkSpec(t, path) })
	}
}

func checkSpec(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c specCase
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	spec, err := translate(&c, t.TempDir())
	if c.Error != "" {
		if err == nil || !strings.Contains(err.Error(), c.Error) {
			t.Errorf("error = %v, want %q", err, c.Error)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := strings.TrimSuffix(path, ".request.json") + ".spec.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("%s differs; run go test ./cri -run TestSpec -update and look at the change", golden)
	}
}

// translate goes the whole way from the request, with a machine that has
// every facility but no devices of its own; those of CDI are described in dir.
func translate(c *specCase, dir string) (*specs.Spec, error) {
	var pod runtimeapi.PodSandboxConfig
	var container runtimeapi.ContainerConfig
	if err := protojson.Unmarshal(c.Pod, &pod); err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(c.Container, &container); err != nil {
		return nil, err
	}
	p, err := podConfig(&pod, "")
	if err != nil {
		return nil, err
	}
	ctr, err := containerConfig(&container)
	if err != nil {
		return nil, err
	}
	spec, err := engine.BuildSpec(&engine.SpecInput{ID: "c1", Pod: p, PodDir: "/run/longshore/pods/p1", Config: ctr, Image: c.Image, User: c.User,
		CgroupPath: "/longshore/p1/c1", TargetPid: c.TargetPid, Hostname: "node", SeccompDefault: "unconfined", AppArmorDefault: "longshore-default", SELinux: true,
		HostCapabilities: []string{"CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"}})
	if err != nil {
		return nil, err
	}
	if spec.Linux.Seccomp != nil {
		// The default profile is a library's; that it is there is what counts.
		spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: spec.Linux.Seccomp.DefaultAction}
	}
	return spec, change(c, &ctr, spec, dir)
}

// change injects the devices of a case and adjusts its specification.
func change(c *specCase, ctr *engine.ContainerConfig, spec *specs.Spec, dir string) error {
	for name, content := range c.CDI {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	devices, err := engine.CDIDevices(ctr)
	if err != nil {
		return err
	}
	if err := engine.InjectCDI(spec, []string{dir}, devices); err != nil {
		return err
	}
	if c.Adjust == nil {
		return nil
	}
	var adjust api.ContainerAdjustment
	if err := protojson.Unmarshal(c.Adjust, &adjust); err != nil {
		return err
	}
	return engine.AdjustSpec(spec, &adjust, []string{dir})
}
