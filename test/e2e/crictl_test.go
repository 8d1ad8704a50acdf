package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

func init() {
	commands["on-node"] = verb(onNode)
	commands["crictl"] = verb(crictl)
	commands["crictl-tty"] = verb(crictlTTY)
	commands["crictl-until"] = verb(crictlUntil)
	commands["crictl-begin"] = verb(crictlBegin)
	commands["crictl-events"] = verb(crictlEvents)
	commands["crictl-end"] = verb(crictlEnd)
}

// crictlPath is the program: LONGSHORE_CRICTL, or the one that the conformance
// tests build.
var crictlPath = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("LONGSHORE_CRICTL"); path != "" {
		return filepath.Abs(path)
	}
	cmd := exec.Command("go", "run", ".", "-crictl")
	cmd.Dir = filepath.Join("..", "conformance")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
})

// crictlCommand gives a call of crictl; @NAME is the id of a pod or container.
func (s *session) crictlCommand(ctx context.Context, args []string) (*exec.Cmd, error) {
	path, err := crictlPath()
	if err != nil {
		return nil, fmt.Errorf("crictl: %w", err)
	}
	config := s.node.Path("crictl.yaml")
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		text := fmt.Sprintf("runtime-endpoint: unix://%s\nimage-endpoint: unix://%[1]s\ntimeout: 30\n", s.node.Socket())
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	full := []string{"--config", config}
	for _, arg := range args {
		if id, ok := s.ids[strings.TrimPrefix(arg, "@")]; ok && strings.HasPrefix(arg, "@") {
			arg = id
		}
		full = append(full, arg)
	}
	return exec.CommandContext(ctx, path, full...), nil
}

// onNode runs a program in the node's namespaces.
func onNode(s *session, ctx context.Context, args []string, out io.Writer) error {
	return s.inRoom(exec.CommandContext(ctx, args[0], args[1:]...), out)
}

// inRoom runs a program in the node's namespaces, its output joined.
func (s *session) inRoom(cmd *exec.Cmd, out io.Writer) error {
	cmd.Stdout, cmd.Stderr = out, out
	if err := s.startInRoom(cmd); err != nil {
		return err
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: exit code %d", filepath.Base(cmd.Path), exit.ExitCode())
	}
	return err
}

func (s *session) startInRoom(cmd *exec.Cmd) (err error) {
	s.node.Room.Do(func() { err = cmd.Start() })
	return err
}

// crictl [-as NAME] ARG... runs crictl on the node; the last line that it prints
// is the id of a new pod or container NAME.
func crictl(s *session, ctx context.Context, args []string, out io.Writer) error {
	name := ""
	if args[0] == "-as" {
		name, args = args[1], args[2:]
	}
	cmd, err := s.crictlCommand(ctx, args)
	if err != nil {
		return err
	}
	var printed bytes.Buffer
	err = s.inRoom(cmd, io.MultiWriter(out, &printed))
	if name != "" && err == nil {
		words := strings.Fields(printed.String())
		s.ids[name] = words[len(words)-1]
	}
	return err
}

// crictl-tty ARG... runs it with a terminal.
func crictlTTY(s *session, ctx context.Context, args []string, out io.Writer) error {
	cmd, err := s.crictlCommand(ctx, args)
	if err != nil {
		return err
	}
	quoted := make([]string, 0, len(cmd.Args))
	for _, arg := range cmd.Args {
		quoted = append(quoted, "'"+strings.ReplaceAll(arg, "'", `'\''`)+"'")
	}
	return s.inRoom(exec.CommandContext(ctx, "script", "--quiet", "--return", "--command", strings.Join(quoted, " "), "/dev/null"), out)
}

// crictl-until TEXT [-type LINE] ARG... runs it until it has printed a text; the
// line is what it reads.
func crictlUntil(s *session, ctx context.Context, args []string, out io.Writer) error {
	if err := crictlBegin(s, ctx, args, out); err != nil {
		return err
	}
	return crictlEnd(s, ctx, nil, out)
}

// running is a crictl that a script has begun.
type running struct {
	cmd    *exec.Cmd
	input  io.WriteCloser
	output *bytes.Buffer // to be read when it has ended
	found  chan struct{} // closed when it has printed a text
	ended  chan struct{}
}

// crictl-begin TEXT [-type LINE] ARG... starts it and waits for a text, or for
// several, TEXT...TEXT.
func crictlBegin(s *session, ctx context.Context, args []string, _ io.Writer) error {
	r, err := s.begin(args)
	if err != nil {
		return err
	}
	select {
	case <-r.found:
		return nil
	case <-r.ended:
		return fmt.Errorf("crictl ended before it printed %q:\n%s", args[0], r.output)
	case <-ctx.Done():
		return fmt.Errorf("crictl has not printed %q: %w", args[0], ctx.Err())
	}
}

// crictl-events POD TEXT runs containers in a pod until a crictl that watches
// has printed it, as above: nobody can say when it began to watch.
func crictlEvents(s *session, ctx context.Context, args []string, out io.Writer) error {
	r, err := s.begin([]string{args[1], "events"})
	if err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		select {
		case <-r.found:
			return true, nil
		default:
		}
		if err := runVerb(s, ctx, []string{"short", args[0], "--", "true"}, out); err != nil {
			return false, err
		}
		return false, remove(s, ctx, []string{"short"}, out)
	})
	return errors.Join(err, crictlEnd(s, ctx, nil, out))
}

// begin starts what [crictlBegin] is given.
func (s *session) begin(args []string) (*running, error) {
	text, args, line := args[0], args[1:], ""
	if args[0] == "-type" {
		line, args = args[1]+"\n", args[2:]
	}
	cmd, err := s.crictlCommand(context.Background(), args)
	if err != nil {
		return nil, err
	}
	r := &running{cmd: cmd, output: &bytes.Buffer{}, found: make(chan struct{}), ended: make(chan struct{})}
	watch := &inOrder{texts: strings.Split(text, "..."), found: func() { close(r.found) }}
	cmd.Stdout = io.MultiWriter(r.output, watch)
	cmd.Stderr = cmd.Stdout
	if r.input, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.startInRoom(cmd); err != nil {
		return nil, err
	}
	go func() { defer close(r.ended); _ = cmd.Wait() }() // of our own signal
	s.begun = append(s.begun, r)
	_, err = io.WriteString(r.input, line)
	return r, err
}

// inOrder calls found when texts have come, one after the other.
type inOrder struct {
	texts []string
	found func()
	seen  []byte
}

func (o *inOrder) Write(p []byte) (int, error) {
	o.seen = append(o.seen, p...)
	for len(o.texts) > 0 {
		i := bytes.Index(o.seen, []byte(o.texts[0]))
		if i < 0 {
			break
		}
		o.seen, o.texts = o.seen[i+len(o.texts[0]):], o.texts[1:]
		if len(o.texts) == 0 {
			o.found()
		}
	}
	return len(p), nil
}

// crictl-end ends those that were begun and prints what they have printed.
func crictlEnd(s *session, _ context.Context, _ []string, out io.Writer) error {
	for _, r := range s.begun {
		_ = r.cmd.Process.Signal(unix.SIGKILL) // it may have ended
		r.input.Close()
		<-r.ended
		if _, err := r.output.WriteTo(out); err != nil {
			return err
		}
	}
	s.begun = nil
	return nil
}
