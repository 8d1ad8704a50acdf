package engine

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/longshore/longshore/internal/safepath"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// maxAccountFile bounds what is read of an image's passwd and group, in bytes.
const maxAccountFile = 16 << 20

// resolveUser finds who a container's process runs as: what the client says,
// or else what the image says, by the image's passwd and group files.
func resolveUser(sec *Security, imageUser string, layers []string) (User, error) {
	want, err := wantedUser(sec, imageUser)
	if err != nil {
		return User{}, err
	}
	passwd, err := readFromLayers(layers, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	group, err := readFromLayers(layers, "/etc/group")
	if err != nil {
		return User{}, err
	}
	found, err := user.GetExecUser(want, &user.ExecUser{}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return User{}, fmt.Errorf("%w: user %q: %w", ErrInvalid, want, err)
	}
	u := User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	if sec.RunAsGroup != nil {
		u.GID = uint32(*sec.RunAsGroup)
	}
	// The primary group is among the supplementary ones, or a set-group-id
	// program could shed it and what it is denied (CVE-2022-2995).
	groups := append([]int64{int64(u.GID)}, sec.Groups...)
	if !sec.StrictGroups {
		for _, g := range found.Sgids {
			groups = append(slices.Clip(groups), int64(g))
		}
	}
	for _, g := range groups {
		if g < 0 || g > math.MaxUint32 {
			return User{}, fmt.Errorf("%w: supplemental group %d", ErrInvalid, g)
		}
		if !slices.Contains(u.Groups, uint32(g)) {
			u.Groups = append(u.Groups, uint32(g))
		}
	}
	return u, nil
}

// wantedUser gives a user in Docker's form, "name-or-id[:group]".
func wantedUser(sec *Security, imageUser string) (string, error) {
	for _, id := range []*int64{sec.RunAsUser, sec.RunAsGroup} {
		if id != nil && (*id < 0 || *id > math.MaxUint32) {
			return "", fmt.Errorf("%w: user or group id %d", ErrInvalid, *id)
		}
	}
	switch {
	case sec.RunAsUser != nil:
		return strconv.FormatInt(*sec.RunAsUser, 10), nil
	case sec.RunAsUsername != "":
		return sec.RunAsUsername, nil
	case sec.RunAsGroup != nil && imageUser == "":
		return "", fmt.Errorf("%w: a group to run as is given without a user", ErrInvalid)
	}
	return imageUser, nil
}

// readFromLayers reads a file as an overlay of the layers, topmost first,
// would show it; a file that is nowhere is empty.
func readFromLayers(layers []string, name string) ([]byte, error) {
	for _, layer := range layers {
		data, found, err := readFromLayer(layer, name)
		if err != nil {
			return nil, err
		}
		if found {
			return data, nil
		}
	}
	return nil, nil
}

// readFromLayer says found also for a whiteout: what lies below is hidden.
func readFromLayer(layer, name string) (data []byte, found bool, err error) {
	root, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: layer, Err: err}
	}
	defer unix.Close(root)
	fd, err := safepath.Open(root, name, unix.O_PATH, 0)
	if err != nil {
		return nil, false, nil // not in this layer
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, true, nil
	}
	f, err := os.Open(filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, maxAccountFile))
	return data, true, err
}
