package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fakeRegistry keeps what is uploaded and refuses a blob of another digest.
type fakeRegistry struct {
	blobs, manifests map[string]string
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	at := r.URL.Query().Get("digest")
	switch {
	case r.Method == http.MethodHead:
		if f.blobs[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]] == "" {
			w.WriteHeader(http.StatusNotFound)
		}
	case r.Method == http.MethodPost:
		w.Header().Set("Location", "/upload?state=1")
		w.WriteHeader(http.StatusAccepted)
	case r.URL.Path == "/upload" && r.URL.Query().Get("state") == "1" && at == digest.FromBytes(body).String():
		f.blobs[at] = string(body)
		w.WriteHeader(http.StatusCreated)
	case strings.Contains(r.URL.Path, "/manifests/"):
		f.manifests[r.URL.Path] = r.Header.Get("Content-Type") + " " + string(body)
		w.WriteHeader(http.StatusCreated)
	default:
		http.Error(w, "no such thing", http.StatusBadRequest)
	}
}

func TestPush(t *testing.T) {
	f := &fakeRegistry{blobs: map[string]string{}, manifests: map[string]string{}}
	server := httptest.NewServer(f)
	defer server.Close()
	p := &pusher{server.URL, server.Client()}
	image := lookAlikes(someTools())[0]
	image.tags = []string{"1", "2"}
	layout, err := image.build()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.push(context.Background(), image); err != nil {
		t.Fatal(err)
	}
	blobs, manifests := map[string]string{}, map[string]string{}
	last := len(layout.Blobs) - 1
	for _, blob := range layout.Blobs[:last] {
		blobs[digest.FromBytes(blob).String()] = string(blob)
	}
	for _, tag := range image.tags {
		manifests["/v2/e2e-test-images/busybox/manifests/"+tag] = layout.Manifest.MediaType + " " + string(layout.Blobs[last])
	}
	if !maps.Equal(f.blobs, blobs) || !maps.Equal(f.manifests, manifests) {
		t.Errorf("the registry has %d blobs and manifests %v", len(f.blobs), f.manifests)
	}
}

func TestPushSaysWhatTheRegistrySaid(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "disk full", http.StatusInsufficientStorage)
	}))
	defer server.Close()
	p := &pusher{server.URL, server.Client()}
	err := p.push(context.Background(), lookAlikes(someTools())[0])
	if err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v does not say that the disk is full", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.push(ctx, lookAlikes(someTools())[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that the context ended", err)
	}
}
