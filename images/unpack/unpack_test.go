package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/images/fault"
)

var stamp = time.Unix(1700000000, 123000000)

// h makes a header; the body's size is the text's.
type h struct {
	tar.Header
	body string
}

func dir(name string, mode int64) h {
	return h{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: stamp}}
}

func file(name, body string) h {
	return h{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: stamp}, body: body}
}

func link(kind byte, name, target string) h {
	return h{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: stamp}}
}

func symlink(name, target string) h { return link(tar.TypeSymlink, name, target) }

func hardlink(name, target string) h { return link(tar.TypeLink, name, target) }

func (m h) with(change func(*tar.Header)) h {
	change(&m.Header)
	return m
}

func tarOf(t testing.TB, members ...h) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		m.Size = int64(len(m.body))
		m.Format = tar.FormatPAX
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatalf("%q: %v", m.Name, err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sandbox gives an empty directory for a layer with another beside it that
// nothing may touch.
func sandbox(t testing.TB) (layer, outside string) {
	t.Helper()
	top := t.TempDir()
	layer, outside = filepath.Join(top, "layer"), filepath.Join(top, "outside")
	for _, d := range []string{layer, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a layer's directories may forbid their own removal
		_ = filepath.WalkDir(layer, func(name string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(name, 0o700)
			}
			return nil
		})
	})
	return layer, outside
}

func unpackTo(t testing.TB, layer string, raw []byte, limits Limits) (Result, digest.Digest, error) {
	t.Helper()
	sink, err := NewDirSink(layer, limits)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	id, err := Layer(context.Background(), bytes.NewReader(raw), sink, limits)
	if err != nil {
		return Result{}, "", err
	}
	res, err := sink.Finish()
	return res, id, err
}

