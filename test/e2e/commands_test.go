package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/images/registrytest"
	"github.com/longshore/longshore/test/node"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageName is that of the guest image.
const imageName = "localhost/longshore/hello:latest"

type sessionKey struct{}

// session is what a script has made, by the names that it gave.
type session struct {
	node *node.Node
	ids  map[string]string // name -> id of a pod or container
	pods map[string]*runtimeapi.PodSandboxConfig
	made map[string]*runtimeapi.ContainerConfig // containers, as they were asked for
	logs map[string]string                      // container name -> log file

	hanging  []net.Conn     // connections that nobody reads
	leave    func()         // cancels a call; see the verb
	begun    []*running     // of crictl
	marked   map[string]int // descriptors; see the verb
	plugins  map[string]*exec.Cmd
	registry *registrytest.Registry
	spoil    func(http.ResponseWriter, *http.Request) bool // answers a request instead of the registry
}

// patience bounds each call of a script: a minute, times LONGSHORE_PATIENCE on
// an emulated machine.
var patience = time.Minute * time.Duration(max(1, number(os.Getenv("LONGSHORE_PATIENCE"))))

// number reads one, 0 if it is none.
func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"daemon": verb(daemon), "image": verb(importImage), "pod": verb(pod), "create": verb(create), "start": verb(start), "run": verb(runVerb),
	"stopc": verb(stop), "rmc": verb(remove), "stopp": verb(stopPod), "rmp": verb(removePod), "execsync": verb(execSync),
	"until": verb(waitFor), "inspect": verb(inspect), "inspectp": verb(inspectPod), "logs": verb(showLogs), "list": verb(list),
	"leaks": verb(leaks), "update": verb(update), "reopen": verb(reopen), "status": verb(statusOf), "get": verb(get), "pull": verb(pull),
	"images": verb(listImages), "rmi": verb(removeImage), "stats": verb(stats), "rotate": verb(rotate), "conf": verb(conf), "write": verb(write),
	"killc": verb(killContainer), "target": verb(target), "plugin": verb(pluginVerb), "updatep": verb(updatePod), "updateall": verb(updateAll),
	"metrics": verb(metrics), "runid": verb(runByID),
	"criu": verb(criuVerb), "checkpoint": verb(checkpoint), "frozen": verb(frozen), "checkpointp": verb(checkpointPod), "restorep": verb(restorePod), "pack": verb(pack),
}

// verb makes a command of a script from one that returns an error: a gRPC
// error goes to stderr as "CODE: message", where the script can match it.
func verb(f func(s *session, ctx context.Context, args []string, out io.Writer) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s := ts.Value(sessionKey{}).(*session)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for i := range args {
			if ext := filepath.Ext(args[i]); (ext == ".json" || ext == ".conflist" || ext == ".toml" || ext == ".acts" || ext == ".sh") && fileIn(ts, args[i]) {
				args[i] = ts.MkAbs(args[i])
			}
		}
		var out bytes.Buffer
		err := f(s, ctx, args, &out)
		ts.Stdout().Write(out.Bytes())
		if err != nil {
			st := status.Convert(err)
			fmt.Fprintf(ts.Stderr(), "%s: %s\n", st.Code(), st.Message())
		}
		if neg && err == nil {
			ts.Fatalf("succeeded, and should not have")
		}
		if !neg && err != nil {
			tail, _ := os.ReadFile(s.node.Path("daemon.log"))
			ts.Fatalf("%v\ndaemon.log:\n%s", err, lastLines(tail, 15))
		}
	}
}

// fileIn says whether a script brings a file of that name.
func fileIn(ts *testscript.TestScript, name string) bool {
	_, err := os.Stat(ts.MkAbs(name))
	return err == nil && !filepath.IsAbs(name)
}

