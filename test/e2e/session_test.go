package e2e

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/longshore/longshore/test/node"
)

// newSession gives a node whose daemon serves, with the guest's image. A test
// has three times a step's patience.
func newSession(t *testing.T, config string) (*session, context.Context) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n, err := node.New(dir, bin)
	if err != nil {
		t.Fatal(err)
	}
	n.Extra = config
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	s := &session{node: n, ids: map[string]string{}, logs: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"daemon.log", "run/shims/shim.log"} {
				data, _ := os.ReadFile(n.Path(name))
				t.Logf("%s:\n%s", name, lastLines(data, 40))
			}
		}
		if err := s.end(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := daemon(s, ctx, []string{"start"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := importImage(s, ctx, nil, io.Discard); err != nil {
		t.Fatal(err)
	}
	return s, ctx
}
