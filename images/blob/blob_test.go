package blob

import (
	_ "crypto/sha512" // registers the algorithm that is refused
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/fault"
)

func TestVerify(t *testing.T) {
	const text = "twelve bytes"
	right := v1.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))}
	broken := errors.New("line cut")
	for _, c := range []struct {
		name string
		src  io.Reader
		want v1.Descriptor
		err  error
	}{
		{"exact", strings.NewReader(text), right, nil},
		{"byte by byte", iotest.OneByteReader(strings.NewReader(text)), right, nil},
		{"data with its end", iotest.DataErrReader(strings.NewReader(text)), right, nil},
		{"truncated", strings.NewReader(text[:5]), right, fault.ErrCorrupt},
		{"longer", strings.NewReader(text + "!"), right, fault.ErrCorrupt},
		{"other bytes", strings.NewReader("Twelve bytes"), right, fault.ErrCorrupt},
		{"broken source", io.MultiReader(strings.NewReader(text[:5]), iotest.ErrReader(broken)), right, broken},
		{"nothing promised", strings.NewReader(text), v1.Descriptor{Size: -1}, nil},
		{"empty", strings.NewReader(""), v1.Descriptor{Digest: digest.FromString("")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader(c.src, c.want)
			if err := r.Verify(); !errors.Is(err, c.err) {
				t.Errorf("Verify = %v, want %v", err, c.err)
			}
			if c.err == broken && r.Err() != broken {
				t.Errorf("Err = %v, want %v", r.Err(), broken)
			}
		})
	}
}

func TestReadAllIsBounded(t *testing.T) {
	text := strings.Repeat("x", 100)
	for _, size := range []int64{-1, 100} {
		_, err := ReadAll(strings.NewReader(text), v1.Descriptor{Digest: digest.FromString(text), Size: size}, 99)
		if !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("size %d: ReadAll of too much = %v", size, err)
		}
	}
	got, err := ReadAll(strings.NewReader(text), v1.Descriptor{Digest: digest.FromString(text), Size: -1}, 100)
	if err != nil || string(got) != text {
		t.Errorf("ReadAll = %q, %v", got, err)
	}
}

func TestCheckDigest(t *testing.T) {
	for d, ok := range map[digest.Digest]bool{
		digest.FromString("x"):        true,
		digest.SHA512.FromString("x"): false,
		"sha256:short":                false,
		"":                            false,
		"sha256:" + digest.Digest(strings.Repeat("G", 64)):    false,
		"../../etc:" + digest.Digest(strings.Repeat("a", 64)): false,
	} {
		if err := CheckDigest(d); (err == nil) != ok {
			t.Errorf("CheckDigest(%q) = %v", d, err)
		}
	}
}
