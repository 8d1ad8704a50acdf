package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	imageName = "localhost/longshore/hello:latest"
	webPort   = 8080
	hostPort  = 18080
)

// show is a private daemon and the pod that it runs.
type show struct {
	dir, bin, cgroup string

	daemon  *exec.Cmd
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	pod     string
}

func (s *show) path(name string) string { return filepath.Join(s.dir, name) }
func (s *show) socket() string          { return s.path("run/longshore.sock") }

func step(format string, args ...any) { fmt.Printf("\n── "+format+"\n", args...) }

// begin starts the daemon and imports the image.
func (s *show) begin(ctx context.Context) error {
	if len(helloImage) == 0 {
		return errors.New("this build carries no image: run hack/demo.sh")
	}
	config := fmt.Sprintf("socket = %q\nrun_dir = %q\nstate_dir = %q\nlog_level = \"warn\"\n[pods]\ncgroup_driver = \"cgroupfs\"\ncgroup_parent = %q\n[network]\nconf_dir = %q\ncache_dir = %q\ndata_dir = %q\n[nri]\nenabled = false\n",
		s.socket(), s.path("run"), s.path("lib"), "/"+s.cgroup, s.path("net.d"), s.path("lib/cni"), s.path("lib/cni/networks"))
	if err := os.WriteFile(s.path("config.toml"), []byte(config), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(s.path("hello.tar"), helloImage, 0o644); err != nil {
		return err
	}
	step("a daemon, with everything below %s", s.dir)
	s.daemon = exec.Command(filepath.Join(s.bin, "longshore"), "serve", "--config", s.path("config.toml"))
	s.daemon.Stdout, s.daemon.Stderr = os.Stdout, os.Stderr
	s.daemon.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C is for us, not for it
	if err := s.daemon.Start(); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+s.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	s.conn, s.runtime, s.images = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	version, err := s.runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	fmt.Printf("%s %s, CRI %s\n", version.RuntimeName, version.RuntimeVersion, version.RuntimeApiVersion)
	step("an image that needs no network: longshore image import hello.tar")
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "longshore"), "image", "import", "--config", s.path("config.toml"), s.path("hello.tar"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// run runs the pod and looks at it.
func (s *show) run(ctx context.Context) error {
	began := time.Now()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "hello", Namespace: "default", Uid: "demo"},
		Hostname:     "hello",
		LogDirectory: s.path("logs"),
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: webPort, HostPort: hostPort}},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
	pod, err := s.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	s.pod = pod.PodSandboxId
	web, err := s.container(ctx, config, "web", "serve", fmt.Sprint(webPort))
	if err != nil {
		return err
	}
	if _, err := s.container(ctx, config, "ticker", "tick", "1s"); err != nil {
		return err
	}
	step("a pod of two containers, ready in %.1f ms", float64(time.Since(began).Microseconds())/1000)
	if err := s.tables(ctx); err != nil {
		return err
	}
	return s.look(ctx, web)
}

func (s *show) container(ctx context.Context, pod *runtimeapi.PodSandboxConfig, name string, args ...string) (string, error) {
	created, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, SandboxConfig: pod,
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: imageName},
			Args: args, LogPath: name + ".log", Linux: &runtimeapi.LinuxContainerConfig{
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{}, NoNewPrivs: true}}}})
	if err != nil {
		return "", err
	}
	_, err = s.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	return created.ContainerId, err
}

// tables prints pods, containers and images as crictl does.
func (s *show) tables(ctx context.Context) error {
	pods, err := s.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := s.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	images, err := s.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "POD ID\tSTATE\tNAME\tNAMESPACE")
	for _, p := range pods.Items {
		fmt.Fprintf(w, "%.13s\t%s\t%s\t%s\n", p.Id, strings.TrimPrefix(p.State.String(), "SANDBOX_"), p.Metadata.Name, p.Metadata.Namespace)
	}
	fmt.Fprintln(w, "\nCONTAINER\tSTATE\tNAME\tIMAGE\tPOD ID")
	for _, c := range containers.Containers {
		fmt.Fprintf(w, "%.13s\t%s\t%s\t%s\t%.13s\n", c.Id, strings.TrimPrefix(c.State.String(), "CONTAINER_"), c.Metadata.Name, c.Image.Image, c.PodSandboxId)
	}
	fmt.Fprintln(w, "\nIMAGE ID\tTAG\tSIZE")
	for _, i := range images.Images {
		fmt.Fprintf(w, "%.19s\t%s\t%.1f MB\n", i.Id, strings.Join(i.RepoTags, " "), float64(i.Size)/1e6)
	}
	return w.Flush()
}

// look asks the web container by its address and by the node's port, runs a
// command in it, and shows what it has logged.
func (s *show) look(ctx context.Context, web string) error {
	status, err := s.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.pod})
	if err != nil {
		return err
	}
	for _, host := range []string{net.JoinHostPort(status.Status.Network.Ip, fmt.Sprint(webPort)), fmt.Sprintf("127.0.0.1:%d", hostPort)} {
		step("GET http://%s/", host)
		body, err := fetch(ctx, "http://"+host+"/")
		if err != nil {
			return err
		}
		fmt.Print(body)
	}
	step("exec in web: guest ps")
	out, err := s.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: web, Cmd: []string{"guest", "ps"}})
	if err != nil {
		return err
	}
	os.Stdout.Write(out.Stdout)
	step("the log of web, written by its shim in the CRI format")
	log, err := os.ReadFile(s.path("logs/web.log"))
	os.Stdout.Write(log)
	return err
}

// fetch asks until the server in the container listens, for five seconds.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return string(body), err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end removes the pod, stops the daemon and clears what is left.
func (s *show) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	if s.pod != "" {
		step("removing the pod")
		_, err := s.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.pod})
		errs = append(errs, err)
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.daemon != nil && s.daemon.Process != nil {
		errs = append(errs, s.daemon.Process.Signal(unix.SIGTERM), s.daemon.Wait())
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + s.cgroup, "/sys/fs/cgroup/" + s.cgroup} {
		dirs, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, dir := range dirs {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}