func lastLines(data []byte, n int) []byte {
	lines := bytes.Split(data, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// end clears what a script has left and stops its daemon.
func (s *session) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, c := range s.hanging {
		c.Close()
	}
	if err := crictlEnd(s, ctx, nil, io.Discard); err != nil {
		return err
	}
	for _, cmd := range s.plugins {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // of the signal
	}
	if s.node.Pid() == 0 {
		if err := s.node.Start(ctx); err != nil {
			return err
		}
	}
	if err := s.node.Clear(ctx); err != nil {
		return err
	}
	return s.node.Close()
}

// daemon start [CONFIG|- [PLUGINS.toml|- [NETWORK.toml]]], daemon stop|kill9|restart
func daemon(s *session, ctx context.Context, args []string, _ io.Writer) error {
	switch args[0] {
	case "start":
		for i, into := range []*string{&s.node.Extra, &s.node.Plugins, &s.node.Network} {
			if len(args) <= i+1 || args[i+1] == "-" {
				continue
			}
			data, err := os.ReadFile(args[i+1])
			if err != nil {
				return err
			}
			*into = string(data)
		}
		return s.node.Start(ctx)
	case "stop":
		return s.node.Signal(unix.SIGTERM)
	case "kill9":
		return s.node.Signal(unix.SIGKILL)
	case "restart":
		if err := s.node.Signal(unix.SIGKILL); err != nil {
			return err
		}
		return s.node.Start(ctx)
	}
	return fmt.Errorf("daemon %s: no such verb", args[0])
}

// image imports the guest image, or the archive named.
func importImage(s *session, _ context.Context, args []string, out io.Writer) error {
	path := image
	if len(args) > 0 {
		path = args[0]
	}
	cmd := s.node.Command("image", "import", "--config", s.node.Path("config.toml"), path)
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	err := cmd.Run()
	fmt.Fprint(out, both.String())
	if err != nil {
		return fmt.Errorf("%s", strings.TrimSpace(both.String()))
	}
	return nil
}

// merge reads a JSON file over a message.
func merge(path string, into proto.Message) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	more := into.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal(data, more); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	proto.Merge(into, more)
	return nil
}

// pod NAME [FILE.json] [HANDLER]
func pod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	name := args[0]
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		LogDirectory: s.node.Path("logs", name), Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}
	if len(args) > 1 && args[1] != "-" {
		if err := merge(args[1], config); err != nil {
			return err
		}
	}
	req := &runtimeapi.RunPodSandboxRequest{Config: config}
	if len(args) > 2 {
		req.RuntimeHandler = args[2]
	}
	resp, err := s.node.Runtime.RunPodSandbox(ctx, req)
	if err != nil {
		return err
	}
	if s.pods == nil {
		s.pods = map[string]*runtimeapi.PodSandboxConfig{}
	}
	s.ids[name], s.pods[name] = resp.PodSandboxId, config
	return nil
}

// create [-until FILE] NAME POD [FILE.json] [-- ARG...]
func create(s *session, ctx context.Context, args []string, _ io.Writer) error {
	args, until, err := flags(args, nil)
	if err != nil {
		return err
	}
	name, podName := args[0], args[1]
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: imageName}, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{},
	}
	rest := args[2:]
	if i := slices.Index(rest, "--"); i >= 0 {
		config.Args = rest[i+1:]
		rest = rest[:i]
	}
	if len(rest) > 0 && rest[0] != "-" {
		if err := merge(rest[0], config); err != nil {
			return err
		}
	}
	if s.made == nil {
		s.made = map[string]*runtimeapi.ContainerConfig{}
	}
	s.made[name] = config
	var resp *runtimeapi.CreateContainerResponse
	err = s.whenThere(ctx, until, func(ctx context.Context) (err error) {
		resp, err = s.node.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.ids[podName], Config: config, SandboxConfig: s.pods[podName]})
		return err
	})
	if err != nil || until != "" {
		return err
	}
	s.ids[name], s.logs[name] = resp.ContainerId, s.node.Path("logs", podName, config.LogPath)
	return nil
}

