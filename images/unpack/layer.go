package unpack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	bufferSize = 256 << 10
	// maxWindow is the window up to which the zstd command decodes unasked
	// (2^27 bytes): what a decoder may be made to allocate.
	maxWindow = 128 << 20
)

// The pools hold what is expensive to make anew for each layer; the garbage
// collector empties them when no pull runs.
var (
	readers   = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}
	buffers   = sync.Pool{New: func() any { return new([bufferSize]byte) }}
	inflaters = sync.Pool{New: func() any { return new(gzip.Reader) }}
)

// Layer unpacks one layer, plain or compressed by gzip or zstd, and gives its
// diffID: the digest of the tar stream. The caller compares it with the one
// the image's configuration promises before anyone sees what sink stored.
func Layer(ctx context.Context, r io.Reader, sink Sink, limits Limits) (digest.Digest, error) {
	plain, err := Decompress(r)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	sum := &hashed{src: plain, sum: sha256.New()}
	stream := readers.Get().(*bufio.Reader)
	stream.Reset(sum)
	defer putReader(stream)
	if err := Tar(ctx, stream, sink, limits); err != nil {
		return "", err
	}
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum.sum.Sum(nil))), nil
}

func putReader(r *bufio.Reader) {
	r.Reset(nil)
	readers.Put(r)
}

type hashed struct {
	src io.Reader
	sum hash.Hash
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.src.Read(p)
	h.sum.Write(p[:n])
	return n, err
}

// Decompress gives the plain form of r, which is told by its first bytes:
// registries mislabel layers. Close it to give its buffers back; r stays open.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	in := readers.Get().(*bufio.Reader)
	in.Reset(r)
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		putReader(in)
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z := inflaters.Get().(*gzip.Reader)
		if err := z.Reset(in); err != nil {
			putReader(in)
			return nil, corrupt("gzip", err)
		}
		return &plain{Reader: z, done: func() { inflaters.Put(z); putReader(in) }}, nil
	case isZstd(magic):
		// One goroutine per layer: layers run in parallel already.
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			putReader(in)
			return nil, corrupt("zstd", err)
		}
		return &plain{Reader: z, done: func() { z.Close(); putReader(in) }}, nil
	}
	return &plain{Reader: in, done: func() { putReader(in) }}, nil
}

// isZstd knows a frame, and a skippable frame, which zstd:chunked begins with.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

type plain struct {
	io.Reader
	done func()
}

func (p *plain) Close() error {
	if p.done != nil {
		p.done()
		p.done = nil
	}
	return nil
}
