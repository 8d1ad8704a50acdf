// Package bundle reads the specification of an OCI bundle.
//
// It owns nothing and keeps nothing of the text. The seccomp profile, which for
// most containers is the longest part and the same, stays text: its compiled
// program is found by that (package seccomp). What it reads may be hostile: it is
// bounded, and what is no specification is an error.
package bundle

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/seccomp"
)

// ConfigFile is the specification in a bundle.
const ConfigFile = "config.json"

// maxConfig bounds the specification: the largest seccomp profiles and mount
// lists are some hundred KiB.
const maxConfig = 16 << 20

// document is a specification whose seccomp profile is left as it is.
type document struct {
	specs.Spec
	Linux *linux `json:"linux"`
}

type linux struct {
	specs.Linux
	Seccomp leanjson.Raw `json:"seccomp"`
}

// Decode reads a specification without linux.seccomp, and gives the text of that,
// a part of the given one; nil if there is none.
func Decode(text []byte) (*specs.Spec, []byte, error) {
	var d document
	if err := leanjson.Unmarshal(text, &d); err != nil {
		return nil, nil, err
	}
	if d.Linux == nil {
		return &d.Spec, nil, nil
	}
	d.Spec.Linux = &d.Linux.Linux
	return &d.Spec, d.Linux.Seccomp, nil
}

// Read reads the specification in the bundle dir. Its seccomp profile is not in
// it but comes compiled, by way of the cache (see [seccomp.Load]); nil without one.
func Read(dir, cache string) (*specs.Spec, *seccomp.Filter, error) {
	var spec *specs.Spec
	var filter *seccomp.Filter
	path := filepath.Join(dir, ConfigFile)
	err := Visit(path, func(text []byte) error {
		s, profile, err := Decode(text)
		if err != nil {
			return err
		}
		spec = s
		if filter, err = seccomp.Load(cache, profile); err != nil {
			return fmt.Errorf("linux.seccomp: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return spec, filter, nil
}

// Text gives the content of a file of a client's, which must be regular and of
// the size of a specification at most.
func Text(path string) (text []byte, err error) {
	err = open(path, func(fd, size int) error {
		text = make([]byte, size)
		return fill(fd, text)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// Visit hands visit the content of a file in memory that is given back: on
// the heap it would stay with a shim for as long as that lives.
func Visit(path string, visit func([]byte) error) error {
	return open(path, func(fd, size int) error {
		data, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		if err = fill(fd, data); err == nil {
			err = visit(data)
		}
		return errors.Join(err, unix.Munmap(data))
	})
}

// open opens a file whose size is sensible.
func open(path string, visit func(fd, size int) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 || st.Size > maxConfig {
		return fmt.Errorf("a file of type %#o with %d bytes: %w", st.Mode&unix.S_IFMT, st.Size, unix.EINVAL)
	}
	return visit(fd, int(st.Size))
}

// fill reads what a file holds.
func fill(fd int, data []byte) error {
	for n := 0; n < len(data); {
		got, err := unix.Read(fd, data[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case got == 0:
			return fmt.Errorf("it has become shorter: %w", unix.EIO)
		default:
			n += got
		}
	}
	return nil
}
