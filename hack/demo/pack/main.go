// Command pack puts the guest program into an image: an OCI layout in a tar
// archive, which the demonstration embeds and the tests import.
package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"

	"github.com/longshore/longshore/images/archive"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageName is the reference under which the image is known.
const imageName = "localhost/longshore/hello:latest"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: pack GUEST IMAGE.TAR")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(guest, out string) error {
	program, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	arch, err := architecture(program)
	if err != nil {
		return fmt.Errorf("%s: %w", guest, err)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if _, err = archive.Write(f, helloImage(program, arch)); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// architecture is a program's, by Go's name: it may have been built for another
// machine.
func architecture(program []byte) (string, error) {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", err
	}
	switch file.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("no image for %v", file.Machine)
}

// helloImage holds the guest program and the accounts of two users.
func helloImage(program []byte, arch string) archive.Image {
	return archive.Image{
		Name: imageName, Architecture: arch,
		Layers: [][]archive.File{
			{
				{Name: "tmp/", Mode: 0o1777},
				{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0::/:/bin/guest\nsailor:x:1000:1000::/home:/bin/guest\n")},
				{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nsailor:x:1000:\ncrew:x:2000:sailor\n")},
			},
			{{Name: "bin/guest", Mode: 0o755, Data: program}},
		},
		Config: v1.ImageConfig{Entrypoint: []string{"/bin/guest"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin"}, WorkingDir: "/"},
	}
}
