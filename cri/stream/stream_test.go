package stream

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

func TestServerHandsOutURLs(t *testing.T) {
	s, err := Listen(Config{Address: "127.0.0.1:0", Idle: time.Minute}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
	})
	resp, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
	if err != nil || !strings.HasPrefix(resp.Url, "http://127.0.0.1:") || strings.Contains(resp.Url, ":0/") {
		t.Errorf("Exec = %v, %v", resp, err)
	}
	if _, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c"}); err == nil {
		t.Error("a command without any stream was accepted")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	serving.Wait()
}

func TestFollowTranslatesSizesUntilStopped(t *testing.T) {
	in := make(chan remotecommand.TerminalSize)
	out, stop := follow(in)
	in <- remotecommand.TerminalSize{Width: 80, Height: 24}
	if got := <-out; got != (engine.Size{Width: 80, Height: 24}) {
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
