package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The channels of the remote command protocol over a WebSocket. Version 5
// differs from 4 by a message of two bytes, 255 and a channel: the sender has
// closed it.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
	channelCount

	protocolV5 = remotecommand.StreamProtocolV5Name
)

// maxSizes bounds what a client may send about its terminal's size, in bytes:
// some ten thousand sizes.
const maxSizes = 1 << 20

// tunnelProtocol is a WebSocket that carries SPDY's bytes.
const tunnelProtocol = portforward.WebsocketsSPDYTunnelingPortForwardV1

// serveV5 joins a WebSocket of version 5 to a task.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, do task) {
	channels := make([]wsstream.ChannelType, channelCount)
	channels[errorChannel], channels[resizeChannel] = wsstream.WriteChannel, wsstream.ReadChannel
	if opts.Stdin {
		channels[stdinChannel] = wsstream.ReadChannel
	}
	if opts.Stdout {
		channels[stdoutChannel] = wsstream.WriteChannel
	}
	if opts.Stderr {
		channels[stderrChannel] = wsstream.WriteChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{protocolV5: {Binary: true, Channels: channels}})
	conn.SetIdleTimeout(s.idle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client has been told
	}
	defer conn.Close()
	var in io.Reader
	var out, errOut io.WriteCloser
	if opts.Stdin {
		in = streams[stdinChannel]
	}
	if opts.Stdout {
		out = streams[stdoutChannel]
	}
	if opts.Stderr {
		errOut = streams[stderrChannel]
	}
	sizes := make(chan remotecommand.TerminalSize)
	go decodeSizes(r.Context(), streams[resizeChannel], sizes) // ends with the connection
	outcome := statusOf(do(r.Context(), in, out, errOut, opts.TTY, sizes))
	data, err := json.Marshal(outcome)
	if err == nil {
		_, _ = streams[errorChannel].Write(data) // a client that is gone wants no status
	}
}

// decodeSizes gives the terminal sizes that a client sends, until it ends them.
func decodeSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for decoder := json.NewDecoder(io.LimitReader(from, maxSizes)); ; {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			// What is not a size ends the sizes, but must not block the channels.
			_, _ = io.Copy(io.Discard, from)
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// outcome is how a command ended, in the words of a Kubernetes status
// (metav1.Status), which the error channel carries.
type outcome struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) outcome {
	if err == nil {
		return outcome{Status: "Success"}
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return outcome{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: " + code.Error(),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(code))}}}}
	}
	return outcome{Status: "Failure", Reason: "InternalError", Message: fmt.Sprintf("Internal error occurred: %v", err), Code: http.StatusInternalServerError}
}

// serveTunnel serves port-forward over SPDY inside a WebSocket.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, f *forwarder) {
	websocket.Server{
		Handshake: func(cfg *websocket.Config, _ *http.Request) error {
			if !slices.Contains(cfg.Protocol, tunnelProtocol) {
				return websocket.ErrBadWebSocketProtocol
			}
			cfg.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{
				httpstream.HeaderConnection: {httpstream.HeaderUpgrade}, httpstream.HeaderUpgrade: {spdy.HeaderSpdy31},
				httpstream.HeaderProtocolVersion: {portforward.ProtocolV1Name},
			}
			s.forward(&tunnel{conn: ws, header: http.Header{}}, inner, f, &portforward.V4Options{})
		},
	}.ServeHTTP(w, r)
}

// tunnel is the ResponseWriter of the request for SPDY that a tunnel implies:
// it is answered already, and its connection is the WebSocket.
type tunnel struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }
func (t *tunnel) WriteHeader(int)             {}

// Hijack implements [http.Hijacker].
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