// show prints a tree as a golden text, one line for each inode's name.
func show(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %s", rel, describe(name, &st))
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			out.WriteString(attributes(t, name))
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func describe(name string, st *unix.Stat_t) string {
	mode := fmt.Sprintf("%04o", st.Mode&0o7777)
	if os.Getuid() == 0 && (st.Uid != 0 || st.Gid != 0) {
		mode += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "dir " + mode
	case unix.S_IFREG:
		body, _ := os.ReadFile(name)
		if st.Nlink > 1 {
			return fmt.Sprintf("file %s x%d %q", mode, st.Nlink, body)
		}
		return fmt.Sprintf("file %s %q", mode, body)
	case unix.S_IFLNK:
		target, _ := os.Readlink(name)
		return "link " + target
	case unix.S_IFIFO:
		return "fifo " + mode
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return "whiteout"
		}
		return fmt.Sprintf("char %s %d,%d", mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return fmt.Sprintf("block %s %d,%d", mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// attributes prints overlayfs' mark the same way with and without root.
func attributes(t testing.TB, name string) string {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return ""
	}
	var found []string
	for attr := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if attr == "" || attr == "security.selinux" {
			continue
		}
		value := make([]byte, 4096)
		m, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			t.Fatal(err)
		}
		attr = strings.Replace(strings.Replace(attr, "trusted.overlay", "overlay", 1), "user.overlay", "overlay", 1)
		found = append(found, fmt.Sprintf(" %s=%q", attr, value[:m]))
	}
	slices.Sort(found)
	return strings.Join(found, "")
}

func TestTrees(t *testing.T) {
	for _, c := range []struct {
		name    string
		members []h
		want    string
	}{
		{"plain", []h{dir("./", 0o755), dir("etc/", 0o755), file("etc/passwd", "root"), symlink("etc/link", "/outside"), hardlink("etc/hard", "etc/passwd")},
			". dir 0755\netc dir 0755\netc/hard file 0644 x2 \"root\"\netc/link link /outside\netc/passwd file 0644 x2 \"root\"\n"},
		{"absolute names are the layer's own", []h{file("/a", "1"), file("//b/./c", "2")},
			". dir 0755\na file 0644 \"1\"\nb dir 0755\nb/c file 0644 \"2\"\n"},
		{"implicit parents", []h{file("a/b/c", "")}, ". dir 0755\na dir 0755\na/b dir 0755\na/b/c file 0644 \"\"\n"},
		{"modes", []h{dir("tmp", 0o1777), dir("sg", 0o2775), file("sg/f", ""), file("su", "").with(func(h *tar.Header) { h.Mode = 0o4755 }),
			file("ro", "").with(func(h *tar.Header) { h.Mode = 0o400 }), dir("locked", 0o500), file("locked/in", "")},
			". dir 0755\nlocked dir 0500\nlocked/in file 0644 \"\"\nro file 0400 \"\"\nsg dir 2775\nsg/f file 0644 \"\"\nsu file 4755 \"\"\ntmp dir 1777\n"},
		{"fifo", []h{link(tar.TypeFifo, "p", "")}, ". dir 0755\np fifo 0777\n"},
		{"last of a path wins", []h{file("f", "old"), file("f", "new"), dir("d", 0o700), file("d/kept", ""), dir("d", 0o755),
			dir("gone", 0o755), dir("gone/deep", 0o755), file("gone/deep/er", "x"), file("gone", "file"), file("up", ""), dir("up", 0o755), symlink("s", "x"), file("s", "y")},
			". dir 0755\nd dir 0755\nd/kept file 0644 \"\"\nf file 0644 \"new\"\ngone file 0644 \"file\"\ns file 0644 \"y\"\nup dir 0755\n"},
		{"directory again after it was replaced", []h{file("d/x/y", ""), symlink("d", "e"), dir("d", 0o711), file("d/z", "")},
			". dir 0755\nd dir 0711\nd/z file 0644 \"\"\n"},
		{"whiteouts", []h{dir("d", 0o755), file("d/.wh.gone", ""), file("d/.wh..wh..opq", ""), file(".wh.top", "")},
			". dir 0755\nd dir 0755 overlay.opaque=\"y\"\nd/gone whiteout\ntop whiteout\n"},
		{"whiteout of what the layer has itself", []h{file("f", "1"), file(".wh.f", ""), file(".wh.g", ""), file("g", "2"),
			dir("d", 0o755), file("d/in", ""), file(".wh.d", ""), file(".wh.e", ""), file("e/in", "")},
			". dir 0755\nd dir 0755 overlay.opaque=\"y\"\nd/in file 0644 \"\"\ne dir 0755 overlay.opaque=\"y\"\ne/in file 0644 \"\"\nf file 0644 \"1\"\ng file 0644 \"2\"\n"},
		{"opaque without its directory", []h{file("a/b/.wh..wh..opq", "")}, ". dir 0755\na dir 0755\na/b dir 0755 overlay.opaque=\"y\"\n"},
		{"AUFS leavings", []h{dir(".wh..wh.plnk", 0o700), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")}, ". dir 0755\n"},
		{"attributes", []h{file("f", "x").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{paxXattr + "user.a": "1\x00", paxXattr + "trusted.overlay.opaque": "y", paxXattr + "user.overlay.redirect": "/x",
				paxXattr + "trusted.overlay.redirect": "/etc", paxXattr + "security.selinux": "s"}
		}), dir("d", 0o755).with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{paxXattr + "user.d": "2", paxXattr + "trusted.overlay.opaque": "y"}
		})},
			". dir 0755\nd dir 0755 user.d=\"2\"\nf file 0644 \"x\" user.a=\"1\\x00\"\n"},
		{"hard link to a link", []h{symlink("s", "../outside/secret"), hardlink("h", "s")}, ". dir 0755\nh link ../outside/secret\ns link ../outside/secret\n"},
		{"global header", []h{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}}, file("f", "")}, ". dir 0755\nf file 0644 \"\"\n"},
		{"nothing", nil, ". dir 0755\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			layer, _ := sandbox(t)
			raw := tarOf(t, c.members...)
			res, id, err := unpackTo(t, layer, raw, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got := show(t, layer); got != c.want {
				t.Errorf("tree is\n%swant\n%s", got, c.want)
			}
			if id != digest.FromBytes(raw) {
				t.Errorf("diffID is %s", id)
			}
			checkUsage(t, layer, res)
		})
	}
}

