package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/blob"
	"github.com/longshore/longshore/images/fault"
)

// The media types of Docker's manifests, schema 2.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// MaxManifest bounds a manifest or an index, as registries do (distribution
// specification, "Pushing Manifests"), in bytes.
const MaxManifest = 4 << 20

const userAgent = "longshore"

var accept = strings.Join([]string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, MediaTypeDockerList, MediaTypeDockerManifest}, ", ")

// Document is a manifest or an index whose digest is verified.
type Document struct {
	MediaType string // as the registry labels it; it may label wrongly
	Digest    digest.Digest
	Data      []byte
}

// Manifest fetches what ref names in the repository: a tag or a digest.
func (r *Repository) Manifest(ctx context.Context, ref string) (doc Document, err error) {
	err = r.each(ctx, func(s *source) error {
		return s.retry(ctx, func() error {
			doc, err = s.manifest(ctx, ref)
			return err
		})
	})
	return doc, err
}

// Resolve asks for the digest that ref names now, without fetching what it
// names. It is empty, without an error, if the registry does not tell.
func (r *Repository) Resolve(ctx context.Context, ref string) (d digest.Digest, err error) {
	err = r.each(ctx, func(s *source) error {
		return s.retry(ctx, func() error {
			resp, err := s.get(ctx, http.MethodHead, "manifests/"+ref, accept)
			if err != nil {
				return err
			}
			resp.Body.Close()
			d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
			if blob.CheckDigest(d) != nil {
				d = ""
			}
			return nil
		})
	})
	return d, err
}

// ReadBlob hands the verified content of desc to use, from whichever host has
// it. use may be called more than once, each time from the beginning; what it
// made of the bytes counts only if ReadBlob returns nil.
func (r *Repository) ReadBlob(ctx context.Context, desc v1.Descriptor, use func(io.Reader) error) error {
	return r.each(ctx, func(s *source) error {
		return s.retry(ctx, func() error { return s.readBlob(ctx, desc, use) })
	})
}

func (s *source) manifest(ctx context.Context, ref string) (Document, error) {
	resp, err := s.get(ctx, http.MethodGet, "manifests/"+ref, accept)
	if err != nil {
		return Document{}, err
	}
	defer resp.Body.Close()
	what := fmt.Sprintf("manifest %s of %s from %s", ref, s.path, s.host)
	want := v1.Descriptor{Size: -1, Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest"))}
	if d := digest.Digest(ref); blob.CheckDigest(d) == nil {
		want.Digest = d
	} else if blob.CheckDigest(want.Digest) != nil {
		want.Digest = ""
	}
	data, err := blob.ReadAll(resp.Body, want, MaxManifest)
	if isHTML(resp, data) {
		return Document{}, fmt.Errorf("%w: %s is HTML (a proxy's or a login page?)", fault.ErrCorrupt, what)
	}
	if err != nil {
		return Document{}, s.bodyError(ctx, err, what)
	}
	if want.Digest == "" {
		want.Digest = digest.FromBytes(data)
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return Document{MediaType: strings.TrimSpace(mediaType), Digest: want.Digest, Data: data}, nil
}

func isHTML(resp *http.Response, data []byte) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || bytes.HasPrefix(bytes.TrimSpace(data), []byte("<"))
}

func (s *source) readBlob(ctx context.Context, desc v1.Descriptor, use func(io.Reader) error) error {
	resp, err := s.get(ctx, http.MethodGet, "blobs/"+desc.Digest.String(), "*/*")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	what := fmt.Sprintf("blob %s of %s from %s", desc.Digest, s.path, s.host)
	if isHTML(resp, nil) {
		return fmt.Errorf("%w: %s is HTML (a proxy's or a login page?)", fault.ErrCorrupt, what)
	}
	if desc.Size >= 0 && resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
		return fmt.Errorf("%w: %s has %d bytes, expected %d", fault.ErrCorrupt, what, resp.ContentLength, desc.Size)
	}
	body := blob.NewReader(resp.Body, desc)
	err = use(body)
	// A decoder that stumbles over a short or altered blob says less than its digest.
	if err == nil || errors.Is(err, fault.ErrCorrupt) && body.Ended() {
		if verifyErr := body.Verify(); verifyErr != nil {
			err = verifyErr
		}
	}
	switch {
	case body.Err() != nil:
		return s.bodyError(ctx, body.Err(), what)
	case err == nil:
		return nil
	case fault.Known(err):
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// temporary marks an error that another attempt may not meet.
type temporary struct {
	error
	after time.Duration // the registry's wish, or zero
}

func (t *temporary) Unwrap() error { return t.error }

// bodyError judges what ended the reading of a body.
func (s *source) bodyError(ctx context.Context, err error, what string) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case fault.Known(err):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, errIdle):
		err = fmt.Errorf("%w: %s: no data for %v", fault.ErrUnavailable, what, s.client.idle)
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: %s is truncated", fault.ErrCorrupt, what)
	default:
		err = fmt.Errorf("%w: %s: %w", fault.ErrUnavailable, what, err)
	}
	return &temporary{error: err}
}

