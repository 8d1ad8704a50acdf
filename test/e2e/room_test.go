package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
)

func init() {
	commands["on-node"] = verb(onNode)
}

// onNode runs a program in the node's namespaces.
func onNode(s *session, ctx context.Context, args []string, out io.Writer) error {
	return s.inRoom(exec.CommandContext(ctx, args[0], args[1:]...), out)
}

// inRoom runs a program in the node's namespaces, its output joined.
func (s *session) inRoom(cmd *exec.Cmd, out io.Writer) (err error) {
	cmd.Stdout, cmd.Stderr = out, out
	s.node.Room.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: exit code %d", filepath.Base(cmd.Path), exit.ExitCode())
	}
	return err
}
