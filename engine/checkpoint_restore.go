package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/engine/criu"
	"github.com/longshore/longshore/images/unpack"
	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxCheckpointFile bounds the files of a checkpoint that are read into memory.
const maxCheckpointFile = 16 << 20

// maxDeleted bounds how many paths a checkpoint may hide of its image.
const maxDeleted = 1 << 20

// prepareRestore makes ready what a container that shall have the process of a
// checkpoint needs at its start: its files, its changes of the root file
// system, and the options for criu. The checkpoint is read once and not
// needed afterwards.
func (e *Engine) prepareRestore(ctx context.Context, p *pod, c *container, spec *specs.Spec, rootfs *api.Mount) error {
	rec := c.snapshot()
	if rec.Restore == "" {
		return nil
	}
	pod := p.snapshot()
	if err := e.mayRestore(ctx, &pod.Config, &rec.Config, spec); err != nil {
		return err
	}
	from, err := os.OpenRoot(rec.Restore)
	if err != nil {
		return fmt.Errorf("%w: checkpoint: %w", ErrInvalid, err)
	}
	defer from.Close()
	layer := e.cfg.layerDir(c.id)
	defer os.RemoveAll(filepath.Join(layer, unpackedDir)) // a sweep takes what stays
	images := filepath.Join(layer, imagesDir)
	if err := copyImages(ctx, from, images); err != nil {
		return fmt.Errorf("copy checkpoint: %w", err)
	}
	lower, err := e.lowerDirs(rec)
	if err != nil {
		return err
	}
	if err := applyDiff(ctx, from, filepath.Join(layer, "upper"), lower); err != nil {
		return fmt.Errorf("restore root file system: %w", err)
	}
	r := restoration{rec: &rec, pod: &pod, podDir: e.cfg.podDir(pod.ID), bundle: e.cfg.containerDir(c.id), spec: spec}
	if err := r.read(from); err != nil {
		return err
	}
	if err := labelLog(filepath.Join(r.bundle, criu.RestoreLog), spec); err != nil {
		return err
	}
	request, options, err := r.request(e.criu, images, rootfs)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(r.bundle, api.RestoreOptionsFile), options, 0o600, atomicfile.Volatile); err != nil {
		return err
	}
	return atomicfile.WriteJSON(filepath.Join(r.bundle, api.RestoreFile), request, atomicfile.Volatile)
}

// mayRestore refuses what cannot be restored here.
func (e *Engine) mayRestore(ctx context.Context, pod *PodConfig, cfg *ContainerConfig, spec *specs.Spec) error {
	if _, err := e.criu.Usable(ctx); err != nil {
		return err
	}
	if err := e.RestoreStatus(); err != nil {
		return err
	}
	if spec.Hooks != nil {
		return fmt.Errorf("%w: container %s has hooks, which a restore does not run", ErrState, cfg.Name)
	}
	h, err := e.handler(pod.Handler)
	if err != nil {
		return err
	}
	return canRestore(&h, pod, cfg)
}

// joinRestore takes up the start of a container that was being restored when
// an earlier daemon died.
func (e *Engine) joinRestore(c *container) {
	shim, starting := c.shim, make(chan struct{})
	c.starting = starting
	e.work.Go(func() {
		defer close(starting)
		err := shim.Start(e.life, c.id)
		if e.life.Err() != nil {
			return
		}
		var state *api.StateResponse
		if err == nil {
			state, err = shim.State(e.life, c.id)
		}
		if err == nil {
			err = e.updateContainer(c, func(r *Container) { r.State, r.Pid, r.StartedAt = ContainerRunning, int(state.Pid), time.Now() })
		}
		if err != nil {
			c.mu.Lock()
			c.startErr = e.explainRestore(c.rec, err)
			c.mu.Unlock()
		}
	})
}

// explainRestore adds what criu has logged to the error of a start.
func (e *Engine) explainRestore(rec Container, err error) error {
	if rec.Restore == "" {
		return err
	}
	if why := criu.Quote(filepath.Join(e.cfg.containerDir(rec.ID), criu.RestoreLog)); why != "" {
		return fmt.Errorf("%w: criu restore: %s", err, why)
	}
	return err
}

// readBounded reads a file of a checkpoint, which may be anyone's.
func readBounded(from *os.Root, name string) ([]byte, error) {
	f, err := openRegular(from, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCheckpointFile+1))
	if err == nil && len(data) > maxCheckpointFile {
		err = fmt.Errorf("%w: %s of the checkpoint has more than %d bytes", ErrInvalid, name, maxCheckpointFile)
	}
	return data, err
}

