package stream

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/longshore/longshore/engine"
	"golang.org/x/net/websocket"
)

// FuzzClientFrames: whatever a client sends over a WebSocket, the stream ends
// when the client does, and the server serves the next.
func FuzzClientFrames(f *testing.F) {
	for _, seed := range []string{"\x00text", "\xff\x00", "\xff", "\x04{\"Width\":80,\"Height\":24}", "\x04[[[[", "\x09", "", "\x00a\n\xff\x00\n\x00b"} {
		f.Add([]byte(seed), byte(8), false)
		f.Add([]byte(seed), byte(1), true)
	}
	s, err := Listen(Config{Address: "127.0.0.1:0", Idle: time.Minute}, &fake{exec: func(_ context.Context, s engine.Streams) (int, error) {
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	}})
	if err != nil {
		f.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	f.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.Error(err)
		}
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, data []byte, size byte, stdinEnds bool) {
		ws := mustDial(t, s)
		for len(data) > 0 {
			frame := data[:min(len(data), 1+int(size))]
			data = data[len(frame):]
			if err := websocket.Message.Send(ws, frame); err != nil {
				break // the server may hang up
			}
		}
		if stdinEnds {
			if err := websocket.Message.Send(ws, []byte{255, stdinChannel}); err == nil {
				_, _ = io.Copy(io.Discard, ws)
			}
		}
		ws.Close()
	})
}
