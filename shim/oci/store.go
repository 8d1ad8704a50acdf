package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/bundle"
	"github.com/longshore/longshore/shim/launch"
	"github.com/longshore/longshore/shim/seccomp"
)

// Files in a container's directory.
const (
	stateFile  = "state.json"
	configFile = bundle.ConfigFile
)

// maxJSON bounds other JSON of a client's.
const maxJSON = 16 << 20

// maxID is what a file name may have.
const maxID = 255

// errNotExist has the words that callers look for.
var errNotExist = errors.New("container does not exist")

// record is what state.json holds.
type record struct {
	Version string `json:"ociVersion"`
	ID      string `json:"id"`
	// Pid is the container's first process, 0 until there is one, and Started
	// is when it started: [launch.Process.StartTime].
	Pid         int               `json:"pid"`
	Started     uint64            `json:"startTime"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     string            `json:"created"` // RFC 3339
	Owner       int               `json:"owner"`   // user id
	Cgroup      string            `json:"cgroup"`
	Scope       string            `json:"scope"`     // systemd's, that the cgroup is in
	NoProcess   bool              `json:"noProcess"` // none to start
	Annotations map[string]string `json:"annotations"`
}

// encode gives the record's JSON. What encoding/json builds first for a type that
// is written twice takes longer than the files.
func (r *record) encode() []byte {
	out := []byte("{\n")
	member := func(name string, value []byte) {
		if len(out) > 2 {
			out = append(out, ",\n"...)
		}
		out = append(leanjson.AppendString(append(out, ' '), name), ": "...)
		out = append(out, value...)
	}
	text := func(name, value string) { member(name, leanjson.AppendString(nil, value)) }
	text("ociVersion", r.Version)
	text("id", r.ID)
	member("pid", strconv.AppendInt(nil, int64(r.Pid), 10))
	member("startTime", strconv.AppendUint(nil, r.Started, 10))
	text("bundle", r.Bundle)
	text("rootfs", r.Rootfs)
	text("created", r.Created)
	member("owner", strconv.AppendInt(nil, int64(r.Owner), 10))
	text("cgroup", r.Cgroup)
	text("scope", r.Scope)
	member("noProcess", strconv.AppendBool(nil, r.NoProcess))
	notes := []byte("{")
	for _, key := range slices.Sorted(maps.Keys(r.Annotations)) {
		if len(notes) > 1 {
			notes = append(notes, ',')
		}
		notes = append(leanjson.AppendString(notes, key), ':')
		notes = leanjson.AppendString(notes, r.Annotations[key])
	}
	member("annotations", append(notes, '}'))
	return append(out, "\n}\n"...)
}

// container is the directory of one container.
type container struct {
	dir string
	record
	lock *os.File // nil if it is not held
}

// filters is a directory beside those of the containers, for compiled seccomp
// profiles: to compile the usual one takes longer than to start a process. No
// container has that name.
const filters = "seccomp:filters"

func (ct *container) path(name string) string { return filepath.Join(ct.dir, name) }

// checkID refuses names that are no file names or that runc refuses.
func checkID(id string) error {
	strange := strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+.-", r))
	})
	if id == "" || strange || len(id) > maxID || id == "." || id == ".." {
		return fmt.Errorf("container id %.64q: %w", id, unix.EINVAL)
	}
	return nil
}

// add makes the directory of a new container, or takes over what is none's, and locks it.
func (c *cli) add(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.root, 0o711); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.root, id)
	for {
		made := os.Mkdir(dir, 0o700)
		if made != nil && !errors.Is(made, os.ErrExist) {
			return nil, made
		}
		ct := &container{dir: dir, record: record{ID: id}}
		err := ct.claim()
		if err == nil {
			return ct, nil
		}
		ct.unlock()
		switch {
		case errors.Is(err, errNotExist): // it has just been removed
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, os.ErrExist):
			return nil, fmt.Errorf("container with id %q exists already: %w", id, unix.EEXIST)
		default:
			if made == nil {
				os.Remove(dir)
			}
			return nil, err
		}
	}
}

// claim locks a directory that is no container's: it is new, or has been left by a
// create that died before it wrote the state, or by a delete that died after it had
// removed that.
func (ct *container) claim() error {
	if err := ct.acquire(unix.LOCK_EX | unix.LOCK_NB); err != nil {
		return err
	}
	locked, err := ct.lock.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(ct.dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(locked, now) {
		return errNotExist // removed, and maybe made anew, before it was locked
	}
	if err != nil {
		return err
	}
	_, err = os.Stat(ct.path(stateFile))
	switch {
	case err == nil:
		return os.ErrExist
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return err
}

// open reads the state of a container.
func (c *cli) open(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	ct := &container{dir: filepath.Join(c.root, id)}
	return ct, ct.load(id)
}

func (ct *container) load(id string) error {
	text, err := bundle.Text(ct.path(stateFile))
	if err == nil {
		err = leanjson.Unmarshal(text, &ct.record)
	}
	if errors.Is(err, os.ErrNotExist) {
		err = errNotExist
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if ct.ID != id {
		return fmt.Errorf("container %s: its state is of %q: %w", id, ct.ID, unix.EBADMSG)
	}
	return nil
}

// openLocked is open for a command that changes the container.
func (c *cli) openLocked(id string) (*container, error) {
	ct, err := c.open(id)
	if err != nil {
		return nil, err
	}
	if err := ct.acquire(unix.LOCK_EX); err != nil {
		return nil, err
	}
	// Whoever held the lock may have changed or removed it.
	if err := ct.load(id); err != nil {
		ct.unlock()
		return nil, err
	}
	return ct, nil
}

// acquire takes the lock, which ends with the process at the latest.
func (ct *container) acquire(how int) error {
	dir, err := os.Open(ct.dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errNotExist
		}
		return err
	}
	for {
		err = unix.Flock(int(dir.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		dir.Close()
		return &os.PathError{Op: "lock", Path: ct.dir, Err: err}
	}
	ct.lock = dir
	return nil
}

func (ct *container) unlock() {
	if ct.lock != nil {
		ct.lock.Close()
		ct.lock = nil
	}
}

// save writes the state. It dies with a reboot anyway, so that it is not synced.
func (ct *container) save() error {
	return atomicfile.Write(ct.path(stateFile), ct.record.encode(), 0o600, atomicfile.Volatile)
}

// remove takes the directory away. The state goes last: until then the rest is
// known to be there, and the name is taken.
func (ct *container) remove() error {
	names, err := os.ReadDir(ct.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() != stateFile {
			if err := os.RemoveAll(ct.path(n.Name())); err != nil {
				return err
			}
		}
	}
	for _, last := range []string{ct.path(stateFile), ct.dir} {
		if err := os.Remove(last); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// config reads the container's specification, as it was at create, and the text
// of its seccomp profile.
func (ct *container) config() (*specs.Spec, []byte, error) {
	text, err := bundle.Text(ct.path(configFile))
	if err != nil {
		return nil, nil, err
	}
	spec, profile, _, err := decode(ct.path(configFile), text)
	if err == nil {
		spec.Linux.CgroupsPath = ct.Cgroup
	}
	return spec, profile, err
}

// launched gives the container for its start and its removal, and with the text
// of its seccomp profile for more processes.
func (ct *container) launched(spec *specs.Spec, profile []byte, warn func(error)) (*launch.Container, error) {
	filter, err := filterOf(filepath.Dir(ct.dir), profile)
	if err != nil {
		return nil, err
	}
	cfg := launch.Config{ID: ct.ID, Bundle: ct.Bundle, Spec: spec, Gate: ct.dir, Filter: filter, Warn: warn}
	return launch.Load(cfg, ct.Pid, ct.Started)
}

// filterOf compiles a seccomp profile, or finds it compiled below the root.
func filterOf(root string, profile []byte) (*seccomp.Filter, error) {
	f, err := seccomp.Load(filepath.Join(root, filters), profile)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	return f, nil
}

// readJSONFile reads a client's file, of a bounded size.
func readJSONFile(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return readJSON(path, f, v)
}

func readJSON(name string, r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return err
	}
	if len(data) > maxJSON {
		return fmt.Errorf("%s: more than %d bytes: %w", name, maxJSON, unix.EFBIG)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
