package client

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
)

// Publish hands an event, a marshalled google.protobuf.Any, to the keeper that
// listens at address, a path or a URL of a unix socket.
func Publish(ctx context.Context, address, namespace, topic string, event []byte) error {
	envelope := &api.Envelope{Timestamp: api.TimestampOf(time.Now()), Namespace: namespace, Topic: topic, Event: &api.Any{}}
	if err := pb.Unmarshal(event, envelope.Event); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: strings.TrimPrefix(address, "unix://"), Net: "unix"})
	if err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := api.Call(c, api.EventService, "Forward", &api.ForwardRequest{Envelope: envelope}, nil, &api.Empty{}); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}
