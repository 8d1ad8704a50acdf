package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// configFile is the OCI specification in a bundle.
const configFile = "config.json"

// maxConfig bounds it.
const maxConfig = 16 << 20

// seccompEnv names the directory of compiled seccomp profiles.
const seccompEnv = "LONGSHORE_SECCOMP"

// readBundle reads a bundle's specification. With a cache the seccomp profile,
// its longest part, comes as a compiled filter, and is not in the specification.
func readBundle(dir string) (*specs.Spec, *seccomp.Filter, error) {
	var spec specs.Spec
	var filter *seccomp.Filter
	path := filepath.Join(dir, configFile)
	err := withFile(path, func(text []byte) (err error) {
		if cache := os.Getenv(seccompEnv); cache != "" {
			if filter, err = takeFilter(text, cache); err != nil {
				return err
			}
		}
		return leanjson.Unmarshal(text, &spec)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return &spec, filter, nil
}

// takeFilter compiles the seccomp profile in a specification, or finds it
// compiled, and writes null in its place.
func takeFilter(text []byte, cache string) (*seccomp.Filter, error) {
	var part struct {
		Linux struct {
			Seccomp leanjson.Raw `json:"seccomp"`
		} `json:"linux"`
	}
	if err := leanjson.Unmarshal(text, &part); err != nil {
		return nil, err
	}
	profile := part.Linux.Seccomp
	if len(profile) < len("null") {
		return nil, nil
	}
	filter, err := seccomp.LoadJSON(cache, profile)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	n := copy(profile, "null")
	for i := range profile[n:] {
		profile[n+i] = ' '
	}
	return filter, nil
}

// withFile hands visit the content of a file in memory that is given back: on
// the heap it would stay with the shim for as long as that lives.
func withFile(path string, visit func([]byte) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
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
	data, err := unix.Mmap(-1, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	n := 0
	for n < len(data) && err == nil {
		var got int
		if got, err = unix.Read(fd, data[n:]); got == 0 && err == nil {
			err = unix.EIO // it has become shorter
		}
		if errors.Is(err, unix.EINTR) {
			err = nil
			continue
		}
		n += got
	}
	if err == nil {
		err = visit(data)
	}
	return errors.Join(err, unix.Munmap(data))
}
