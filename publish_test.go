package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
)

func TestIsPublish(t *testing.T) {
	for line, want := range map[string]bool{
		"--address /s publish --topic t":     true,
		"-address /s publish":                true,
		"publish":                            true,
		"serve":                              false,
		"serve --config publish":             false,
		"image import publish":               false,
		"--address /s serve":                 false,
		"--namespace k8s.io publish --topic": true,
	} {
		if got := isPublish(strings.Fields(line)); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// TestPublishReachesTheKeeper, as another runtime's shim calls it: with flags on
// both sides of the verb, and the event on stdin.
func TestPublishReachesTheKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *api.Envelope, 1)
	var server api.Server
	server.Register(api.EventService, map[string]api.Method{"Forward": func(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
		var req api.ForwardRequest
		if err := decode(&req); err != nil {
			return nil, err
		}
		got <- req.Envelope
		return &api.Empty{}, nil
	}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	event := pb.Marshal(&api.Any{TypeURL: "containerd.events.TaskOOM", Value: pb.Marshal(&api.TaskOOM{ContainerID: "c"})})
	for _, address := range []string{path, "unix://" + path} {
		args := []string{"--address", address, "publish", "--topic", api.TopicOOM, "--namespace", "k8s.io"}
		if !isPublish(args) {
			t.Fatal(args)
		}
		if err := publish(t.Context(), args, bytes.NewReader(event)); err != nil {
			t.Fatal(err)
		}
		e := <-got
		var oom api.TaskOOM
		if err := pb.Unmarshal(e.Event.Value, &oom); err != nil {
			t.Fatal(err)
		}
		if e.Topic != api.TopicOOM || e.Namespace != "k8s.io" || e.Event.TypeURL != "containerd.events.TaskOOM" || oom.ContainerID != "c" || e.Timestamp == nil {
			t.Errorf("%+v of %+v", e, oom)
		}
	}
	l.Close()
	server.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestPublishNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		args  string
		event string
		want  string // "": no error
	}{
		"nobody wants to know":  {"publish --topic /t", "", ""},
		"an unknown flag":       {"publish --what", "", "what"},
		"another verb":          {"--address /s publish serve", "", errUsage.Error()},
		"no keeper":             {"--address " + dir + "/none publish --topic /t", "", "publish /t"},
		"an event that is none": {"--address " + dir + "/none publish --topic /t", "\xff", "publish /t"},
	} {
		err := publish(t.Context(), strings.Fields(test.args), strings.NewReader(test.event))
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestLogLevels(t *testing.T) {
	for _, name := range []string{"debug", "info", "warn", "error", "INFO"} {
		if _, err := logLevel(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := logLevel("loud"); err == nil || !strings.Contains(err.Error(), "log_level") {
		t.Errorf("loud: %v", err)
	}
	names := differing(&Config{LogLevel: "info", IdleShims: 1}, &Config{LogLevel: "warn", IdleShims: 1, Socket: "/s"})
	if want := []string{"socket", "log_level"}; !slices.Equal(names, want) {
		t.Errorf("differing: %v", names)
	}
}
