package launch

import (
	"bufio"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPasswd bounds what is read of a container's /etc/passwd.
const maxPasswd = 1 << 20

// homeOf looks a user's home directory up in the container's /etc/passwd; "/"
// if there is none. The file is the image's: it is opened inside the root, and
// no entry makes the look-up fail. Nothing that is mounted in the root is looked
// at: the container may have mounted it, and a FUSE file system need not answer.
func homeOf(root int, uid uint32) string {
	fd, err := unix.Openat2(root, "/etc/passwd", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return "/"
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "/"
	}
	want := strconv.FormatUint(uint64(uid), 10)
	left := maxPasswd
	for lines := bufio.NewReaderSize(fdReader(fd), 1024); left > 0; {
		line, isPrefix, err := lines.ReadLine()
		if err != nil {
			break
		}
		left -= len(line)
		if isPrefix {
			continue
		}
		fields := strings.Split(string(line), ":")
		if len(fields) >= 6 && fields[2] == want && strings.HasPrefix(fields[5], "/") && !strings.Contains(fields[5], "\x00") {
			return fields[5]
		}
	}
	return "/"
}

// fdReader reads a regular file without the poller's part in [os.File].
type fdReader int

func (r fdReader) Read(p []byte) (int, error) {
	n, err := unix.Read(int(r), p)
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}
