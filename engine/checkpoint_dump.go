package engine

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/safepath"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// surroundings is what of a container belongs to its node, and what criu shall
// therefore not save: the restored container is given others.
type surroundings struct {
	Mounts  []outerMount `json:"mounts"`
	Streams [3]string    `json:"-"` // what stdin, stdout and stderr are, as /proc shows them; a file of the host as "file[MOUNT:INODE]"
	// SharedPids says that its process ids are its pod's.
	SharedPids bool   `json:"sharedPids,omitempty"`
	netNS      string // inode of a network namespace that is not the node's, else ""
	pidNS      string // inode of a shared pid namespace, else ""
}

// outerMount is a mount whose content comes from outside the container.
type outerMount struct {
	Path string `json:"path"` // in the container
	Name string `json:"name"` // by which a restore supplies it: of the mount of the specification, and what lies below that
	Kind string `json:"kind"` // see below
	Sub  string `json:"-"`    // with [mountOfSpec]: the path below the mount of the specification, "" for itself
}

// Kinds of outer mounts.
const (
	mountOfSpec = "spec"   // of the specification, or below one of its mounts
	mountMask   = "mask"   // the null device that covers a masked file
	mountCgroup = "cgroup" // the container's own control group
)

// mountLine is one line of mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	id, parent         int
	root, path, fsType string
}

// How criu knows the pod's namespaces: runc's and crun's names, so that each
// restores what the others have saved.
const (
	netNSName = "extRootNetNS"
	pidNSName = "extRootPidNS"
)

// look reads what a restore of a frozen process has to supply.
func look(pid int, spec *specs.Spec) (*surroundings, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	lines, err := readMounts(dir + "/mountinfo")
	if err != nil {
		return nil, err
	}
	s := &surroundings{}
	named, err := mountsOfSpec(dir+"/root", spec)
	if err != nil {
		return nil, err
	}
	s.Mounts = outerMounts(lines, named)
	if err := s.readStreams(dir, lines); err != nil {
		return nil, err
	}
	if err := s.lookAtNamespaces(dir, spec); err != nil {
		return nil, err
	}
	return s, nil
}

// lookAtNamespaces notes which of the process's are its pod's. dir is the
// process's of procfs.
func (s *surroundings) lookAtNamespaces(dir string, spec *specs.Spec) error {
	own, err := nsInode("/proc/self/ns/net")
	if err != nil {
		return err
	}
	theirs, err := nsInode(dir + "/ns/net")
	if err != nil {
		return err
	}
	if own != theirs {
		s.netNS = theirs
	}
	if s.SharedPids = sharesPids(spec); s.SharedPids {
		s.pidNS, err = nsInode(dir + "/ns/pid")
	}
	return err
}

// nsInode gives the number by which criu knows a namespace.
func nsInode(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return strconv.FormatUint(st.Ino, 10), nil
}

// sharesPids says whether a container has the process ids of its pod.
func sharesPids(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace && ns.Path != "" })
}

// maxMountLine bounds one line of mountinfo.
const maxMountLine = 1 << 20

