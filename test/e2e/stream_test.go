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
	"sync"

	"k8s.io/apimachinery/pkg/util/httpstream"
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
// [-i TEXT] [-t] [-ws|-ws4] [-size COLSxROWS] before the name.
type streamOptions struct {
	stdin     io.Reader
	stdout    io.Writer // nil: a buffer, which is printed
	tty       bool
	webSocket string // version of the protocol
	size      *remotecommand.TerminalSize
}

func streamFlags(args []string) (o streamOptions, rest []string) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "-t":
			o.tty = true
		case "-ws":
			o.webSocket = "v5.channel.k8s.io"
		case "-ws4":
			o.webSocket = "v4.channel.k8s.io"
		case "-i":
			o.stdin = strings.NewReader(strings.NewReplacer(`\n`, "\n", `\x04`, "\x04").Replace(args[1]))
			args = args[1:]
		case "-size":
			o.size = &remotecommand.TerminalSize{}
			fmt.Sscanf(args[1], "%dx%d", &o.size.Width, &o.size.Height)
			args = args[1:]
		}
		args = args[1:]
	}
	return o, args
}

// execStream [FLAGS] NAME ARG... runs a command over the streaming server.
func execStream(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	address, err := s.execURL(ctx, o, args)
	if err != nil {
		return err
	}
	return s.stream(ctx, address, o, out)
}

func (s *session) execURL(ctx context.Context, o streamOptions, args []string) (string, error) {
	resp, err := s.node.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: s.ids[args[0]], Cmd: args[1:],
		Tty: o.tty, Stdin: o.stdin != nil, Stdout: true, Stderr: !o.tty})
	return resp.GetUrl(), err
}

// attach [FLAGS] NAME joins a container's streams.
func attach(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	address, err := s.attachURL(ctx, o, args)
	if err != nil {
		return err
	}
	return s.stream(ctx, address, o, out)
}

func (s *session) attachURL(ctx context.Context, o streamOptions, args []string) (string, error) {
	resp, err := s.node.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: s.ids[args[0]], Tty: o.tty, Stdin: o.stdin != nil, Stdout: true, Stderr: !o.tty})
	return resp.GetUrl(), err
}

// Next implements [remotecommand.TerminalSizeQueue]: one size, and no more.
func (o *streamOptions) Next() *remotecommand.TerminalSize {
	size := o.size
	o.size = nil
	return size
}

// stream speaks SPDY or WebSocket, as kubectl does, from inside the room.
func (s *session) stream(ctx context.Context, address string, o streamOptions, out io.Writer) error {
	target, relay, err := s.through(address)
	if err != nil {
		return err
	}
	defer relay.Close()
	return streamTo(ctx, target, o, out)
}

// through gives an address of a relay into the room for one in it: the library
// dials by itself.
func (s *session) through(address string) (*url.URL, *relay, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	relay, err := s.relay(target.Host)
	if err != nil {
		return nil, nil, err
	}
	target.Host = relay.Addr().String()
	return target, relay, nil
}

func streamTo(ctx context.Context, target *url.URL, o streamOptions, out io.Writer) error {
	config := &rest.Config{Host: target.Host}
	var executor remotecommand.Executor
	var err error
	if o.webSocket != "" {
		executor, err = remotecommand.NewWebSocketExecutorForProtocols(config, "GET", target.String(), o.webSocket)
	} else {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", target)
	}
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	options := remotecommand.StreamOptions{Stdin: o.stdin, Stdout: &stdout, Tty: o.tty}
	if o.stdout != nil {
		options.Stdout = o.stdout
	}
	if !o.tty {
		options.Stderr = &stderr
	}
	if o.size != nil {
		options.TerminalSizeQueue = &o
	}
	err = executor.StreamWithContext(ctx, options)
	fmt.Fprint(out, stdout.String(), stderr.String())
	return err
}

// relay listens outside the room and connects each client to an address in it.
type relay struct {
	net.Listener
	mu      sync.Mutex // guards servers
	servers []net.Conn
}

func (s *session) relay(address string) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{Listener: l}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed by its owner
			}
			go r.join(s, client, address)
		}
	}()
	return r, nil
}

// cut hangs up, as a client that dies.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.servers {
		c.Close()
	}
}

func (r *relay) join(s *session, client net.Conn, address string) {
	defer client.Close()
	server, err := s.dialInRoom(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	r.servers = append(r.servers, server)
	r.mu.Unlock()
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

// forward [-ws] POD PORT TEXT sends a text to a pod's port and prints what comes
// back until it has as much.
func forward(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	text := strings.Join(args[2:], " ")
	return s.forwarded(ctx, o, args[0], args[1], func(c net.Conn) error {
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		back := make([]byte, len(text))
		n, err := io.ReadFull(c, back)
		fmt.Fprintln(out, string(back[:n]))
		return err
	})
}

// forwarded runs use with a connection that is forwarded to a pod's port.
func (s *session) forwarded(ctx context.Context, o streamOptions, pod, port string, use func(net.Conn) error) error {
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	resp, err := s.node.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: s.ids[pod], Port: []int32{int32(number)}})
	if err != nil {
		return err
	}
	target, relay, err := s.through(resp.Url)
	if err != nil {
		return err
	}
	defer relay.Close()
	dialer, err := dialerTo(target, o.webSocket != "")
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dialer, []string{"0:" + port}, stop, ready, io.Discard, io.Discard)
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
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}

func dialerTo(target *url.URL, webSocket bool) (httpstream.Dialer, error) {
	if webSocket {
		return portforward.NewSPDYOverWebsocketDialer(target, &rest.Config{})
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", target), nil
}
