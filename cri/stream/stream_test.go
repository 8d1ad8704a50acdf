package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/longshore/longshore/engine"
	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// fake is an engine of functions.
type fake struct {
	exec    func(ctx context.Context, s engine.Streams) (int, error)
	forward func(ctx context.Context, stream io.ReadWriteCloser) error
}

func (f *fake) Exec(ctx context.Context, _ string, _ []string, s engine.Streams) (int, error) {
	return f.exec(ctx, s)
}

func (f *fake) Attach(ctx context.Context, _ string, s engine.Streams) error {
	_, err := f.exec(ctx, s)
	return err
}

func (f *fake) PortForward(ctx context.Context, _ string, _ int, stream io.ReadWriteCloser) error {
	return f.forward(ctx, stream)
}

// serve runs a server until the test's end.
func serve(t *testing.T, cfg Config, r runner) *Server {
	t.Helper()
	cfg.Address = "127.0.0.1:0"
	if cfg.Idle == 0 {
		cfg.Idle = time.Minute
	}
	s, err := Listen(cfg, r)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return s
}

// execURL gives the URL of a command with stdin and stdout.
func execURL(t *testing.T, s *Server) string {
	t.Helper()
	resp, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

// dial opens a WebSocket.
func dial(t *testing.T, address, protocol string) (*websocket.Conn, error) {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{protocol}
	return websocket.DialConfig(config)
}

func mustDial(t *testing.T, s *Server) *websocket.Conn {
	t.Helper()
	ws, err := dial(t, execURL(t, s), protocolV5)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// upper answers stdin in capitals and ends with it.
func upper(_ context.Context, s engine.Streams) (int, error) {
	data, err := io.ReadAll(s.Stdin)
	if err == nil {
		_, err = io.WriteString(s.Stdout, strings.ToUpper(string(data)))
	}
	return 7, err
}

func TestVersion5ClosesStdinAlone(t *testing.T) {
	s := serve(t, Config{}, &fake{exec: upper})
	ws := mustDial(t, s)
	for _, frame := range []string{"\x00half ", "\x00closed", "\xff\x00"} {
		if err := websocket.Message.Send(ws, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	channels := map[byte]string{}
	for {
		var frame []byte
		err := websocket.Message.Receive(ws, &frame)
		if err == io.EOF {
			break
		}
		if err != nil || len(frame) == 0 {
			t.Fatalf("frame %q, %v", frame, err)
		}
		channels[frame[0]] += string(frame[1:])
	}
	if got := channels[stdoutChannel]; got != "HALF CLOSED" {
		t.Errorf("stdout: %q", got)
	}
	var status outcome
	if err := json.Unmarshal([]byte(channels[errorChannel]), &status); err != nil || status.Details == nil || status.Details.Causes[0] != (cause{"ExitCode", "7"}) {
		t.Errorf("status: %s, %v", channels[errorChannel], err)
	}
}

func TestStatusIsInKubernetesWords(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, `{"status":"Success"}`},
		{exitError(3), `{"status":"Failure","message":"command terminated with non-zero exit code: command terminated with exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}`},
		{errors.New("no"), `{"status":"Failure","message":"Internal error occurred: no","reason":"InternalError","code":500}`},
	} {
		if got, err := json.Marshal(statusOf(test.err)); err != nil || string(got) != test.want {
			t.Errorf("%v: %s, %v", test.err, got, err)
		}
	}
}

// TestFramesThatMakeNoSense: a client's frames neither panic nor block.
func TestFramesThatMakeNoSense(t *testing.T) {
	s := serve(t, Config{}, &fake{exec: upper})
	for _, frames := range [][]string{{"\xff"}, {"\xff\x09"}, {"\xff\x00\x00"}, {"\x09what"}, {"\x04not a size", "\x04{\"Width\":1}", "\x01out"}, {""}} {
		ws := mustDial(t, s)
		for _, frame := range frames {
			if err := websocket.Message.Send(ws, []byte(frame)); err != nil {
				t.Fatal(err)
			}
		}
		websocket.Message.Send(ws, []byte("\xff\x00")) // the server may have hung up
		io.Copy(io.Discard, ws)
	}
}

// TestContextEndsWithTheClient is the package's invariant, also while the
// process takes nothing of its stdin; nothing is left behind.
func TestContextEndsWithTheClient(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, stuffed := range []bool{false, true} {
		running, ended := make(chan struct{}), make(chan error, 1)
		s := serve(t, Config{}, &fake{exec: func(ctx context.Context, s engine.Streams) (int, error) {
			close(running)
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return 0, ctx.Err()
		}})
		s.linger = time.Millisecond
		ws := mustDial(t, s)
		<-running
		if stuffed {
			if err := websocket.Message.Send(ws, []byte("\x00nobody reads this")); err != nil {
				t.Fatal(err)
			}
		}
		ws.Close()
		if err := <-ended; !errors.Is(err, errClientGone) {
			t.Errorf("cause: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before+2 && time.Now().Before(deadline) { // Serve's end is waited for later
		runtime.Gosched()
	}
	if now := runtime.NumGoroutine(); now > before+2 {
		stacks := make([]byte, 64<<10)
		t.Errorf("%d goroutines, before %d\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
	}
}

// TestClientThatTakesNothingIsLetGo after the idle time, whatever the process
// goes on to print.
func TestClientThatTakesNothingIsLetGo(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, Config{Idle: 50 * time.Millisecond}, &fake{exec: func(ctx context.Context, s engine.Streams) (int, error) {
		var err error
		for chunk := make([]byte, 1<<20); err == nil; {
			_, err = s.Stdout.Write(chunk)
		}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, err
	}})
	mustDial(t, s)
	if err := <-ended; !errors.Is(err, errClientGone) {
		t.Errorf("cause: %v", err)
	}
}

// TestSlowClientIsNotWaitedFor: one that was told to be let go, and takes not
// even that, is gone after a farewell, not after the idle time.
func TestSlowClientIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	writing := make(chan error, 1)
	s := serve(t, Config{Idle: time.Hour}, &fake{exec: func(ctx context.Context, s engine.Streams) (int, error) {
		go func() {
			_, err := s.Stdout.Write(make([]byte, 64<<20)) // more than sockets hold
			writing <- err
		}()
		time.Sleep(100 * time.Millisecond) // it has filled them by then, most likely
		return 0, engine.ErrSlow
	}})
	url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(t, url.Url, protocolV5)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := <-writing; err == nil {
		t.Error("all was sent to a client that reads nothing")
	}
}

func TestCloseEndsStreams(t *testing.T) {
	running, ended := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{}, &fake{exec: func(ctx context.Context, _ engine.Streams) (int, error) {
		close(running)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}})
	mustDial(t, s)
	<-running
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	default:
		t.Error("Close did not wait for the stream")
	}
}

func TestURLServesOnce(t *testing.T) {
	s := serve(t, Config{}, &fake{exec: upper})
	address := execURL(t, s)
	if strings.Contains(address, ":0/") || !strings.HasPrefix(address, "http://127.0.0.1:") {
		t.Errorf("URL: %s", address)
	}
	first, err := dial(t, address, protocolV5)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	wrong, err := url.JoinPath(address, "..", "nosuchtoken")
	if err != nil {
		t.Fatal(err)
	}
	forExec := strings.Replace(execURL(t, s), "/exec/", "/attach/", 1)
	for name, again := range map[string]string{"second use": address, "wrong token": wrong, "other kind": forExec} {
		resp, err := http.Get(again)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

func TestTokensExpireAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all tokens
		old, err := all.add("exec", 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(tokenLife)
		if _, ok := all.take("exec", old); ok {
			t.Error("a token outlived its life")
		}
		for range maxTokens {
			if _, err := all.add("exec", 1); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := all.add("exec", 1); err == nil {
			t.Error("one token too many")
		}
		time.Sleep(tokenLife)
		fresh, err := all.add("exec", 2)
		if err != nil || len(all.byID) != 1 || len(all.order) != 1 {
			t.Errorf("after their life %d tokens, %v", len(all.byID), err)
		}
		if asked, ok := all.take("exec", fresh); !ok || asked != 2 {
			t.Errorf("took %v, %v", asked, ok)
		}
	})
}

func TestRequestsThatTheCRIRulesOut(t *testing.T) {
	s := serve(t, Config{}, &fake{})
	if _, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c"}); err == nil {
		t.Error("a command without any stream was accepted")
	}
	if _, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Tty: true, Stdout: true, Stderr: true}); err == nil {
		t.Error("a terminal with two outputs was accepted")
	}
}

