// Package blob checks content against its descriptor while it flows by.
//
// A [Reader] belongs to one goroutine. Nothing read from it may become visible
// to others before [Reader.Verify] has returned nil.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/fault"
)

// Reader hashes and counts what is read through it. It never yields more than
// the descriptor's size, so a source cannot feed an endless stream.
type Reader struct {
	src  io.Reader
	want v1.Descriptor
	sum  hash.Hash
	n    int64
	err  error // the source's, other than io.EOF
	end  bool
}

// NewReader checks src against want. An empty want.Digest leaves the digest
// unchecked and a negative want.Size the size, for sources that promise none.
func NewReader(src io.Reader, want v1.Descriptor) *Reader {
	r := &Reader{src: src, want: want}
	if want.Digest != "" {
		r.sum = sha256.New()
	}
	return r
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if r.want.Size >= 0 {
		left := r.want.Size - r.n
		if left == 0 {
			return 0, io.EOF
		}
		if int64(len(p)) > left {
			p = p[:left]
		}
	}
	n, err := r.src.Read(p)
	r.n += int64(n)
	if r.sum != nil {
		r.sum.Write(p[:n])
	}
	switch err {
	case nil:
	case io.EOF:
		r.end = true
	default:
		r.err = err
	}
	return n, err
}

// Ended reports whether the source has come to its end.
func (r *Reader) Ended() bool { return r.end }

// Count gives the number of bytes read so far.
func (r *Reader) Count() int64 { return r.n }

// Err gives the error, other than its end, that the source met. What a
// decoder makes of a broken source says less than this does.
func (r *Reader) Err() error { return r.err }

// Verify reads what is left and compares size and digest with the descriptor's.
// A difference is [fault.ErrCorrupt]; the source's own error is returned as it is.
func (r *Reader) Verify() error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if r.want.Size >= 0 && r.n == r.want.Size {
		// One byte more tells an exact source from a longer one.
		var one [1]byte
		n, err := io.ReadFull(r.src, one[:])
		if n > 0 {
			return fmt.Errorf("%w: %s is longer than its %d bytes", fault.ErrCorrupt, r.want.Digest, r.want.Size)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	if r.want.Size >= 0 && r.n < r.want.Size {
		return fmt.Errorf("%w: %s is truncated: %d of %d bytes", fault.ErrCorrupt, r.want.Digest, r.n, r.want.Size)
	}
	if r.sum == nil {
		return nil
	}
	if got := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(r.sum.Sum(nil))); got != r.want.Digest {
		return fmt.Errorf("%w: digest is %s, expected %s", fault.ErrCorrupt, got, r.want.Digest)
	}
	return nil
}

// ReadAll reads and verifies a small document of at most limit bytes.
func ReadAll(src io.Reader, want v1.Descriptor, limit int64) ([]byte, error) {
	if want.Size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are taken", fault.ErrCorrupt, want.Digest, want.Size, limit)
	}
	r := NewReader(src, want)
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is longer than the %d bytes that are taken", fault.ErrCorrupt, want.Digest, limit)
	}
	return data, r.Verify()
}

// CheckDigest refuses a digest that this store cannot verify: any but sha256.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if d.Algorithm() != digest.SHA256 {
		return errors.New("digest algorithm " + d.Algorithm().String() + " is not sha256")
	}
	return nil
}
