package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() {
	commands["exec-stream"] = verb(execStream)
	commands["attach"] = verb(attach)
	commands["forward"] = verb(forward)
}

// streamOptions are what a client of exec or attach asks for:
// [-i TEXT] [-t] [-ws] before the name.
type streamOptions struct {
	stdin     *string
	tty       bool
	webSocket bool
}

func streamFlags(args []string) (o streamOptions, rest []string) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-t":
			o.tty = true
		case "-ws":
			o.webSocket = true
		case "-i":
			text := strings.NewReplacer(`\n`, "\n", `\x04`, "\x04").Replace(args[1])
			o.stdin, args = &text, args[1:]
		}
		args = args[1:]
	}
	return o, args
}

// execStream [FLAGS] NAME ARG... runs a command over the streaming server.
func execStream(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	resp, err := s.node.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: s.ids[args[0]], Cmd: args[1:],
		Tty: o.tty, Stdin: o.stdin != nil, Stdout: true, Stderr: !o.tty})
	if err != nil {
		return err
	}
	return s.stream(ctx, resp.Url, o, out)
}

// attach [FLAGS] NAME joins a container's streams.
func attach(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	resp, err := s.node.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: s.ids[args[0]], Tty: o.tty, Stdin: o.stdin != nil, Stdout: true, Stderr: !o.tty})
	if err != nil {
		return err
	}
	return s.stream(ctx, resp.Url, o, out)
}

// stream speaks SPDY or WebSocket, as kubectl does, from inside the room.
func (s *session) stream(ctx context.Context, address string, o streamOptions, out io.Writer) error {
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	// The library dials by itself: it goes through a relay into the room.
	relay, err := s.relay(target.Host)
	if err != nil {
		return err
	}
	defer relay.Close()
	target.Host = relay.Addr().String()
	config := &rest.Config{Host: target.Host}
	var executor remotecommand.Executor
	if o.webSocket {
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(config, "GET", target.String(), "v4.channel.k8s.io")
	} else {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", target)
	}
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	options := remotecommand.StreamOptions{Stdout: &stdout, Tty: o.tty}
	if !o.tty {
		options.Stderr = &stderr
	}
	if o.stdin != nil {
		options.Stdin = strings.NewReader(*o.stdin)
	}
	err = executor.StreamWithContext(ctx, options)
	fmt.Fprint(out, stdout.String(), stderr.String())
	return err
}

// relay listens outside the room and connects each client to an address in it.
func (s *session) relay(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed by its owner
			}
			go s.join(client, address)
		}
	}()
	return l, nil
}

func (s *session) join(client net.Conn, address string) {
	defer client.Close()
	server, err := s.dialInRoom(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		io.Copy(server, client)
		server.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	io.Copy(client, server)
	client.(*net.TCPConn).CloseWrite()
	<-done
}

// forward POD PORT TEXT sends a text to a pod's port and prints what comes
// back until it has as much.
func forward(s *session, ctx context.Context, args []string, out io.Writer) error {
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	resp, err := s.node.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: s.ids[args[0]], Port: []int32{int32(port)}})
	if err != nil {
		return err
	}
	target, err := url.Parse(resp.Url)
	if err != nil {
		return err
	}
	relay, err := s.relay(target.Host)
	if err != nil {
		return err
	}
	defer relay.Close()
	target.Host = relay.Addr().String()
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", target)
	forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return err
	}
	defer func() { close(stop); <-ended }()
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	return echoThrough(fmt.Sprintf("127.0.0.1:%d", ports[0].Local), strings.Join(args[2:], " "), out)
}

func echoThrough(address, text string, out io.Writer) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	n, err := io.ReadFull(c, back)
	fmt.Fprintln(out, string(back[:n]))
	return err
}
