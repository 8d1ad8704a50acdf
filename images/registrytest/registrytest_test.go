package registrytest

import (
	"net/http"
	"testing"

	"github.com/longshore/longshore/images/archive"
)

func TestServesWhatWasPut(t *testing.T) {
	r := New(t)
	layout := r.Put(t, "team/app", "1", archive.Image{Layers: [][]archive.File{{{Name: "a"}}}})
	for path, want := range map[string]int{
		"/v2/team/app/manifests/1":                                  http.StatusOK,
		"/v2/team/app/manifests/" + layout.Manifest.Digest.String(): http.StatusOK,
		"/v2/team/app/blobs/" + layout.Config.String():              http.StatusOK,
		"/v2/team/app/manifests/2":                                  http.StatusNotFound,
		"/v2/other/manifests/" + layout.Manifest.Digest.String():    http.StatusNotFound,
		"/v2/team/app/blobs/sha256:0000":                            http.StatusNotFound,
	} {
		resp, err := http.Get(r.Server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	if got := r.Requests("GET /v2/team/app/manifests/"); got != 3 {
		t.Errorf("counted %d manifests", got)
	}
}
