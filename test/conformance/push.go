package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/longshore/longshore/test/node"
	"github.com/opencontainers/go-digest"
)

// pusher uploads images over the distribution API.
type pusher struct {
	base   string // e.g. http://127.0.0.1:5000
	client *http.Client
}

// fill pushes the images to the registry in the room.
func fill(ctx context.Context, room *node.Room, images []lookAlike) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		// A socket belongs to the network namespace of the thread that makes it.
		room.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	p := &pusher{"http://" + registryAddress, &http.Client{Transport: transport}}
	for _, image := range images {
		if err := p.push(ctx, image); err != nil {
			return err
		}
	}
	return nil
}

// push uploads an image under each of its tags.
func (p *pusher) push(ctx context.Context, image lookAlike) error {
	layout, err := image.build()
	if err != nil {
		return err
	}
	last := len(layout.Blobs) - 1
	for _, blob := range layout.Blobs[:last] {
		if err := p.blob(ctx, image.repository, blob); err != nil {
			return err
		}
	}
	for _, tag := range image.tags {
		target := p.base + "/v2/" + image.repository + "/manifests/" + tag
		if _, err := p.do(ctx, http.MethodPut, target, layout.Manifest.MediaType, layout.Blobs[last], http.StatusCreated); err != nil {
			return err
		}
	}
	return nil
}

// blob uploads a blob that the repository does not have, in one request after
// the one that asks where to.
func (p *pusher) blob(ctx context.Context, repository string, data []byte) error {
	at := digest.FromBytes(data).String()
	base := p.base + "/v2/" + repository + "/blobs/"
	if _, err := p.do(ctx, http.MethodHead, base+at, "", nil, http.StatusOK); err == nil {
		return nil
	}
	begun, err := p.do(ctx, http.MethodPost, base+"uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	target, err := begun.Request.URL.Parse(begun.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("upload to %s: %w", repository, err)
	}
	query := target.Query()
	query.Set("digest", at)
	target.RawQuery = query.Encode()
	_, err = p.do(ctx, http.MethodPut, target.String(), "application/octet-stream", data, http.StatusCreated)
	return err
}

// do sends a request and expects one status; the body of the answer is read
// and closed.
func (p *pusher) do(ctx context.Context, method, target, contentType string, body []byte, want int) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, response.Status, said)
	}
	return response, nil
}
