package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/images/unpack"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// unpackedDir is, in a container's layer directory, where the checkpoint's
// archive is unpacked while the container is made.
const unpackedDir = "archive"

// resolveCheckpoint finds out whether a container shall have the process of a
// checkpoint: one that its configuration names, or one that takes the place of
// its image, as an image or as an archive on this node. The record then says
// where the checkpoint is, and from which image its container was made.
func (e *Engine) resolveCheckpoint(ctx context.Context, c *container) error {
	cfg := c.snapshot().Config
	if cfg.Restore != "" {
		return e.updateContainer(c, func(r *Container) { r.Restore = cfg.Restore })
	}
	dir, err := e.checkpointImage(ctx, c, cfg.Image)
	if err != nil || dir == "" {
		return err
	}
	base, err := e.baseImage(dir)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", cfg.Image, err)
	}
	return e.updateContainer(c, func(r *Container) { r.Restore, r.Base = dir, base.ID })
}

// checkpointImage gives the directory of the checkpoint that an image is, ""
// for an ordinary one.
func (e *Engine) checkpointImage(ctx context.Context, c *container, name string) (string, error) {
	if filepath.IsAbs(name) {
		if err := e.mayTakeCheckpoints(name); err != nil {
			return "", err
		}
		return e.unpackCheckpoint(ctx, c, name)
	}
	img, err := e.images.Get(name)
	if err != nil || img.Checkpoint == "" {
		return "", nil // whoever needs the image says what is wrong
	}
	if err := e.mayTakeCheckpoints(name); err != nil {
		return "", err
	}
	if len(img.Layers) != 1 {
		return "", fmt.Errorf("%w: image %s has %d layers; one that is a checkpoint has one", ErrInvalid, name, len(img.Layers))
	}
	if err := e.hold(c, img.Layers); err != nil {
		return "", err
	}
	dirs, err := e.images.Rootfs(img)
	if err != nil {
		return "", err
	}
	return dirs[0], nil
}

// mayTakeCheckpoints refuses checkpoints that anyone may have written, unless
// the node's administrator trusts them: their files say what user and
// capabilities a process has and which system calls it may make, whatever the
// container's security context says.
func (e *Engine) mayTakeCheckpoints(name string) error {
	if e.cfg.RestoreImages {
		return nil
	}
	return fmt.Errorf("%w: %s is a checkpoint, and checkpoint.restore_images of this node's configuration does not let images be such", ErrState, name)
}

// unpackCheckpoint unpacks an archive, compressed or not.
func (e *Engine) unpackCheckpoint(ctx context.Context, c *container, path string) (string, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("%w: checkpoint: %w", ErrInvalid, err)
	}
	defer root.Close()
	f, err := openRegular(root, filepath.Base(path))
	if err != nil {
		return "", fmt.Errorf("%w: checkpoint: %w", ErrInvalid, err)
	}
	defer f.Close()
	dir := filepath.Join(e.cfg.layerDir(c.id), unpackedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	sink, err := unpack.NewDirSink(dir, unpack.Limits{})
	if err != nil {
		return "", err
	}
	defer sink.Close()
	if _, err := unpack.Layer(ctx, f, sink, unpack.Limits{}); err != nil {
		return "", fmt.Errorf("%w: checkpoint %s: %w", ErrInvalid, path, err)
	}
	_, err = sink.Finish()
	return dir, err
}

// baseImage finds the image from which a saved container was made.
func (e *Engine) baseImage(dir string) (images.Image, error) {
	var dump containerDump
	if err := readDump(dir, configDump, &dump); err != nil {
		return images.Image{}, err
	}
	var missing error
	for _, name := range []string{dump.RootfsImageRef, dump.RootfsImageName, dump.RootfsImage} {
		if name == "" {
			continue
		}
		img, err := e.images.Get(name)
		if err == nil {
			return img, nil
		}
		missing = err
	}
	if missing == nil {
		missing = fmt.Errorf("%w: %s names no image", ErrInvalid, configDump)
	}
	return images.Image{}, fmt.Errorf("image of its container: %w", missing)
}

// readDump reads a JSON file of a checkpoint.
func readDump(dir, name string, into any) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	data, err := readBounded(root, name)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return nil
}

// savedCommand gives the command of a saved process, for a container that names
// none: its specification has to have one, though nothing runs it.
func savedCommand(dir string) ([]string, error) {
	var spec specs.Spec
	if err := readDump(dir, specDump, &spec); err != nil {
		return nil, err
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("%w: %s has no command", ErrInvalid, specDump)
	}
	return spec.Process.Args, nil
}
