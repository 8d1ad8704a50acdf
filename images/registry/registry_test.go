package registry

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/archive"
	"github.com/longshore/longshore/images/fault"
	"github.com/longshore/longshore/images/registrytest"
)

func quick(config Config) *Client {
	c := New(config, slog.New(slog.DiscardHandler))
	c.pause = time.Millisecond
	return c
}

func repository(t *testing.T, c *Client, name string, auth *Auth) *Repository {
	t.Helper()
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Repository(named, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return r
}

func image() archive.Image {
	return archive.Image{Layers: [][]archive.File{{{Name: "f", Data: bytes.Repeat([]byte("data "), 1000)}}}}
}

func read(r *Repository, d v1.Descriptor) ([]byte, error) {
	var got []byte
	err := r.ReadBlob(context.Background(), d, func(body io.Reader) (err error) {
		got, err = io.ReadAll(body)
		return err
	})
	return got, err
}

// fetchAll reads manifest and layer, as a pull does.
func fetchAll(r *Repository, layout *archive.Layout) error {
	doc, err := r.Manifest(context.Background(), "1")
	if err != nil {
		return err
	}
	if doc.Digest != layout.Manifest.Digest {
		return fmt.Errorf("manifest is %s", doc.Digest)
	}
	layer := layout.Blobs[0]
	got, err := read(r, v1.Descriptor{Digest: digest.FromBytes(layer), Size: int64(len(layer))})
	if err == nil && !bytes.Equal(got, layer) {
		err = errors.New("layer differs")
	}
	return err
}

func TestCredentials(t *testing.T) {
	right := &Auth{Username: "me", Password: "secret"}
	for _, c := range []struct {
		name   string
		tokens bool
		auth   *Auth
		open   bool
		err    error
	}{
		{"open", false, nil, true, nil},
		{"anonymous token", true, nil, true, nil},
		{"basic", false, right, false, nil},
		{"token", true, right, false, nil},
		{"base64", true, &Auth{Auth: "bWU6c2VjcmV0"}, false, nil},
		{"identity token", true, &Auth{IdentityToken: "secret"}, false, nil},
		{"registry token", true, &Auth{RegistryToken: "token-for-pulls"}, false, nil},
		{"wrong basic", false, &Auth{Username: "me", Password: "wrong"}, false, fault.ErrUnauthorized},
		{"wrong token", true, &Auth{Username: "me", Password: "wrong"}, false, fault.ErrUnauthorized},
		{"none", false, nil, false, fault.ErrUnauthorized},
		{"for another host", false, &Auth{Username: "me", Password: "secret", ServerAddress: "https://elsewhere.example/v1/"}, false, fault.ErrUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := registrytest.New(t)
			layout := reg.Put(t, "app", "1", image())
			reg.Tokens = c.tokens
			if !c.open {
				reg.User, reg.Password = "me", "secret"
			}
			r := repository(t, quick(nil), reg.Host()+"/app", c.auth)
			if err := fetchAll(r, layout); !errors.Is(err, c.err) {
				t.Errorf("error is %v, want %v", err, c.err)
			}
			if c.tokens && c.err == nil && reg.Requests("GET /token")+reg.Requests("POST /token") > 1 {
				t.Error("the token was fetched more than once")
			}
		})
	}
}

func TestCredentialStaysWithItsHost(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", image())
	reg.User, reg.Password = "me", "secret"
	var leaked atomic.Value
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := r.Header.Get("Authorization"); h != "" {
			leaked.Store(h)
		}
		w.Write(layout.Blobs[0])
	}))
	defer store.Close()
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Authorization") != "" {
			http.Redirect(w, r, store.URL+"/signed?x=y", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	r := repository(t, quick(nil), reg.Host()+"/app", &Auth{Username: "me", Password: "secret"})
	if err := fetchAll(r, layout); err != nil {
		t.Fatal(err)
	}
	if h := leaked.Load(); h != nil {
		t.Errorf("the blob store was told %q", h)
	}
}

func TestMirrorIsNotToldThePullsCredential(t *testing.T) {
	mirror := registrytest.New(t)
	layout := mirror.Put(t, "cache/library/app", "1", image())
	var leaked atomic.Value
	mirror.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if h := r.Header.Get("Authorization"); h != "" {
			leaked.Store(h)
		}
		return false
	}
	c := quick(Config{"docker.io": {Mirrors: []string{mirror.Server.URL + "/cache/"}}})
	r := repository(t, c, "app", &Auth{Username: "me", Password: "secret"})
	if err := fetchAll(r, layout); err != nil {
		t.Fatal(err)
	}
	if h := leaked.Load(); h != nil {
		t.Errorf("the mirror was told %q", h)
	}
}

