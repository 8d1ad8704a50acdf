package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/longshore/longshore/images/archive"
)

// fetchBusybox takes the program out of Debian's package busybox. The one of
// busybox-static will not do: its shell runs applets without looking for them,
// so that a masked /bin/ls is not missed. The packages exclude each other,
// hence nothing is installed.
func fetchBusybox(ctx context.Context, to string) error {
	if exists(to) {
		return nil
	}
	dir, err := os.MkdirTemp("", "busybox-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := command(ctx, dir, "apt-get", "download", "-qq", "busybox"); err != nil {
		// A fresh machine has no package lists.
		if err := command(ctx, dir, "apt-get", "update", "-qq"); err != nil {
			return err
		}
		if err := command(ctx, dir, "apt-get", "download", "-qq", "busybox"); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(dir, "busybox_*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("download busybox: got %d packages", len(packages))
	}
	if err := command(ctx, dir, "dpkg-deb", "-x", packages[0], "root"); err != nil {
		return err
	}
	for _, path := range []string{"bin/busybox", "usr/bin/busybox"} {
		if data, err := os.ReadFile(filepath.Join(dir, "root", path)); err == nil {
			return os.WriteFile(to, data, 0o755)
		}
	}
	return fmt.Errorf("package %s holds no busybox", filepath.Base(packages[0]))
}

// busybox is the program, the names it goes by and the libraries it needs.
type busybox struct {
	program   []byte
	applets   []string
	libraries []archive.File
}

// readBusybox asks the program itself.
func readBusybox(path string) (busybox, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return busybox{}, err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return busybox{}, fmt.Errorf("list applets: %w", err)
	}
	needed, err := libraries(path)
	if err != nil {
		return busybox{}, fmt.Errorf("find libraries of busybox: %w", err)
	}
	b := busybox{program: program, applets: strings.Fields(string(applets))}
	for _, library := range needed {
		data, err := os.ReadFile(library)
		if err != nil {
			return busybox{}, err
		}
		b.libraries = append(b.libraries, archive.File{Name: strings.TrimPrefix(library, "/"), Mode: 0o755, Data: data})
	}
	return b, nil
}

// files has a hard link for each applet, as the real image has. Those of the
// guest's programs are left out: a layer must not list a path twice.
func (b *busybox) files(guests []string) []archive.File {
	files := append([]archive.File{{Name: "bin/busybox", Mode: 0o755, Data: b.program}}, b.libraries...)
	for _, applet := range b.applets {
		name := "bin/" + applet
		if applet != "busybox" && !slices.Contains(guests, name) {
			files = append(files, archive.File{Name: name, Type: tar.TypeLink, Linkname: "bin/busybox"})
		}
	}
	return files
}

// libraries are the loader and what it says it would load.
func libraries(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		loader := string(bytes.TrimRight(name, "\x00"))
		out, err := exec.Command(loader, "--list", path).Output()
		if err != nil {
			return nil, fmt.Errorf("%s --list: %w", loader, err)
		}
		return append([]string{loader}, parseLibraries(out)...), nil
	}
	return nil, nil // a static program
}

// parseLibraries reads lines as "libc.so.6 => /lib/libc.so.6 (0x7f00)".
func parseLibraries(list []byte) []string {
	var paths []string
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		if c := strings.Fields(lines.Text()); len(c) >= 3 && c[1] == "=>" && strings.HasPrefix(c[2], "/") {
			paths = append(paths, c[2])
		}
	}
	return paths
}