// checkUsage compares the told usage with the tree's own sizes.
func checkUsage(t *testing.T, root string, res Result) {
	t.Helper()
	seen, want := map[uint64]bool{}, Result{}
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(name, &st)
		}
		if err != nil || seen[st.Ino] {
			return err
		}
		seen[st.Ino] = true
		want.Inodes++
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			want.Size += block
		case unix.S_IFREG:
			want.Size += blocks(st.Size)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Size != want.Size || res.Inodes != want.Inodes {
		t.Errorf("told %d bytes in %d inodes, the tree has %d in %d", res.Size, res.Inodes, want.Size, want.Inodes)
	}
}

func TestImplicitAndOpaqueAreTold(t *testing.T) {
	layer, _ := sandbox(t)
	res, _, err := unpackTo(t, layer, tarOf(t, file("b/c/d", ""), dir("b", 0o700), file(".wh..wh..opq", "")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.Implicit, []string{".", "b/c"}) || !res.Opaque {
		t.Errorf("implicit %q, opaque %v", res.Implicit, res.Opaque)
	}
}

func TestTimesAreTheLayers(t *testing.T) {
	layer, _ := sandbox(t)
	_, _, err := unpackTo(t, layer, tarOf(t, dir(".", 0o755), dir("d", 0o755), symlink("d/s", "x"), file("d/f", "x"), link(tar.TypeFifo, "d/p", "")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "d", "d/f", "d/s", "d/p"} {
		info, err := os.Lstat(filepath.Join(layer, name))
		if err != nil || !info.ModTime().Equal(stamp) {
			t.Errorf("%s: %v, %v", name, info.ModTime(), err)
		}
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, members := range map[string][]h{
		"upwards":                      {file("../outside/x", "")},
		"upwards in the middle":        {file("a/../../outside/x", "")},
		"absolute upwards":             {file("/../outside/x", "")},
		"through an absolute link":     {symlink("l", "/tmp"), file("l/x", "")},
		"through a relative link":      {symlink("l", "../outside"), file("l/x", "")},
		"through an inner link":        {dir("d", 0o755), symlink("l", "d"), file("l/x", "")},
		"directory through a link":     {symlink("l", "../outside"), dir("l/x", 0o755)},
		"link through a link":          {symlink("l", "../outside"), symlink("l/x", "y")},
		"whiteout through a link":      {symlink("l", "../outside"), file("l/.wh.secret", "")},
		"opaque through a link":        {symlink("l", "../outside"), file("l/.wh..wh..opq", "")},
		"hard link through a link":     {symlink("l", "../outside"), hardlink("x", "l/secret")},
		"hard link out":                {hardlink("x", "../outside/secret")},
		"hard link to nothing":         {hardlink("x", "y")},
		"hard link to itself":          {file("x", ""), hardlink("x", "x")},
		"hard link to a directory":     {dir("d", 0o755), hardlink("x", "d")},
		"hard link into what it takes": {file("d/x", ""), hardlink("d", "d/x")},
		"below a file":                 {file("f", ""), file("f/x", "")},
		"root is a file":               {file(".", "")},
		"root is a link":               {symlink("./", "../outside")},
		"long part":                    {file(long, "")},
		"long name":                    {file(strings.Repeat("n/", 2048)+"x", "")},
		"long link":                    {symlink("s", strings.Repeat("n/", 2048)+"x")},
		"whiteout of nothing":          {file(".wh.", "")},
		"whiteout of itself":           {file(".wh..", "")},
		"whiteout of its parent":       {file("d/.wh...", "")},
		"below a whiteout":             {file(".wh.a/x", "")},
		"owner -1":                     {file("f", "").with(func(h *tar.Header) { h.Uid = 1<<32 - 1 })},
		"device out of range":          {{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 12}}},
	} {
		t.Run(name, func(t *testing.T) {
			layer, outside := sandbox(t)
			_, _, err := unpackTo(t, layer, tarOf(t, members...), Limits{})
			if !errors.Is(err, fault.ErrCorrupt) {
				t.Errorf("error is %v", err)
			}
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 1 {
				t.Errorf("outside the layer now: %v, %v", entries, err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	raw := tarOf(t, dir("a", 0o755), dir("b", 0o755), file("c", strings.Repeat("x", 10000)))
	for name, limits := range map[string]Limits{"bytes": {Bytes: 9999}, "entries": {Entries: 2}, "names": {Names: 3}} {
		layer, _ := sandbox(t)
		if _, _, err := unpackTo(t, layer, raw, limits); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	layer, _ := sandbox(t)
	if _, _, err := unpackTo(t, layer, raw, Limits{Bytes: int64(len(raw)), Entries: 3, Names: 4}); err != nil {
		t.Errorf("just within: %v", err)
	}
}

func TestCompressions(t *testing.T) {
	raw := tarOf(t, file("f", strings.Repeat("some text ", 100000)))
	var gz, zs bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(raw[:1000])
	zw.Close()
	zw.Reset(&gz) // members in sequence are one stream
	zw.Write(raw[1000:])
	zw.Close()
	enc, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	enc.Write(raw)
	enc.Close()
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'}, zs.Bytes()...)
	for name, data := range map[string][]byte{"plain": raw, "gzip": gz.Bytes(), "zstd": zs.Bytes(), "zstd after a skippable frame": skip} {
		layer, _ := sandbox(t)
		_, id, err := unpackTo(t, layer, data, Limits{})
		if err != nil || id != digest.FromBytes(raw) {
			t.Errorf("%s: %s, %v", name, id, err)
		}
		layer, _ = sandbox(t)
		if _, _, err := unpackTo(t, layer, data[:len(data)/2], Limits{}); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("half of %s: %v", name, err)
		}
	}
	layer, _ := sandbox(t)
	if _, _, err := unpackTo(t, layer, []byte("<html>not a layer at all</html>"+strings.Repeat(" ", 600)), Limits{}); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("no tar at all: %v", err)
	}
}

func TestCancelledUnpackEnds(t *testing.T) {
	layer, _ := sandbox(t)
	sink, err := NewDirSink(layer, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Tar(ctx, bytes.NewReader(tarOf(t, file("f", ""))), sink, Limits{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOwnersAndDevices(t *testing.T) {
	needsRoot(t, "sets owners and makes devices")
	layer, _ := sandbox(t)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	owned := func(h *tar.Header) { h.Uid, h.Gid = 70000, 4000000000 }
	_, _, err := unpackTo(t, layer, tarOf(t,
		dir("d", 0o2755).with(owned), file("d/f", "").with(func(h *tar.Header) {
			owned(h)
			h.Mode = 0o6755
			h.PAXRecords = map[string]string{paxXattr + "security.capability": capability}
		}),
		dir("d/sub", 0o755), file("d/mine", ""), symlink("d/s", "x").with(owned),
		h{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666}},
		h{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "loop", Devmajor: 7, Devminor: 300, Mode: 0o660, Gid: 6}},
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := ". dir 0755\nd dir 2755 70000:4000000000\n" +
		"d/f file 6755 70000:4000000000 \"\" security.capability=" + fmt.Sprintf("%q", capability) + "\n" +
		"d/mine file 0644 \"\"\nd/s link x\nd/sub dir 0755\nloop block 0660 0:6 7,300\nnull char 0666 1,3\n"
	if got := show(t, layer); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(layer, "d/s"), &st); err != nil || st.Uid != 70000 {
		t.Errorf("link belongs to %d, %v", st.Uid, err)
	}
}