func TestMirrorsComeFirstAndTheRegistryLast(t *testing.T) {
	origin, mirror := registrytest.New(t), registrytest.New(t)
	layout := origin.Put(t, "app", "1", image())
	c := quick(Config{"*": {Mirrors: []string{"http://127.0.0.1:1", mirror.Server.URL}}})
	r := repository(t, c, origin.Host()+"/app", nil)
	if err := fetchAll(r, layout); err != nil {
		t.Fatal(err)
	}
	if mirror.Requests("GET /v2/app/manifests/1") != 1 || mirror.Requests("GET /v2/app/blobs/") != 1 {
		t.Error("the mirror was not asked")
	}
	if got := c.byHealth(r.sources); got[len(got)-1].host != "127.0.0.1:1" {
		t.Error("the dead mirror is not asked last")
	}
	if _, err := r.Manifest(context.Background(), "2"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("absent everywhere: %v", err)
	}
}

func TestAnswersAreJudged(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, n int32)
		err    error
		asked  int32
	}{
		"html manifest": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>log in</html>")
		}, fault.ErrCorrupt, 1},
		"html without a label": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
			fmt.Fprint(w, "\n<!doctype html>")
		}, fault.ErrCorrupt, 1},
		"other digest": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("other").String())
			fmt.Fprint(w, "{}")
		}, fault.ErrCorrupt, 1},
		"endless": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			for i := 0; i <= MaxManifest>>10; i++ {
				w.Write(make([]byte, 1<<10))
			}
		}, fault.ErrCorrupt, 1},
		"forbidden": {func(w http.ResponseWriter, r *http.Request, _ int32) { w.WriteHeader(403) }, fault.ErrUnauthorized, 1},
		"missing":   {func(w http.ResponseWriter, r *http.Request, _ int32) { w.WriteHeader(404) }, fault.ErrNotFound, 1},
		"teapot":    {func(w http.ResponseWriter, r *http.Request, _ int32) { w.WriteHeader(418) }, fault.ErrUnavailable, 1},
		"broken":    {func(w http.ResponseWriter, r *http.Request, _ int32) { w.WriteHeader(502) }, fault.ErrUnavailable, 3},
		"soon": {func(w http.ResponseWriter, r *http.Request, n int32) {
			if n < 3 {
				w.WriteHeader(429)
				return
			}
			fmt.Fprint(w, "{}")
		}, nil, 3},
		"cut short": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{}")
		}, fault.ErrCorrupt, 3},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, fault.ErrUnavailable, 10},
		"challenge without end": {func(w http.ResponseWriter, r *http.Request, _ int32) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="nowhere"`)
			w.WriteHeader(401)
		}, fault.ErrUnauthorized, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, asked.Add(1)) }))
			defer server.Close()
			r := repository(t, quick(nil), server.Listener.Addr().String()+"/app", nil)
			_, err := r.Manifest(context.Background(), "1")
			if !errors.Is(err, c.err) || asked.Load() != c.asked {
				t.Errorf("error is %v after %d requests, want %v after %d", err, asked.Load(), c.err, c.asked)
			}
		})
	}
}

func TestBlobsAreVerified(t *testing.T) {
	data := bytes.Repeat([]byte("layer"), 1000)
	desc := v1.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for name, c := range map[string]struct {
		send []byte
		cut  bool
		err  error
	}{
		"right":     {data, false, nil},
		"altered":   {append([]byte("x"), data[1:]...), false, fault.ErrCorrupt},
		"too short": {data[:100], false, fault.ErrCorrupt},
		"too long":  {append(data, 'x'), false, fault.ErrCorrupt},
		"cut":       {data[:100], true, fault.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if c.cut && !chunked {
						w.Header().Set("Content-Length", fmt.Sprint(len(data)))
					}
					if chunked {
						w.(http.Flusher).Flush()
					}
					w.Write(c.send)
				}))
				r := repository(t, quick(nil), server.Listener.Addr().String()+"/app", nil)
				if _, err := read(r, desc); !errors.Is(err, c.err) {
					t.Errorf("chunked %v: error is %v, want %v", chunked, err, c.err)
				}
				server.Close()
			}
		})
	}
}

// A mirror that lost a part of its disk does not stand in the way.
func TestCorruptMirrorIsPassedOver(t *testing.T) {
	origin, mirror := registrytest.New(t), registrytest.New(t)
	layout := origin.Put(t, "app", "1", image())
	mirror.Put(t, "app", "1", image())
	mirror.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			fmt.Fprint(w, strings.Repeat("z", len(layout.Blobs[0])))
			return true
		}
		return false
	}
	c := quick(Config{origin.Host(): {Mirrors: []string{mirror.Server.URL}}})
	if err := fetchAll(repository(t, c, origin.Host()+"/app", nil), layout); err != nil {
		t.Error(err)
	}
}

func TestOwnErrorsEndTheRead(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", image())
	r := repository(t, quick(nil), reg.Host()+"/app", nil)
	mine, calls := errors.New("disk is on fire"), 0
	err := r.ReadBlob(context.Background(), v1.Descriptor{Digest: layout.Config, Size: -1}, func(io.Reader) error {
		calls++
		return mine
	})
	if !errors.Is(err, mine) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestSilenceEndsAnAttempt(t *testing.T) {
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.Write([]byte("so"))
			w.(http.Flusher).Flush()
		}
		select { // and nothing more
		case <-done:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(done)
	c := quick(nil)
	c.idle = 20 * time.Millisecond
	r := repository(t, c, server.Listener.Addr().String()+"/app", nil)
	if _, err := r.Manifest(context.Background(), "1"); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("silent before the answer: %v", err)
	}
	if _, err := read(r, v1.Descriptor{Digest: digest.FromString("x"), Size: 100}); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("silent within the body: %v", err)
	}
}

func TestCallerCanLeave(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	mine := errors.New("gone home")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel(mine)
		<-r.Context().Done()
	}))
	defer server.Close()
	r := repository(t, quick(nil), server.Listener.Addr().String()+"/app", nil)
	if _, err := r.Manifest(ctx, "1"); !errors.Is(err, mine) {
		t.Error(err)
	}
}

func TestOwnAuthoritiesAndNoDowngrade(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", image())
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/down") {
			http.Redirect(w, r, reg.Server.URL+r.URL.Path, http.StatusFound)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(server.URL, "https://")
	for _, c := range []struct {
		ca  string
		err error
	}{{ca, nil}, {"", fault.ErrUnavailable}} {
		client := quick(Config{"example.org": {Mirrors: []string{server.URL}}, host: {CA: c.ca}})
		r := repository(t, client, "example.org/app", nil)
		r.sources = r.sources[:1]
		if err := fetchAll(r, layout); !errors.Is(err, c.err) {
			t.Errorf("CA %q: %v", c.ca, err)
		}
		if _, err := r.Manifest(context.Background(), "down"); !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("redirected to plain HTTP: %v", err)
		}
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct {
		name, base, path string
	}{
		{"busybox", "https://registry-1.docker.io", "library/busybox"},
		{"registry.k8s.io/pause", "https://registry.k8s.io", "pause"},
		{"localhost:5000/a/b", "http://localhost:5000", "a/b"},
		{"127.1.2.3/a", "http://127.1.2.3", "a"},
		{"[::1]:5000/a", "http://[::1]:5000", "a"},
		{"insecure.example/a", "http://insecure.example", "a"},
		{"10.0.0.1:5000/a", "https://10.0.0.1:5000", "a"},
	} {
		r := repository(t, quick(Config{"insecure.example": {Insecure: true}}), c.name, nil)
		if s := r.sources[0]; s.base != c.base || s.path != c.path {
			t.Errorf("%s is %s, %s", c.name, s.base, s.path)
		}
	}
	named, err := reference.ParseNormalizedNamed("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, mirror := range []string{"127.0.0.1:5000", "ftp://x", "http://", "http://user:pass@host"} {
		if _, err := quick(Config{"docker.io": {Mirrors: []string{mirror}}}).Repository(named, nil); err == nil {
			t.Errorf("mirror %q was taken", mirror)
		}
	}
}

func TestCredentialIsForItsRegistry(t *testing.T) {
	for _, c := range []struct {
		address, domain string
		want            bool
	}{
		{"", "any.example", true},
		{"https://index.docker.io/v1/", "docker.io", true},
		{"registry.example", "registry.example", true},
		{"registry.example/path", "registry.example", true},
		{"http://registry.example:5000", "registry.example:5000", true},
		{"registry.example", "evil.example", false},
		{"registry.example", "registry.example.evil", false},
	} {
		if got := (&Auth{ServerAddress: c.address}).isFor(c.domain); got != c.want {
			t.Errorf("credential of %q for %q: %v", c.address, c.domain, got)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	for header, want := range map[string]string{
		`Bearer realm="https://a/t",service="s, x",scope="r:a:pull,push"`: `[{bearer map[realm:https://a/t scope:r:a:pull,push service:s, x]}]`,
		`Basic realm="a", Bearer realm=b`:                                 `[{basic map[realm:a]} {bearer map[realm:b]}]`,
		`BEARER Realm = "a\"b"`:                                           `[{bearer map[realm:a"b]}]`,
		`Negotiate`:                                                       `[{negotiate map[]}]`,
		`="x"`:                                                            `[]`,
		`Bearer realm="open`:                                              `[{bearer map[realm:open]}]`,
		``:                                                                `[]`,
	} {
		if got := fmt.Sprint(parseChallenges([]string{header})); got != want {
			t.Errorf("%s\n is %s\nwant %s", header, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s, x",scope="r:a:pull,push"`)
	f.Add(`Basic realm=a, Bearer x=`)
	f.Add(`a "b`)
	f.Fuzz(func(t *testing.T, header string) {
		if got := parseChallenges([]string{header, header}); len(got) > maxChallenges {
			t.Fatalf("%d challenges", len(got))
		}
	})
}
