package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// resolveImageMount finds the directories of an image that is mounted, or of
// a directory in it.
func (e *Engine) resolveImageMount(in *SpecInput, m Mount, c *container) error {
	img, err := e.images.Get(m.Image)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.ContainerPath, err)
	}
	if err := e.hold(c, img.Layers); err != nil {
		return err
	}
	layers, err := e.images.Rootfs(img)
	if err != nil {
		return err
	}
	dirs, err := below(layers, m.ImageSubPath)
	if err != nil {
		return fmt.Errorf("mount %s: image %s: %w", m.ContainerPath, m.Image, err)
	}
	if in.ImageMounts == nil {
		in.ImageMounts, in.ImageIDs = map[string][]string{}, map[string]string{}
	}
	// An empty directory at the bottom makes it an overlay however few layers
	// there are, so that whiteouts never show.
	in.ImageMounts[m.ContainerPath] = append(dirs, e.cfg.emptyDir())
	in.ImageIDs[m.ContainerPath] = img.ID
	return nil
}

// below gives what the layers of an image, topmost first, hold at a directory
// in it. A layer that hides it from those below ends the list.
func below(layers []string, sub string) ([]string, error) {
	if sub = filepath.Clean("/" + sub); sub == "/" {
		return layers, nil
	}
	var dirs []string
	for _, layer := range layers {
		dir, opaque, err := subdirectory(layer, sub)
		if err != nil {
			return nil, err
		}
		if dir != "" {
			dirs = append(dirs, dir)
		}
		if opaque {
			break
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%w: sub-path %q is not a directory of it", ErrInvalid, sub)
	}
	return dirs, nil
}

// subdirectory finds a directory in one layer, "" if it is not there, and
// whether the layer hides what others have at that place. A symbolic link is
// nothing to be followed: it may lead into another layer.
func subdirectory(layer, sub string) (dir string, opaque bool, err error) {
	dir = layer
	for _, part := range strings.Split(strings.Trim(sub, "/"), "/") {
		dir = filepath.Join(dir, part)
		var st unix.Stat_t
		err := unix.Lstat(dir, &st)
		switch {
		case err == unix.ENOENT:
			return "", opaque, nil
		case err != nil:
			return "", false, &os.PathError{Op: "lstat", Path: dir, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return "", true, nil
		}
		var mark [1]byte
		if n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", mark[:]); err == nil && n == 1 && mark[0] == 'y' {
			opaque = true
		}
	}
	return dir, opaque, nil
}
