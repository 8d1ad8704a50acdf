package images

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/longshore/longshore/images/unpack"
)

// emptyFrame stands for the layers of an image without any: overlayfs wants at
// least one directory.
var emptyFrame = framePrefix + digest.FromString("").Encoded()

// stack gives the directories of an image, bottom first, from its layers that
// are all there. It makes the frames it needs; the caller holds their names.
func (s *Store) stack(ctx context.Context, diffIDs, chainIDs []digest.Digest) ([]string, error) {
	var names []string
	for i, diffID := range diffIDs {
		name := layerName(diffID)
		below := names
		// A layer that comes again hides all of its first coming, and overlayfs
		// refuses the same directory twice.
		names = append(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name }), name)
		if l, _ := s.hasLayer(name); l.opaque {
			names = []string{name}
			continue
		}
		if len(below) == 0 {
			continue
		}
		frame, err := s.frame(ctx, name, framePrefix+chainIDs[i].Encoded(), below)
		if err != nil {
			return nil, err
		}
		if frame != "" {
			names = append(names, frame)
		}
	}
	if len(names) == 0 {
		return []string{emptyFrame}, s.ensureFrame(ctx, emptyFrame, nil)
	}
	return names, nil
}

// frame makes, if there is a need, the layer that gives the directories which
// the layer name does not name the look they have below.
func (s *Store) frame(ctx context.Context, name, frame string, below []string) (string, error) {
	if _, ok := s.hasLayer(frame); ok {
		return frame, nil
	}
	rec, err := s.readLayerRecord(name)
	if err != nil {
		return "", err
	}
	var lower []string
	for _, n := range slices.Backward(below) {
		lower = append(lower, filepath.Join(s.layerDir(n), layerFS))
	}
	dirs, err := frameDirs(ctx, filepath.Join(s.layerDir(name), layerFS), lower, rec.Implicit)
	if err != nil || dirs == nil {
		return "", err
	}
	return frame, s.ensureFrame(ctx, frame, dirs)
}

func (s *Store) ensureFrame(ctx context.Context, frame string, dirs []*unpack.Entry) error {
	if _, ok := s.hasLayer(frame); ok {
		return nil
	}
	_, _, err := s.unpacks.do(ctx, frame, func(context.Context) (struct{}, error) {
		return struct{}{}, s.makeFrame(frame, dirs)
	})
	return err
}

// frameDirs gives the directories of a frame, parents first, or nil if every
// implicit directory looks as if the layer had named it rightly.
func frameDirs(ctx context.Context, layer string, lower, implicit []string) ([]*unpack.Entry, error) {
	found := map[string]*unpack.Entry{}
	var wanted []string
	for _, name := range implicit {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		own, err := unpack.FindDir([]string{layer}, name)
		if err != nil {
			return nil, err
		}
		under, err := unpack.FindDir(lower, name)
		if err != nil {
			return nil, err
		}
		if own == nil || under == nil {
			continue
		}
		found[name] = under
		// The root's time is of no use to anyone, and nearly no layer names it.
		if !own.SameLook(under) || name != "." && !own.ModTime.Equal(under.ModTime) {
			wanted = append(wanted, name)
		}
	}
	dirs := map[string]*unpack.Entry{}
	for _, name := range wanted {
		for ; dirs[name] == nil; name = path.Dir(name) {
			e := found[name]
			if e == nil { // named by the layer, or only there
				var err error
				if e, err = unpack.FindDir([]string{layer}, name); err != nil {
					return nil, err
				}
				if e == nil {
					return nil, fmt.Errorf("%w: layer %s has lost directory %.200q", ErrCorrupt, layer, name)
				}
			}
			dirs[name] = e
		}
	}
	var sorted []*unpack.Entry
	for _, e := range dirs {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b *unpack.Entry) int { return comparePaths(a.Path, b.Path) })
	return sorted, nil
}

// comparePaths orders parents before their children.
func comparePaths(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "." || b != "." && a < b:
		return -1
	}
	return 1
}

func (s *Store) makeFrame(frame string, dirs []*unpack.Entry) error {
	staging := filepath.Join(s.root, tempDir, s.newName("frame"))
	defer os.RemoveAll(staging)
	sink, err := newSink(staging, s.config.Limits)
	if err != nil {
		return err
	}
	defer sink.Close()
	for _, e := range dirs {
		if err := sink.Add(e, nil); err != nil {
			return err
		}
	}
	made, err := sink.Finish()
	if err != nil {
		return err
	}
	made.Implicit = nil
	return s.commitLayer(staging, frame, made)
}
