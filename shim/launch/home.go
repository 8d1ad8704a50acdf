package launch

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/safepath"
)

// maxPasswd bounds what is read of a container's /etc/passwd.
const maxPasswd = 1 << 20

// homeOf looks a user's home directory up in the container's /etc/passwd; "/"
// if there is none. The file is the image's: it is opened inside the root, and
// no entry makes the look-up fail.
func homeOf(root int, uid uint32) string {
	fd, err := safepath.Open(root, "/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "/"
	}
	f := os.NewFile(uintptr(fd), "passwd")
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "/"
	}
	want := strconv.FormatUint(uint64(uid), 10)
	left := maxPasswd
	for lines := bufio.NewReaderSize(f, 1024); left > 0; {
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
