package cri

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/images"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PullImage fetches an image and gives its id.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if handler := req.GetImage().GetRuntimeHandler(); handler != "" {
		if _, known := s.engine.Handlers()[handler]; !known {
			return nil, invalid("image.runtime_handler", "%q is not configured", handler)
		}
	}
	img, err := s.images.Pull(ctx, req.GetImage().GetImage(), images.PullOptions{Auth: auth(req.Auth)})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

func auth(a *runtimeapi.AuthConfig) *images.Auth {
	if a == nil {
		return nil
	}
	return &images.Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken,
		RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress}
}

// ListImages lists images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.listImages(req.Filter)
	return &runtimeapi.ListImagesResponse{Images: list}, err
}

// StreamImages lists images in chunks.
func (s *Server) StreamImages(req *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	list, err := s.listImages(req.Filter)
	if err != nil {
		return err
	}
	return inChunks(list, func(chunk []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: chunk})
	})
}

func (s *Server) listImages(filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if name := filter.GetImage().GetImage(); name != "" {
		img, err := s.images.Get(name)
		if errors.Is(err, images.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{criImage(&img)}, nil
	}
	var list []*runtimeapi.Image
	for _, img := range s.images.List() {
		list = append(list, criImage(&img))
	}
	return list, nil
}

// ImageStatus describes an image; one that is not there is an empty answer.
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.images.Get(req.GetImage().GetImage())
	if errors.Is(err, images.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(&img)}
	if req.Verbose {
		config, err := json.Marshal(img.Config)
		if err != nil {
			return nil, err
		}
		resp.Info, err = verbose(map[string]any{"imageSpec": json.RawMessage(config)})
		return resp, err
	}
	return resp, nil
}

// criImage translates an image; who it runs as is a number or a name.
func criImage(img *images.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: img.ID, RepoTags: img.Tags, RepoDigests: img.Digests, Size: uint64(img.Size), Pinned: img.Pinned, Spec: &runtimeapi.ImageSpec{}}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	if user == "" {
		out.Uid = &runtimeapi.Int64Value{}
	}
	return out
}

// RemoveImage removes an image and all its tags. It is idempotent.
func (s *Server) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	err := s.images.Remove(req.GetImage().GetImage())
	if errors.Is(err, images.ErrNotFound) {
		err = nil
	}
	return &runtimeapi.RemoveImageResponse{}, err
}

// ImageFsInfo says what images and writable layers take on disk.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	imageFs, containerFs, err := s.engine.FilesystemUsage()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystemUsage(imageFs)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystemUsage(containerFs)},
	}, nil
}

func filesystemUsage(u engine.DiskUsage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{Timestamp: u.Time.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Dir},
		UsedBytes: count(u.Bytes), InodesUsed: count(u.Inodes)}
}

func count(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// countIf leaves out what is not known.
func countIf(n *uint64) *runtimeapi.UInt64Value {
	if n == nil {
		return nil
	}
	return count(*n)
}
