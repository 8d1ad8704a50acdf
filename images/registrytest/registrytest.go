// Package registrytest serves images from memory over the OCI distribution
// API, for tests of whatever pulls them.
//
// A [Registry] is owned by the test that made it and ends with it. Its fields
// are set before the first request.
package registrytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/archive"
)

// Registry is an in-process registry on a loopback address.
type Registry struct {
	// Server is where it listens.
	Server *httptest.Server
	// User and Password, if set, are what a client must prove: to a token
	// service if Tokens is set, and to the registry itself otherwise.
	User, Password string
	Tokens         bool
	// Intercept, if set, sees each request first and reports whether it has
	// answered it.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string]document // by repository@digest and repository:tag
	requests  map[string]int
}

type document struct {
	mediaType string
	data      []byte
}

const issuedToken = "token-for-pulls"

// New starts a registry that ends with the test.
func New(t testing.TB) *Registry {
	r := &Registry{blobs: map[digest.Digest][]byte{}, manifests: map[string]document{}, requests: map[string]int{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Server.Close)
	return r
}

// Host gives the registry's host and port, as references name it.
func (r *Registry) Host() string { return r.Server.Listener.Addr().String() }

// PutBlob stores a blob under its digest.
func (r *Registry) PutBlob(data []byte) v1.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d] = data
	return v1.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(data))}
}

// PutManifest stores a manifest or an index in a repository, under its digest
// and, if tag is not empty, under the tag.
func (r *Registry) PutManifest(repo, tag, mediaType string, data []byte) v1.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	doc := document{mediaType: mediaType, data: data}
	r.manifests[repo+"@"+d.String()] = doc
	if tag != "" {
		r.manifests[repo+":"+tag] = doc
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// Put stores an image in a repository under a tag.
func (r *Registry) Put(t testing.TB, repo, tag string, img archive.Image) *archive.Layout {
	t.Helper()
	layout, err := archive.Build(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layout.Blobs[:len(layout.Blobs)-1] {
		r.PutBlob(data)
	}
	r.PutManifest(repo, tag, layout.Manifest.MediaType, layout.Blobs[len(layout.Blobs)-1])
	return layout
}

// Requests counts the requests whose method and path begin with prefix:
// "GET /v2/repo/blobs/".
func (r *Registry) Requests(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for request, times := range r.requests {
		if strings.HasPrefix(request, prefix) {
			n += times
		}
	}
	return n
}

// ServeHTTP implements [http.Handler].
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests[req.Method+" "+req.URL.Path]++
	r.mu.Unlock()
	if r.Intercept != nil && r.Intercept(w, req) {
		return
	}
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	if !r.admits(w, req) {
		return
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if repo, d, ok := strings.Cut(path, "/blobs/"); ok && repo != "" {
		r.mu.Lock()
		data, ok := r.blobs[digest.Digest(d)]
		r.mu.Unlock()
		serve(w, req, ok, document{mediaType: "application/octet-stream", data: data})
		return
	}
	repo, ref, _ := strings.Cut(path, "/manifests/")
	separator := ":"
	if strings.Contains(ref, ":") {
		separator = "@"
	}
	r.mu.Lock()
	doc, ok := r.manifests[repo+separator+ref]
	r.mu.Unlock()
	serve(w, req, ok, doc)
}

func serve(w http.ResponseWriter, req *http.Request, ok bool, doc document) {
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}`)
		return
	}
	w.Header().Set("Content-Type", doc.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(doc.data)))
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(doc.data).String())
	if req.Method != http.MethodHead {
		w.Write(doc.data)
	}
}

// admits challenges a request without the right credential.
func (r *Registry) admits(w http.ResponseWriter, req *http.Request) bool {
	challenge := ""
	user, password, _ := req.BasicAuth()
	switch {
	case r.Tokens && req.Header.Get("Authorization") != "Bearer "+issuedToken:
		challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test registry, \"quoted\"",scope="repository:x:pull"`, r.Host())
	case !r.Tokens && r.User != "" && (user != r.User || password != r.Password):
		challenge = `Basic realm="test"`
	default:
		return true
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// serveToken is the token service: anonymous if no user is set.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = r.User, req.FormValue("refresh_token")
	}
	if user != r.User || password != r.Password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": issuedToken, "expires_in": 300})
}