// writeCertificate makes a self-signed certificate for 127.0.0.1.
func writeCertificate(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		// The clock of a file system may be coarse.
		when := time.Now().Add(time.Duration(serial) * time.Second)
		if err := os.Chtimes(name, when, when); err != nil {
			t.Fatal(err)
		}
	}
}

// serialOf gives the serial number of a server's certificate.
func serialOf(t *testing.T, address string) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestCertificateIsReadAgain(t *testing.T) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	log := slog.New(slog.DiscardHandler)
	if _, err := Certificates(certFile, keyFile, log); err == nil {
		t.Error("a certificate that is not there was accepted")
	}
	writeCertificate(t, certFile, keyFile, 1)
	certificates, err := Certificates(certFile, keyFile, log)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Certificates: certificates}, &fake{exec: upper})
	address := execURL(t, s)
	if !strings.HasPrefix(address, "https://") {
		t.Errorf("URL: %s", address)
	}
	host := s.base.Host
	if got := serialOf(t, host); got != 1 {
		t.Errorf("certificate %d, want 1", got)
	}
	writeCertificate(t, certFile, keyFile, 2)
	if got := serialOf(t, host); got != 2 {
		t.Errorf("certificate %d after renewal, want 2", got)
	}
	if err := os.WriteFile(certFile, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serialOf(t, host); got != 2 {
		t.Errorf("certificate %d while a new one is written, want 2", got)
	}
}

