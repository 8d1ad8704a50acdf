package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/leanjson"
)

// cacheHeader begins a file of the cache. The number is the compiler's: raise it
// with every change of what a profile is compiled to.
const cacheHeader = "longshore seccomp 3 " + runtime.GOARCH + "\n"

// maxProfile bounds the text of a profile. Docker's default one is 20 KB.
const maxProfile = 4 << 20

// Load is [Compile] for the JSON of a profile, with a cache: compiled programs
// are files in dir, each named by the SHA-256 of the text, which is not even read
// if its program is there. A file that is damaged is replaced. A cache that cannot
// be written is no error: the profile is compiled again, as it is without dir. No
// text and null are no profile, and give no filter.
func Load(dir string, text []byte) (*Filter, error) {
	switch {
	case len(text) == 0 || string(text) == "null":
		return nil, nil
	case len(text) > maxProfile:
		return nil, fmt.Errorf("seccomp profile of %d bytes: %w", len(text), ErrTooLarge)
	case dir == "":
		return compileText(text)
	}
	sum := sha256.Sum256(text)
	path := filepath.Join(dir, hex.EncodeToString(sum[:]))
	if f, err := readFilter(path); err == nil {
		return f, nil
	}
	f, err := compileText(text)
	// An agent's socket is not of the program, and profiles with one are rare.
	if err != nil || f == nil || f.Notify || f.ListenerPath != "" {
		return f, err
	}
	if err := os.MkdirAll(dir, 0o700); err == nil {
		if err := atomicfile.Create(path, f.encode(), 0o600); errors.Is(err, os.ErrExist) { // a damaged one
			_ = atomicfile.Write(path, f.encode(), 0o600, atomicfile.Volatile)
		}
	}
	return f, nil
}

func compileText(text []byte) (*Filter, error) {
	var p *specs.LinuxSeccomp
	if err := leanjson.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return Compile(p)
}

// encode writes header, flags, the program's instructions, and the SHA-256 of
// all that; numbers are in little-endian order.
func (f *Filter) encode() []byte {
	out := make([]byte, 0, len(cacheHeader)+4+8*len(f.Program)+sha256.Size)
	out = append(out, cacheHeader...)
	out = binary.LittleEndian.AppendUint32(out, f.Flags)
	for _, in := range f.Program {
		out = binary.LittleEndian.AppendUint16(out, in.Code)
		out = append(out, in.Jt, in.Jf)
		out = binary.LittleEndian.AppendUint32(out, in.K)
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

var errDamaged = errors.New("no seccomp program, or a damaged one")

// decodeFilter reads what encode has written.
func decodeFilter(data []byte) (*Filter, error) {
	const least = len(cacheHeader) + 4 + 8 + sha256.Size
	if len(data) < least || (len(data)-least)%8 != 0 || string(data[:len(cacheHeader)]) != cacheHeader {
		return nil, errDamaged
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); string(sum[:]) != string(data[len(body):]) {
		return nil, errDamaged
	}
	body = body[len(cacheHeader):]
	f := &Filter{Flags: binary.LittleEndian.Uint32(body), Program: make([]unix.SockFilter, len(body)/8)}
	for i, in := 0, body[4:]; len(in) > 0; i, in = i+1, in[8:] {
		f.Program[i] = unix.SockFilter{
			Code: binary.LittleEndian.Uint16(in), Jt: in[2], Jf: in[3], K: binary.LittleEndian.Uint32(in[4:]),
		}
	}
	return f, nil
}

func readFilter(path string) (*Filter, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	const most = len(cacheHeader) + 4 + 8*maxProgram + sha256.Size
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > int64(most) {
		return nil, errDamaged
	}
	data := make([]byte, st.Size)
	if n, err := unix.Read(fd, data); err != nil || n != len(data) {
		return nil, errDamaged
	}
	return decodeFilter(data)
}
