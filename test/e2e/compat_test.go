package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

func init() { commands["compat"] = verb(compat) }

// compat runs the client of an older Kubernetes, a module of its own, against
// the daemon.
func compat(s *session, ctx context.Context, _ []string, out io.Writer) error {
	program := s.node.Path("compat.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, ".")
	build.Dir = filepath.Join("..", "compat")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build test/compat: %w\n%s", err, text)
	}
	cmd := exec.CommandContext(ctx, program, "-test.v")
	cmd.Env = append(os.Environ(), "LONGSHORE_SOCKET="+s.node.Socket())
	return s.inRoom(cmd, out)
}