// target NAME POD OTHER -- ARG... runs a container in another's pid namespace.
func target(s *session, ctx context.Context, args []string, out io.Writer) error {
	path := s.node.Path("target.json")
	config := fmt.Sprintf(`{"linux": {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": %q}}}}`, s.ids[args[2]])
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return err
	}
	return runVerb(s, ctx, append([]string{args[0], args[1], path}, args[3:]...), out)
}

// runid NAME POD [FILE.json] -- ARG... runs a container whose image is named by
// its id, as kubelet does.
func runByID(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: imageName}})
	if err != nil {
		return err
	}
	config := &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: resp.GetImage().GetId()}}
	rest := args[2:]
	if rest[0] != "--" {
		if err := merge(rest[0], config); err != nil {
			return err
		}
		rest = rest[1:]
	}
	data, err := protojson.Marshal(config)
	if err != nil {
		return err
	}
	path := s.node.Path("runid.json")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return runVerb(s, ctx, append([]string{args[0], args[1], path}, rest...), out)
}

// start [-until FILE] NAME
func start(s *session, ctx context.Context, args []string, _ io.Writer) error {
	args, until, err := flags(args, nil)
	if err != nil {
		return err
	}
	return s.whenThere(ctx, until, func(ctx context.Context) error {
		_, err := s.node.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.ids[args[0]]})
		return err
	})
}

// run is create and start.
func runVerb(s *session, ctx context.Context, args []string, out io.Writer) error {
	if err := create(s, ctx, args, out); err != nil {
		return err
	}
	return start(s, ctx, args, out)
}

// stopc NAME [SECONDS]
func stop(s *session, ctx context.Context, args []string, _ io.Writer) error {
	req := &runtimeapi.StopContainerRequest{ContainerId: s.ids[args[0]], Timeout: 10}
	if len(args) > 1 {
		var err error
		if req.Timeout, err = strconv.ParseInt(args[1], 10, 64); err != nil {
			return err
		}
	}
	_, err := s.node.Runtime.StopContainer(ctx, req)
	return err
}

func remove(s *session, ctx context.Context, args []string, _ io.Writer) error {
	_, err := s.node.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: s.ids[args[0]]})
	return err
}

func stopPod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	_, err := s.node.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.ids[args[0]]})
	return err
}

func removePod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	_, err := s.node.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.ids[args[0]]})
	return err
}

// execsync [-t SECONDS] NAME ARG...
func execSync(s *session, ctx context.Context, args []string, out io.Writer) error {
	req := &runtimeapi.ExecSyncRequest{}
	if args[0] == "-t" {
		var err error
		if req.Timeout, err = strconv.ParseInt(args[1], 10, 64); err != nil {
			return err
		}
		args = args[2:]
	}
	req.ContainerId, req.Cmd = s.ids[args[0]], args[1:]
	resp, err := s.node.Runtime.ExecSync(ctx, req)
	if err != nil {
		return err
	}
	out.Write(resp.Stdout)
	out.Write(resp.Stderr)
	if resp.ExitCode != 0 {
		return fmt.Errorf("exit code %d", resp.ExitCode)
	}
	return nil
}

