package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names and text of the files are the reference plugin's, with its line break;
// the staged file is ours alone.
const (
	lockFile   = "lock"
	stagedFile = ".reserving"
	lastPrefix = "last_reserved_ip."
	lineBreak  = "\r\n"
)

// maxOwner bounds what is read of one file.
const maxOwner = 512

// store is a network's directory, locked.
type store struct {
	dir  string
	lock *os.File
}

// openStore locks the directory; it is made if create says so, else a missing
// one gives nil.
func openStore(dir string, create bool) (*store, error) {
	if create {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) && !create {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return &store{dir, f}, nil
}

// close unlocks.
func (s *store) close() { s.lock.Close() }

func (s *store) file(a netip.Addr) string { return filepath.Join(s.dir, a.String()) }

// reserve gives false if the address is taken. Its file appears with the owner
// in it: one that a crash left empty would belong to nobody, and no DEL would
// free the address.
func (s *store) reserve(a netip.Addr, o Owner) (bool, error) {
	if err := unix.Access(s.file(a), unix.F_OK); err == nil {
		return false, nil
	}
	staged := filepath.Join(s.dir, stagedFile)
	err := os.WriteFile(staged, []byte(strings.TrimSpace(o.ContainerID)+lineBreak+o.IfName), 0o644)
	if err == nil {
		// Every writer holds the lock: nobody has made the file meanwhile.
		err = os.Rename(staged, s.file(a))
	}
	if err != nil {
		os.Remove(staged)
		return false, fmt.Errorf("write %s: %w", s.file(a), err)
	}
	return true, nil
}

// owner reads who has an address; files of very old plugins name no interface.
func (s *store) owner(a netip.Addr) (Owner, error) {
	text, err := readSmall(s.file(a))
	if err != nil {
		return Owner{}, err
	}
	id, ifName, _ := strings.Cut(text, "\n")
	return Owner{strings.TrimSpace(id), strings.TrimSpace(ifName)}, nil
}

func (s *store) remove(a netip.Addr) error {
	if err := os.Remove(s.file(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unstage removes what a crash left of a reservation that did not come about.
func (s *store) unstage() error {
	if err := os.Remove(filepath.Join(s.dir, stagedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// addresses lists those that are reserved.
func (s *store) addresses() ([]netip.Addr, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			all = append(all, a)
		}
	}
	return all, nil
}

// lastReserved is a hint: a damaged file counts as none.
func (s *store) lastReserved(index int) (netip.Addr, bool) {
	text, err := readSmall(filepath.Join(s.dir, lastPrefix+strconv.Itoa(index)))
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(strings.TrimSpace(text))
	return a.Unmap(), err == nil
}

func (s *store) setLastReserved(index int, a netip.Addr) error {
	return os.WriteFile(filepath.Join(s.dir, lastPrefix+strconv.Itoa(index)), []byte(a.String()), 0o600)
}

// readSmall reads the beginning of a file. DEL reads one per address of the
// network, so it is done in three system calls.
func readSmall(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, maxOwner)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return string(buf[:n]), nil
}