// retry repeats ask while that may help.
func (s *source) retry(ctx context.Context, ask func() error) error {
	pause := s.client.pause
	for attempt := 1; ; attempt++ {
		err := ask()
		var temp *temporary
		if err == nil || attempt == attempts || !errors.As(err, &temp) {
			return err
		}
		wait := time.NewTimer(min(max(pause, temp.after), maxPause))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return context.Cause(ctx)
		}
		pause *= 2
	}
}

// get makes one request, and a second one if the first is challenged. The
// response has status 200; its body must be closed.
func (s *source) get(ctx context.Context, method, resource, accept string) (*http.Response, error) {
	target := s.base + "/v2/" + s.path + "/" + resource
	if s.query != "" {
		target += "?" + s.query
	}
	for challenged := false; ; challenged = true {
		req, err := http.NewRequestWithContext(ctx, method, target, nil)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", fault.ErrInvalidReference, err)
		}
		req.Header.Set("Accept", accept)
		if header := s.authorization(); header != "" {
			req.Header.Set("Authorization", header)
		}
		resp, err := s.send(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK {
			return resp, nil
		}
		if resp.StatusCode == http.StatusUnauthorized && !challenged {
			finish(resp)
			if err := s.authorize(ctx, resp.Header.Values("WWW-Authenticate")); err != nil {
				return nil, err
			}
			continue
		}
		err = s.statusError(resp, resource+" of "+s.path)
		finish(resp)
		return nil, err
	}
}

// finish closes a body that is of no more interest. A little is read before:
// only a connection whose answer was read to its end is used again.
func finish(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	resp.Body.Close()
}

// statusError reads an answer other than 200.
func (s *source) statusError(resp *http.Response, what string) error {
	kind := fault.ErrUnavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = fault.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = fault.ErrUnauthorized
	}
	err := fmt.Errorf("%w: %s: %s answers %s%s", kind, what, s.host, resp.Status, explain(resp.Body))
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500 {
		return err
	}
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return &temporary{error: err, after: time.Duration(min(after, 3600)) * time.Second}
}

// explain gives the first message of a registry's error body, made harmless.
func explain(body io.Reader) string {
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := json.NewDecoder(io.LimitReader(body, 64<<10)).Decode(&answer); err != nil || len(answer.Errors) == 0 {
		return ""
	}
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, answer.Errors[0].Code+": "+answer.Errors[0].Message)
	return fmt.Sprintf(" (%.200s)", text)
}

var errIdle = errors.New("no data")

// send sends a request whose answer must keep coming: whenever the client's
// idle time passes without a byte, the request is over.
func (s *source) send(req *http.Request) (*http.Response, error) {
	outer := req.Context()
	ctx, cancel := context.WithCancelCause(outer)
	req = req.WithContext(ctx)
	req.Header.Set("User-Agent", userAgent)
	timer := time.AfterFunc(s.client.idle, func() { cancel(errIdle) })
	resp, err := s.http.Do(req)
	timer.Stop()
	if err == nil {
		resp.Body = &watched{ReadCloser: resp.Body, idle: s.client.idle, timer: timer, ctx: ctx, cancel: cancel}
		return resp, nil
	}
	idle := context.Cause(ctx) == errIdle
	cancel(nil)
	if outer.Err() != nil {
		return nil, context.Cause(outer)
	}
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err // without the URL: a redirect's may carry a signature
	}
	var opErr *net.OpError
	if idle || errors.As(err, &opErr) && opErr.Op == "dial" {
		s.client.markDown(s.host)
		return nil, fmt.Errorf("%w: %s does not answer: %w", fault.ErrUnavailable, s.host, err)
	}
	err = fmt.Errorf("%w: %s: %w", fault.ErrUnavailable, s.host, err)
	if opErr != nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &temporary{error: err} // an established connection broke
	}
	return nil, err
}

// watched runs the idle clock while a read waits, not while the reader works.
type watched struct {
	io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	ctx    context.Context // of this one exchange
	cancel context.CancelCauseFunc
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.idle)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(w.ctx) == errIdle {
		err = errIdle
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}
