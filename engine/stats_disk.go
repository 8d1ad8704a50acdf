package engine

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DiskUsage is what lies on disk below a directory.
type DiskUsage struct {
	Dir           string
	Bytes, Inodes uint64
	Time          time.Time // when it was counted
}

// diskMeter remembers what a directory held. Who asks after some time has it
// counted anew, and nobody else does: the more files there are, the longer the
// last count stands, so that counting takes a small part of the time.
type diskMeter struct {
	mu    sync.Mutex // guards all below
	last  DiskUsage
	until time.Time // last stands so long
}

// A count stands for so long at least, and for so many times what it took.
const (
	diskAge  = 5 * time.Second
	diskRest = 20
)

func (m *diskMeter) of(dir string) (DiskUsage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	begun := time.Now()
	if begun.Before(m.until) {
		return m.last, nil
	}
	usage, err := diskUsage(dir)
	if err != nil {
		return usage, err
	}
	m.last = usage
	m.until = usage.Time.Add(max(diskAge, diskRest*usage.Time.Sub(begun)))
	return usage, nil
}

// inode is a file, whatever its names.
type inode struct{ dev, ino uint64 }

// diskUsage counts what a directory holds, a file of several names once. What
// vanishes meanwhile does not count, nor what somebody has put too deep for a
// path.
func diskUsage(dir string) (DiskUsage, error) {
	usage := DiskUsage{Dir: dir}
	linked := map[inode]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if path != dir && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENAMETOOLONG)) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Nlink > 1 && !d.IsDir() {
			id := inode{st.Dev, st.Ino}
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		usage.Bytes += uint64(st.Blocks) * 512
		usage.Inodes++
		return nil
	})
	usage.Time = time.Now()
	return usage, err
}

// FilesystemUsage gives what images and writable layers take on disk.
func (e *Engine) FilesystemUsage() (imageFs, containerFs DiskUsage, err error) {
	imageFs = DiskUsage{Dir: e.images.Dir(), Time: time.Now()}
	if imageFs.Bytes, imageFs.Inodes, err = e.images.Usage(); err != nil {
		return imageFs, containerFs, err
	}
	containerFs, err = e.layers.of(filepath.Join(e.cfg.StateDir, "containers"))
	return imageFs, containerFs, err
}