func TestStreamOverTLS(t *testing.T) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeCertificate(t, certFile, keyFile, 1)
	certificates, err := Certificates(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Certificates: certificates}, &fake{exec: upper})
	config, err := websocket.NewConfig(strings.Replace(execURL(t, s), "https", "wss", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol, config.TlsConfig = []string{protocolV5}, &tls.Config{InsecureSkipVerify: true}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := errors.Join(websocket.Message.Send(ws, []byte("\x00tls")), websocket.Message.Send(ws, []byte("\xff\x00"))); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(ws); err != nil || !strings.Contains(string(got), "TLS") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFollowKeepsTheNewestSizeUntilStopped(t *testing.T) {
	in := make(chan remotecommand.TerminalSize)
	out, stop := follow(in)
	for _, width := range []uint16{80, 100, 120} { // nobody takes the first ones, and nobody is held up
		in <- remotecommand.TerminalSize{Width: width, Height: 24}
	}
	if got := <-out; got != (engine.Size{Width: 120, Height: 24}) {
		t.Errorf("size = %+v", got)
	}
	stop()
	if _, ok := <-out; ok {
		t.Error("sizes came after the stop")
	}
}

func TestMissingStreamsAreNil(t *testing.T) {
	s := engineStreams(nil, nil, nil, true, nil)
	if s.Stdin != nil || s.Stdout != nil || s.Stderr != nil {
		t.Errorf("streams: %+v", s)
	}
}

func TestExitErrorIsWhatTheProtocolWants(t *testing.T) {
	e := exitError(3)
	if !e.Exited() || e.ExitStatus() != 3 || !strings.Contains(e.Error(), "3") {
		t.Errorf("exit error: %v", e)
	}
}