// poll asks until the answer is yes. It is a test's patience, bounded by ctx.
func poll(ctx context.Context, ask func() (bool, error)) error {
	for {
		ok, err := ask()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// until exited NAME, until running NAME, until log NAME TEXT, until limited
// NAME BYTES, until said N TEXT
func waitFor(s *session, ctx context.Context, args []string, _ io.Writer) error {
	if args[0] == "limited" {
		return poll(ctx, func() (bool, error) {
			st, err := s.containerStatus(ctx, args[1])
			return fmt.Sprint(st.GetResources().GetLinux().GetMemoryLimitInBytes()) == args[2], err
		})
	}
	if args[0] == "said" { // by the daemon, so many times
		return poll(ctx, func() (bool, error) {
			data, err := os.ReadFile(s.node.Path("daemon.log"))
			return strconv.Itoa(bytes.Count(data, []byte(strings.Join(args[2:], " ")))) == args[1], err
		})
	}
	if args[0] == "log" {
		return poll(ctx, func() (bool, error) {
			data, err := os.ReadFile(s.logs[args[1]])
			return bytes.Contains(data, []byte(strings.Join(args[2:], " "))), err
		})
	}
	want := runtimeapi.ContainerState(runtimeapi.ContainerState_value["CONTAINER_"+strings.ToUpper(args[0])])
	return poll(ctx, func() (bool, error) {
		st, err := s.containerStatus(ctx, args[1])
		return st.GetState() == want, err
	})
}

// leaks fails if anything of a pod is left.
func leaks(s *session, _ context.Context, _ []string, out io.Writer) error {
	found, err := s.node.Leaks()
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(found, "\n"))
	}
	return nil
}

// update NAME FILE.json; update -none|-windows NAME asks for no limits of Linux
func update(s *session, ctx context.Context, args []string, _ io.Writer) error {
	req := &runtimeapi.UpdateContainerResourcesRequest{}
	switch args[0] {
	case "-none":
		req.ContainerId = s.ids[args[1]]
	case "-windows":
		req.ContainerId, req.Windows = s.ids[args[1]], &runtimeapi.WindowsContainerResources{CpuCount: 1}
	default:
		req.ContainerId, req.Linux = s.ids[args[0]], &runtimeapi.LinuxContainerResources{}
		if err := merge(args[1], req.Linux); err != nil {
			return err
		}
	}
	_, err := s.node.Runtime.UpdateContainerResources(ctx, req)
	return err
}

// updatep POD FILE.json tells that kubelet has set a pod's limits.
func updatePod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	req := &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: s.ids[args[0]], Resources: &runtimeapi.LinuxContainerResources{}}
	if err := merge(args[1], req.Resources); err != nil {
		return err
	}
	_, err := s.node.Runtime.UpdatePodSandboxResources(ctx, req)
	return err
}

func reopen(s *session, ctx context.Context, args []string, _ io.Writer) error {
	_, err := s.node.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: s.ids[args[0]]})
	return err
}

// rotate renames a container's log and has it reopened.
func rotate(s *session, ctx context.Context, args []string, out io.Writer) error {
	if err := os.Rename(s.logs[args[0]], s.logs[args[0]]+".1"); err != nil {
		return err
	}
	return reopen(s, ctx, args, out)
}

// write FILE TEXT... writes a file of the node.
func write(s *session, _ context.Context, args []string, _ io.Writer) error {
	path := s.node.Path(args[0])
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Join(args[1:], " ")), 0o644)
}

// conf FILE NAME puts a network configuration in place.
func conf(s *session, _ context.Context, args []string, _ io.Writer) error {
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	return os.WriteFile(s.node.Path("net.d", args[1]), data, 0o644)
}

func pull(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}})
	if err == nil {
		fmt.Fprintln(out, resp.ImageRef)
	}
	return err
}

func listImages(s *session, ctx context.Context, _ []string, out io.Writer) error {
	resp, err := s.node.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, img := range resp.Images {
		fmt.Fprintln(out, img.Id, img.RepoTags, img.Size)
	}
	return nil
}

func removeImage(s *session, ctx context.Context, args []string, _ io.Writer) error {
	_, err := s.node.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}})
	return err
}

// killContainer NAME... kills the first process of containers behind the
// daemon's back.
func killContainer(s *session, _ context.Context, args []string, _ io.Writer) error {
	for _, name := range args {
		data, err := os.ReadFile(s.node.Path("run", "containers", s.ids[name], "container.json"))
		if err != nil {
			return err
		}
		var record struct{ Pid int }
		if err := json.Unmarshal(data, &record); err != nil {
			return err
		}
		if err := unix.Kill(record.Pid, unix.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}
