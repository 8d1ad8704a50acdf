package cri

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/longshore/longshore/engine"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRefusedByName: what has no translation is refused, and the error names
// the field.
func TestRefusedByName(t *testing.T) {
	const userns = `"linux": {"security_context": {"namespace_options": {"userns_options": `
	for config, want := range map[string]string{
		`"windows": {"security_context": {"host_process": true}}`:                                                  "windows: this node runs Linux",
		`"port_mappings": [{"protocol": 7}]`:                                                                       "port_mappings.protocol: 7",
		`"linux": {"security_context": {"run_as_group": {"value": 5}}}`:                                            "run_as_group: there is no run_as_user",
		`"linux": {"security_context": {"supplemental_groups_policy": 9}}`:                                         "supplemental_groups_policy: 9",
		`"linux": {"security_context": {"namespace_options": {"network": "CONTAINER"}}}`:                           "namespace_options.network: mode CONTAINER",
		`"linux": {"security_context": {"namespace_options": {"ipc": "CONTAINER"}}}`:                               "namespace_options.ipc: mode CONTAINER",
		`"linux": {"security_context": {"namespace_options": {"pid": 9}}}`:                                         "namespace_options.pid: mode 9",
		`"linux": {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": "c"}}}`:                "a pod cannot share",
		`"linux": {"security_context": {"namespace_options": {"target_id": "c"}}}`:                                 "namespace_options.target_id",
		userns + `{"mode": "CONTAINER"}}}}`:                                                                        "user namespace mode CONTAINER",
		userns + `{"mode": "POD"}}}}`:                                                                              "needs one mapping",
		userns + `{"mode": "NODE", "uids": [{"length": 1}]}}}}`:                                                    "id mappings are given for the node's",
		userns + `{"mode": "POD", "uids": [{"length": 0}], "gids": [{"length": 1}]}}}}`:                            "userns_options.uids: length 0 of the mapping of 0",
		userns + `{"mode": "POD", "uids": [{"length": 1}], "gids": [{"host_id": 4294901761, "length": 65536}]}}}}`: "userns_options.gids: 65536 ids from 0 on, mapped to 4294901761, end beyond",
		userns + `{"mode": "POD", "uids": [{"container_id": 1, "length": 1}], "gids": [{"length": 1}]}}}}`:         "must map user 0",
	} {
		var c runtimeapi.PodSandboxConfig
		decodeConfig(t, `{"metadata": {"name": "p"}, `+config+`}`, &c)
		if _, err := podConfig(&c, ""); !errors.Is(err, engine.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("pod %s: %v, want %q", config, err, want)
		}
	}
	for config, want := range map[string]string{
		`"windows": {"resources": {"cpu_count": 2}}`:                                                      "windows: this node runs Linux",
		`"stop_signal": 200`:                                                                              "stop_signal: 200",
		`"envs": [{"key": ""}]`:                                                                           `envs.key: ""`,
		`"envs": [{"key": "A=B"}]`:                                                                        `envs.key: "A=B"`,
		`"envs": [{"key": "A", "value": "AA=="}]`:                                                         "envs.value: the value of A has a NUL",
		`"mounts": [{"container_path": "/x", "propagation": 7}]`:                                          "mounts.propagation of /x: 7",
		`"mounts": [{"container_path": "/x", "host_path": "/y", "image_sub_path": "z"}]`:                  "mounts.image_sub_path of /x",
		`"mounts": [{"container_path": "/x", "host_path": "/y", "image": {"image": "i"}}]`:                "mounts.host_path of /x",
		`"mounts": [{"container_path": "/x", "host_path": "/y", "image": {"user_specified_image": "i"}}]`: "mounts.image of /x: it names no image",
		`"mounts": [{"container_path": "/x", "image": {"image": "i"}}]`:                                   "mounts.readonly of /x: an image",
		`"mounts": [{"container_path": "/x", "readonly": true, "image": {"image": "i"}, "propagation": "PROPAGATION_BIDIRECTIONAL"}]`: "mounts.propagation of /x: an image",
		`"mounts": [{"container_path": "/x", "host_path": "/y", "uidMappings": [{"length": 1}, {"container_id": 1}]}]`:                "mounts.uidMappings of /x: length 0 of the mapping of 1",
		`"mounts": [{"container_path": "/x", "host_path": "/y", "gidMappings": [{"container_id": 4294967295, "length": 1}]}]`:         "mounts.gidMappings of /x: 1 ids from 4294967295",
		`"linux": {"security_context": {"run_as_user": {"value": 5}, "run_as_username": "me"}}`:                                       `run_as_username: "me" is given beside run_as_user 5`,
		`"linux": {"security_context": {"run_as_group": {"value": 5}}}`:                                                               "run_as_group: there is neither",
		`"linux": {"security_context": {"supplemental_groups_policy": 9}}`:                                                            "supplemental_groups_policy: 9",
		`"linux": {"security_context": {"namespace_options": {"network": "CONTAINER"}}}`:                                              "namespace_options.network: mode CONTAINER",
		`"linux": {"security_context": {"namespace_options": {"pid": "TARGET"}}}`:                                                     "namespace_options.target_id",
		`"linux": {"security_context": {"seccomp": {"profile_type": "RuntimeDefault", "localhost_ref": "x"}}}`:                        `localhost_ref "x" is given`,
		`"linux": {"security_context": {"seccomp": {"profile_type": "Localhost"}}}`:                                                   "needs a name",
		`"linux": {"security_context": {"apparmor": {"profile_type": 9}}}`:                                                            "security profile type 9",
		`"linux": {"security_context": {"apparmor_profile": "nonsense"}}`:                                                             `security profile "nonsense"`,
		`"linux": {"security_context": {"seccomp_profile_path": "nonsense"}}`:                                                         `security profile "nonsense"`,
	} {
		var c runtimeapi.ContainerConfig
		decodeConfig(t, `{"metadata": {"name": "c"}, "image": {"image": "i"}, `+config+`}`, &c)
		if _, err := containerConfig(&c); !errors.Is(err, engine.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("container %s: %v, want %q", config, err, want)
		}
	}
}

func decodeConfig(t *testing.T, text string, into proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// TestPodConfig translates a pod with every field set.
func TestPodConfig(t *testing.T) {
	data, err := os.ReadFile("testdata/pod.request.json")
	if err != nil {
		t.Fatal(err)
	}
	var c runtimeapi.PodSandboxConfig
	decodeConfig(t, string(data), &c)
	cfg, err := podConfig(&c, "handler")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const golden = "testdata/pod.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs; run go test ./cri -run PodConfig -update and look at the change (%v)", golden, err)
	}
}
