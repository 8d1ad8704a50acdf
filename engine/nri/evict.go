package nri

import (
	"context"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// evictions gathers what plugins ask for in their answers to one request: the
// library merges adjustments and updates, and leaves evictions out.
type evictions struct {
	mu  sync.Mutex // guards all
	all []*api.ContainerEviction
}

func (e *evictions) take() []*api.ContainerEviction {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all
}

type evictionsKey struct{}

// collectEvictions gives a context for one request, and where its evictions go.
func collectEvictions(ctx context.Context) (context.Context, *evictions) {
	e := &evictions{}
	return context.WithValue(ctx, evictionsKey{}, e), e
}

// noteEvictions reads the evictions of a plugin's answer as it comes in.
func noteEvictions(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	if err := call(ctx, req, resp); err != nil {
		return err
	}
	into, ok := ctx.Value(evictionsKey{}).(*evictions)
	if !ok || resp.Status.GetCode() != 0 {
		return nil
	}
	var answer interface {
		proto.Message
		GetEvict() []*api.ContainerEviction
	}
	switch req.Method {
	case "CreateContainer":
		answer = &api.CreateContainerResponse{}
	case "UpdateContainer":
		answer = &api.UpdateContainerResponse{}
	default:
		return nil
	}
	if err := proto.Unmarshal(resp.Payload, answer); err != nil {
		return nil // the library finds the same, and says so
	}
	into.mu.Lock()
	defer into.mu.Unlock()
	into.all = append(into.all, answer.GetEvict()...)
	return nil
}

// evictUnasked does what a plugin wants beside the updates that it asks for
// by itself.
func (h *Host) evictUnasked(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if !strings.HasSuffix(info.FullMethod, "/UpdateContainers") {
		return method(ctx, unmarshal)
	}
	var evict []*api.ContainerEviction
	resp, err := method(ctx, func(into any) error {
		if err := unmarshal(into); err != nil {
			return err
		}
		if req, ok := into.(*api.UpdateContainersRequest); ok {
			evict = req.GetEvict()
		}
		return nil
	})
	if err == nil && len(evict) > 0 {
		h.runtime.Later(nil, evict)
	}
	return resp, err
}
