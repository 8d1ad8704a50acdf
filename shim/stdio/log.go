package stdio

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// Log is a container's log file in the CRI format, shared by its streams. Each
// write holds whole records.
type Log struct {
	path string

	mu      sync.Mutex // guards all below
	file    *os.File
	dropped int64
	lastErr error
}

// logMode lets the node's log collectors, which are in root's group, read.
const logMode = 0o640

// OpenLog opens the log file at path, which is made if it is not there.
func OpenLog(path string) (*Log, error) {
	file, err := openAppend(path)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, file: file}, nil
}

func openAppend(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, logMode)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// Reopen goes on in a new file at the same path, after a rotation has renamed
// the old one. No record is split between the two; on error the old file stays.
func (l *Log) Reopen() error {
	file, err := openAppend(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
	l.file = file
	return nil
}

// Write appends whole records. It never fails: what a full disk refuses is
// dropped and counted.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.file.Write(p)
	if err != nil {
		l.dropped += int64(len(p) - n)
		l.lastErr = err
	}
	return len(p), nil
}

// Close closes the file; the error says how many bytes were dropped, and why.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.file.Close()
	if l.dropped > 0 {
		return fmt.Errorf("log %s: %d bytes dropped: %w", l.path, l.dropped, l.lastErr)
	}
	return err
}

var _ io.WriteCloser = (*Log)(nil)