func readMounts(path string) ([]mountLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mountLine
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func parseMount(line string) (m mountLine, err error) {
	before, after, ok := strings.Cut(line, " - ")
	fields, kind := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(kind) < 1 {
		return m, fmt.Errorf("line %.200q: %w", line, unix.EBADMSG)
	}
	if m.id, err = strconv.Atoi(fields[0]); err != nil {
		return m, err
	}
	if m.parent, err = strconv.Atoi(fields[1]); err != nil {
		return m, err
	}
	m.root, m.path, m.fsType = mountEscapes.Replace(fields[3]), mountEscapes.Replace(fields[4]), kind[0]
	return m, nil
}

// mountsOfSpec finds which mounts those of the specification are: the image may
// have links on their way. What is not there any more is passed over.
func mountsOfSpec(root string, spec *specs.Spec) (map[int]specs.Mount, error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(rootFD)
	named := map[int]specs.Mount{}
	for _, m := range spec.Mounts {
		if m.Type != "bind" && m.Type != "overlay" && m.Type != "cgroup" {
			continue // the kernel's, which criu makes anew
		}
		fd, err := safepath.OpenPath(rootFD, m.Destination)
		if err != nil {
			continue
		}
		id, err := mountID("/proc/self/fdinfo/" + strconv.Itoa(fd))
		unix.Close(fd)
		if err != nil {
			return nil, err
		}
		named[id] = m
	}
	return named, nil
}

// mountID reads the mount that an open file is on.
func mountID(fdinfo string) (int, error) {
	data, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s has no mnt_id: %w", fdinfo, unix.EBADMSG)
}

// outerMounts picks the mounts that a restore supplies.
func outerMounts(lines []mountLine, named map[int]specs.Mount) []outerMount {
	byID := map[int]mountLine{}
	for _, l := range lines {
		byID[l.id] = l
	}
	// above gives the mount of the specification that l is or lies below.
	above := func(l mountLine) (specs.Mount, mountLine, bool) {
		for range len(lines) {
			if m, ok := named[l.id]; ok {
				return m, l, true
			}
			parent, ok := byID[l.parent]
			if !ok || l.path == "/" {
				break
			}
			l = parent
		}
		return specs.Mount{}, l, false
	}
	var out []outerMount
	for _, l := range lines {
		m, at, ok := above(l)
		switch {
		case l.path == "/":
		case ok && m.Type == "cgroup" && strings.HasPrefix(l.fsType, "cgroup"):
			out = append(out, outerMount{Path: l.path, Name: m.Destination + strings.TrimPrefix(l.path, at.path), Kind: mountCgroup})
		case ok && m.Type == "cgroup": // the tmpfs around version 1's hierarchies
		case ok:
			sub := strings.TrimPrefix(l.path, at.path)
			out = append(out, outerMount{Path: l.path, Name: m.Destination + sub, Kind: mountOfSpec, Sub: sub})
		case l.root == "/null":
			out = append(out, outerMount{Path: l.path, Name: l.path, Kind: mountMask})
		}
	}
	return out
}

// readStreams notes what the process's stdio is. A file that lies on none of
// the container's mounts, the host's null device, is named by mount and inode.
func (s *surroundings) readStreams(dir string, lines []mountLine) error {
	inside := map[int]bool{}
	for _, l := range lines {
		inside[l.id] = true
	}
	for i := range s.Streams {
		fd := strconv.Itoa(i)
		link, err := os.Readlink(dir + "/fd/" + fd)
		if err != nil {
			continue // the program has closed it
		}
		s.Streams[i] = link
		id, err := mountID(dir + "/fdinfo/" + fd)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(dir+"/fd/"+fd, &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir + "/fd/" + fd, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && !inside[id] {
			s.Streams[i] = fmt.Sprintf("file[%x:%x]", id, st.Ino)
		}
	}
	return nil
}

// external says all that to criu.
func (s *surroundings) external() ([]string, error) {
	var out []string
	for _, m := range s.Mounts {
		if m.Sub != "" {
			// Its source would have to be found below that of the other mount, where a
			// container can have put a link.
			return nil, fmt.Errorf("%w: the mount at %q is a part of another one, and could not be restored", ErrState, m.Path)
		}
		if strings.ContainsAny(m.Path, "]:") || strings.ContainsAny(m.Name, "]:") {
			return nil, fmt.Errorf("%w: criu cannot be told of the mount %q", ErrState, m.Path)
		}
		out = append(out, "mnt["+m.Path+"]:"+m.Name)
	}
	if s.netNS != "" {
		out = append(out, "net["+s.netNS+"]:"+netNSName)
	}
	if s.pidNS != "" {
		out = append(out, "pid["+s.pidNS+"]:"+pidNSName)
	}
	named := map[string]bool{}
	for _, name := range s.Streams {
		if strings.HasPrefix(name, "file[") && !named[name] {
			named[name] = true
			out = append(out, name)
		}
	}
	return out, nil
}

// containerDump is config.dump, as CRI-O, Podman and checkpointctl read it.
type containerDump struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage"`
	RootfsImageRef  string    `json:"rootfsImageRef"`
	RootfsImageName string    `json:"rootfsImageName"`
	Runtime         string    `json:"runtime"`
	Created         time.Time `json:"createdTime"`
	Checkpointed    time.Time `json:"checkpointedTime"`
	Restored        time.Time `json:"restoredTime"`
	IsRestored      bool      `json:"restored"`
}

// containerStatus is the status file that containerd's archives have.
type containerStatus struct {
	CreatedAt, StartedAt int64 // nanoseconds since 1970
	Pid                  uint32
}

// writeDescription writes what the container is.
func (e *Engine) writeDescription(dir string, rec *Container, spec *specs.Spec, seen *surroundings) error {
	p, err := e.findPod(rec.PodID)
	if err != nil {
		return err
	}
	pod := p.snapshot().Config
	name := rec.Config.UserImage
	if name == "" {
		name = rec.Config.Image
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for key, value := range map[string]string{ // checkpointctl shows these
		"io.kubernetes.cri.container-name": rec.Config.Name, "io.kubernetes.cri.sandbox-name": pod.Name,
		"io.kubernetes.cri.sandbox-namespace": pod.Namespace, "io.kubernetes.cri.sandbox-id": rec.PodID,
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.image-name": name,
	} {
		spec.Annotations[key] = value
	}
	for _, f := range []struct {
		name string
		v    any
	}{
		{configDump, containerDump{ID: rec.ID, Name: rec.Config.Name, RootfsImage: name, RootfsImageRef: rec.ImageID, RootfsImageName: name,
			Runtime: "longshore", Created: rec.CreatedAt, Checkpointed: time.Now()}},
		{specDump, spec},
		{statusDump, containerStatus{CreatedAt: rec.CreatedAt.UnixNano(), StartedAt: rec.StartedAt.UnixNano(), Pid: uint32(rec.Pid)}},
		{mountsDump, seen},
		{filepath.Join(imagesDir, descriptorsFile), seen.Streams},
	} {
		if err := atomicfile.WriteJSON(filepath.Join(dir, f.name), f.v, atomicfile.Volatile); err != nil {
			return err
		}
	}
	return nil
}
