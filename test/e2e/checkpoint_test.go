package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/engine/criu/criutest"
	"github.com/longshore/longshore/images/archive"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criu stand-in makes the daemons to come use a program that stands in for criu
// and has its modes from the file criu.mode; criu images lets images be
// checkpoints.
func criuVerb(s *session, _ context.Context, args []string, _ io.Writer) (err error) {
	switch args[0] {
	case "images":
		s.node.RestoreImages = true
	case "stand-in":
		s.node.Criu, err = criutest.Install(s.node.Path())
	default:
		err = fmt.Errorf("no such criu: %s", args[0])
	}
	return err
}

// checkpoint [-t SECONDS] [-until FILE] NAME LOCATION saves a container. With
// -until it returns as soon as FILE is there, below the node's directory, and
// the call goes on by itself.
func checkpoint(s *session, ctx context.Context, args []string, _ io.Writer) error {
	req := &runtimeapi.CheckpointContainerRequest{}
	args, until, err := flags(args, &req.Timeout)
	if err != nil {
		return err
	}
	req.ContainerId, req.Location = s.ids[args[0]], args[1]
	return s.whenThere(ctx, until, func(ctx context.Context) error {
		_, err := s.node.Runtime.CheckpointContainer(ctx, req)
		return err
	})
}

// checkpointp [-t SECONDS] [-until FILE] POD DIRECTORY [NAME...] [OPTION=VALUE] saves
// containers of a pod. With -t 0 the call has no deadline.
func checkpointPod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	seconds := int64(patience.Seconds())
	args, until, err := flags(args, &seconds)
	if err != nil {
		return err
	}
	req := &runtimeapi.CheckpointPodRequest{PodSandboxId: s.ids[args[0]], OutputPath: args[1]}
	for _, arg := range args[2:] {
		if key, value, ok := strings.Cut(arg, "="); ok {
			req.Options = map[string]string{key: value}
		} else {
			req.ContainerIds = append(req.ContainerIds, s.ids[arg])
		}
	}
	return s.whenThere(ctx, until, func(ctx context.Context) error {
		ctx = context.WithoutCancel(ctx)
		if seconds > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
			defer cancel()
		}
		_, err := s.node.Runtime.CheckpointPod(ctx, req)
		return err
	})
}

// restorep [-t SECONDS] POD FROM DIRECTORY NEW=NAME... [OPTION:VALUE] makes pod POD like pod
// FROM, with containers that are called NEW in the script and NAME in the
// checkpoint. With -t 0 the call has no deadline.
func restorePod(s *session, ctx context.Context, args []string, _ io.Writer) error {
	seconds := int64(patience.Seconds())
	args, _, err := flags(args, &seconds)
	if err != nil {
		return err
	}
	name := args[0]
	config := proto.CloneOf(s.pods[args[1]])
	config.Metadata.Name, config.Metadata.Uid, config.LogDirectory = name, "uid-"+name, s.node.Path("logs", name)
	req := &runtimeapi.RestorePodRequest{CheckpointPath: args[2], Config: config}
	called := map[string]string{}
	for _, arg := range args[3:] {
		if key, value, ok := strings.Cut(arg, ":"); ok {
			req.Options = map[string]string{key: value}
			continue
		}
		id, of, _ := strings.Cut(arg, "=")
		c := proto.CloneOf(s.made[of])
		called[of] = id
		req.ContainerConfigs = append(req.ContainerConfigs, c)
	}
	ctx = context.WithoutCancel(ctx)
	if seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	resp, err := s.node.Runtime.RestorePod(ctx, req)
	if err != nil {
		return err
	}
	s.ids[name], s.pods[name] = resp.PodSandboxId, config
	for _, c := range resp.RestoredContainers {
		id := called[c.Name]
		s.ids[id], s.logs[id] = c.ContainerId, s.node.Path("logs", name, c.Name+".log")
	}
	return nil
}

// flags takes the flags -t and -until from the arguments.
func flags(args []string, seconds *int64) (rest []string, until string, err error) {
	for len(args) > 1 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-t":
			*seconds, err = strconv.ParseInt(args[1], 10, 64)
		case "-until":
			until = args[1]
		default:
			err = fmt.Errorf("no such flag: %s", args[0])
		}
		if err != nil {
			return nil, "", err
		}
		args = args[2:]
	}
	return args, until, nil
}

// whenThere makes a call and waits for its end or, if until is not empty, for
// a file of that name, a pattern; the call, which then ends with its daemon at the
// latest, is not asked for its result.
func (s *session) whenThere(ctx context.Context, until string, call func(context.Context) error) error {
	if until == "" {
		return call(ctx)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- call(ctx)
	}()
	return poll(ctx, func() (bool, error) {
		select {
		case err := <-done:
			return false, fmt.Errorf("the call has ended before: %w", err)
		default:
		}
		found, err := filepath.Glob(s.node.Path(until))
		return len(found) > 0, err
	})
}

// pack NAME ARCHIVE IMAGE makes of a checkpoint an image, as an archive.
func pack(_ *session, _ context.Context, args []string, _ io.Writer) error {
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	var files []archive.File
	for r := tar.NewReader(f); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		files = append(files, archive.File{Name: hdr.Name, Mode: hdr.Mode, Data: data})
	}
	out, err := os.Create(args[2])
	if err != nil {
		return err
	}
	_, err = archive.Write(out, archive.Image{Name: args[0], Layers: [][]archive.File{files},
		Annotations: map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "c"}})
	return errors.Join(err, out.Close())
}

// frozen NAME tells the state of a container's freezer, "frozen" or "thawed".
func frozen(s *session, _ context.Context, args []string, out io.Writer) error {
	data, err := os.ReadFile(s.node.Path("run", "containers", s.ids[args[0]], "container.json"))
	if err != nil {
		return err
	}
	var record struct{ CgroupPath string }
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	for file, frozen := range map[string]string{
		filepath.Join("/sys/fs/cgroup", record.CgroupPath, "cgroup.freeze"):                 "1",
		filepath.Join("/sys/fs/cgroup/unified", record.CgroupPath, "cgroup.freeze"):         "1",
		filepath.Join("/sys/fs/cgroup/freezer", record.CgroupPath, "freezer.state"):         "FROZEN",
		filepath.Join("/sys/fs/cgroup/freezer", record.CgroupPath, "freezer.self_freezing"): "1",
	} {
		state, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(state)) == frozen {
			fmt.Fprintln(out, "frozen", file)
			return nil
		}
	}
	fmt.Fprintln(out, "thawed")
	return nil
}
