package unpack

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// FuzzLayer holds that no stream writes outside its directory, crashes the
// unpacker, or leaves a tree that its own accounting does not know.
func FuzzLayer(f *testing.F) {
	for _, members := range [][]h{
		{dir("d/", 0o755), file("d/f", "body"), symlink("d/s", "../../outside"), hardlink("h", "d/f")},
		{file("a/b/c", "x"), file("a", ""), dir("a", 0o700), file("a/.wh..wh..opq", ""), file(".wh.x", "")},
		{symlink("l", "../outside"), file("l/x", "")},
		{file(".wh.a", ""), file("a/b", ""), symlink("a", "b"), dir("a", 0o755)},
		{dir("..", 0o755), file("../outside/x", "")},
	} {
		f.Add(tarOf(f, members...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		layer, outside := sandbox(t)
		limits := Limits{Bytes: 1 << 20, Entries: 1000, Names: 64 << 10}
		res, _, err := unpackTo(t, layer, raw, limits)
		entries, dirErr := os.ReadDir(outside)
		if dirErr != nil || len(entries) != 1 {
			t.Fatalf("outside the layer now: %v, %v", entries, dirErr)
		}
		if err != nil {
			return
		}
		inodes := int64(0)
		links := false
		_ = filepath.WalkDir(layer, func(name string, d fs.DirEntry, err error) error {
			inodes++
			info, statErr := os.Lstat(name)
			links = links || statErr == nil && nlink(info) > 1 && !info.IsDir()
			return nil
		})
		if !links && os.Getuid() == 0 && inodes != res.Inodes {
			t.Fatalf("told %d inodes, the tree has %d:\n%s", res.Inodes, inodes, show(t, layer))
		}
	})
}

// FuzzTarNames holds that what a sink is handed is clean.
func FuzzTarNames(f *testing.F) {
	for _, name := range []string{"a/b", "/", "./x", "..", "a/../b", ".wh.x", "a/.wh..wh..opq", ".wh..", "a//b/"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := cleanPath(name)
		if err != nil {
			return
		}
		if !fs.ValidPath(clean) && bytes.ContainsRune([]byte(clean), '/') && filepath.Clean(clean) != clean || filepath.IsAbs(clean) || clean == ".." {
			t.Fatalf("cleanPath(%q) = %q", name, clean)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 4, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		plain, err := Decompress(bytes.NewReader(raw))
		if err != nil {
			return
		}
		defer plain.Close()
		_ = Tar(context.Background(), plain, nowhere{}, Limits{Bytes: 1 << 20, Entries: 100})
	})
}

// nowhere is a sink that takes everything and keeps nothing.
type nowhere struct{}

func (nowhere) Add(*Entry, io.Reader) error { return nil }
func (nowhere) Finish() (Result, error)     { return Result{}, nil }
func (nowhere) Close() error                { return nil }

func nlink(info os.FileInfo) uint64 { return uint64(info.Sys().(*syscall.Stat_t).Nlink) }