// openRegular opens a file and refuses what is no regular one, a FIFO say,
// which would never end.
func openRegular(from *os.Root, name string) (*os.File, error) {
	f, err := from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s of the checkpoint is no regular file", ErrInvalid, name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyImages takes criu's files from a checkpoint, whose owner may remove it
// before the container is started.
func copyImages(ctx context.Context, from *os.Root, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := fs.ReadDir(from.FS(), imagesDir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, entry := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if !entry.Type().IsRegular() {
			continue // criu writes none
		}
		if err := copyFile(from, path.Join(imagesDir, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from *os.Root, name, to string) error {
	in, err := openRegular(from, name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in) // by copy_file_range(2), which shares blocks where it can
	return errors.Join(err, out.Close())
}

// applyDiff makes in a new writable layer what a container had changed.
func applyDiff(ctx context.Context, from *os.Root, upper string, lower []string) error {
	diff, err := openRegular(from, rootfsDiff)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer diff.Close()
	sink, err := unpack.NewDirSink(upper, unpack.Limits{})
	if err != nil {
		return err
	}
	defer sink.Close()
	if err := unpack.Tar(ctx, diff, sink, unpack.Limits{}); err != nil {
		return err
	}
	deleted, err := readDeleted(from)
	if err != nil {
		return err
	}
	for _, name := range deleted {
		if err := sink.Add(&unpack.Entry{Kind: unpack.Whiteout, Path: name}, nil); err != nil {
			return fmt.Errorf("hide %.200q: %w", name, err)
		}
	}
	made, err := sink.Finish()
	if err != nil {
		return err
	}
	return dress(upper, lower, made.Implicit)
}

// readDeleted reads the list of paths that the container had removed.
func readDeleted(from *os.Root) ([]string, error) {
	data, err := readBounded(from, deletedFiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, deletedFiles, err)
	}
	if len(names) > maxDeleted {
		return nil, fmt.Errorf("%w: %s has more than %d paths", ErrInvalid, deletedFiles, maxDeleted)
	}
	for i, name := range names {
		clean := strings.TrimPrefix(path.Clean("/"+name), "/")
		if clean == "" || len(clean) > 4095 || strings.ContainsRune(clean, 0) {
			return nil, fmt.Errorf("%w: %s: path %.100q", ErrInvalid, deletedFiles, name)
		}
		names[i] = clean
	}
	return names, nil
}

// dress gives directories that were made on the way the look of the image's.
func dress(upper string, lower, implicit []string) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range implicit {
		look, err := unpack.FindDir(lower, name)
		if err != nil {
			return err
		}
		if look == nil {
			continue
		}
		if err := root.Lchown(name, int(look.UID), int(look.GID)); err != nil {
			return err
		}
		if err := root.Chmod(name, fs.FileMode(look.Mode&0o777)); err != nil {
			return err
		}
	}
	return nil
}

// restoration is what a container is restored from, and what it is given.
type restoration struct {
	rec            *Container
	pod            *Pod
	podDir, bundle string
	spec           *specs.Spec
	mounts         []outerMount
	streams        [3]string
}

// streamName is what a checkpoint may call a stream: it becomes an option of
// criu.
var streamName = regexp.MustCompile(`^(pipe:\[\d+\]|file\[[0-9a-f]+:[0-9a-f]+\])$`)

// read takes from a checkpoint what it needs of its node. One by another
// runtime names its outer mounts by where they are mounted.
func (r *restoration) read(from *os.Root) error {
	data, err := readBounded(from, path.Join(imagesDir, descriptorsFile))
	if err == nil {
		var names []string
		if err := json.Unmarshal(data, &names); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, descriptorsFile, err)
		}
		for i := range min(len(names), len(r.streams)) {
			if streamName.MatchString(names[i]) {
				r.streams[i] = names[i]
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err = readBounded(from, mountsDump)
	if errors.Is(err, fs.ErrNotExist) {
		r.mounts = mountsByPlace(r.spec)
		return nil
	}
	if err != nil {
		return err
	}
	var dumped surroundings
	if err := json.Unmarshal(data, &dumped); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, mountsDump, err)
	}
	if shares := sharesPids(r.spec); shares != dumped.SharedPids {
		return fmt.Errorf("%w: whether it has process ids of its own: the container says %v, its checkpoint %v", ErrInvalid, !shares, !dumped.SharedPids)
	}
	r.mounts = dumped.Mounts
	return r.sameMounts()
}

// mountsByPlace are the outer mounts as runc and crun name them.
func mountsByPlace(spec *specs.Spec) []outerMount {
	var out []outerMount
	for _, m := range spec.Mounts {
		switch m.Type {
		case "bind", "overlay":
			out = append(out, outerMount{Path: m.Destination, Name: m.Destination, Kind: mountOfSpec})
		case "cgroup":
			out = append(out, outerMount{Path: m.Destination, Name: m.Destination, Kind: mountCgroup})
		}
	}
	for _, masked := range spec.Linux.MaskedPaths {
		out = append(out, outerMount{Path: masked, Name: masked, Kind: mountMask})
	}
	return out
}

// sameMounts refuses mounts of the container that its checkpoint has not: the
// restored process would not see them.
func (r *restoration) sameMounts() error {
	for _, m := range r.spec.Mounts {
		if m.Type != "bind" && m.Type != "overlay" {
			continue
		}
		if !slices.ContainsFunc(r.mounts, func(o outerMount) bool { return o.Kind == mountOfSpec && o.Name == m.Destination }) {
			return fmt.Errorf("%w: the checkpoint has no mount at %s", ErrInvalid, m.Destination)
		}
	}
	return nil
}

// request makes the shim's part, and the options for criu.
func (r *restoration) request(program *criu.Program, images string, rootfs *api.Mount) (*api.Restore, []byte, error) {
	give := criu.Restore{Root: filepath.Join(r.bundle, "root"), Terminal: r.rec.Config.TTY}
	out := &api.Restore{Program: program.File(), Images: images, Cgroup: r.rec.CgroupPath,
		Mounts: []api.RestoreMount{{Type: rootfs.Type, Source: rootfs.Source, Options: rootfs.Options, Target: give.Root}}}
	for i, m := range r.mounts {
		source, err := r.source(m, filepath.Join(r.bundle, "outer", strconv.Itoa(i)), out)
		if err != nil {
			return nil, nil, err
		}
		if strings.ContainsAny(m.Name, "]:") || !filepath.IsAbs(m.Name) {
			return nil, nil, fmt.Errorf("%w: the checkpoint has a mount named %.100q", ErrInvalid, m.Name)
		}
		give.External = append(give.External, "mnt["+m.Name+"]:"+source)
	}
	r.namespaces(out, &give)
	r.giveStreams(&give)
	if label := r.spec.Process.SelinuxLabel; label != "" {
		// The container's, whatever was saved; a criu that cannot give it fails.
		give.Label, give.MountLabel = "selinux:"+label, r.spec.Linux.MountLabel
	}
	search, err := program.Path()
	if err != nil {
		return nil, nil, err
	}
	out.Env = []string{"PATH=" + search}
	options, err := program.RestoreOptions(give)
	return out, options, err
}

// namespaces names those that the process shall be in.
func (r *restoration) namespaces(out *api.Restore, give *criu.Restore) {
	for _, ns := range r.spec.Linux.Namespaces {
		switch {
		case ns.Type == specs.CgroupNamespace:
			out.NewCgroup = true
		case ns.Path == "":
		case ns.Type == specs.NetworkNamespace:
			out.NetNS = ns.Path
			give.Inherit = append(give.Inherit, criu.Inherited{FD: api.RestoreNetNS, Name: netNSName})
		case ns.Type == specs.PIDNamespace:
			out.PIDNS = ns.Path
			give.Inherit = append(give.Inherit, criu.Inherited{FD: api.RestorePIDNS, Name: pidNSName})
		case ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace:
			give.Join = append(give.Join, criu.Joined{Kind: string(ns.Type), Path: ns.Path})
		}
	}
}

// giveStreams says what takes the place of the process's streams.
func (r *restoration) giveStreams(give *criu.Restore) {
	given := map[string]bool{}
	for i, name := range r.streams {
		fd := api.RestoreStdin + i
		if strings.HasPrefix(name, "file[") {
			fd = api.RestoreNull
		}
		if name != "" && !given[name] {
			given[name] = true
			give.Inherit = append(give.Inherit, criu.Inherited{FD: fd, Name: name})
		}
	}
}

// source finds where the content of an outer mount is on this node; place is
// where it may be mounted for criu.
func (r *restoration) source(m outerMount, place string, out *api.Restore) (string, error) {
	switch m.Kind {
	case mountMask:
		return "/dev/null", nil
	case mountCgroup:
		out.Mounts = append(out.Mounts, api.RestoreMount{Type: "cgroup2", Source: "cgroup2", Target: place})
		return place, nil
	case mountOfSpec:
		i := slices.IndexFunc(r.spec.Mounts, func(have specs.Mount) bool { return have.Destination == m.Name })
		if i < 0 {
			return "", fmt.Errorf("%w: the checkpoint has a mount at %.200q, the container has not", ErrInvalid, m.Name)
		}
		have := r.spec.Mounts[i]
		if have.Type == "bind" {
			return have.Source, nil
		}
		options := have.Options
		if have.Type == "overlay" { // of an image
			options = labelled(options, r.spec.Linux.MountLabel)
		}
		out.Mounts = append(out.Mounts, api.RestoreMount{Type: have.Type, Source: have.Source, Options: options, Target: place})
		return place, nil
	}
	return "", fmt.Errorf("%w: the checkpoint has a mount of kind %.100q", ErrInvalid, m.Kind)
}
