package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Verbs for clients that send much, take nothing, or go away.
func init() {
	commands["pump"] = verb(pump)
	commands["pump-forward"] = verb(pumpForward)
	commands["vanish"] = verb(vanish)
	commands["stall"] = verb(stall)
	commands["together"] = verb(together)
	commands["attach-until"] = verb(attachUntil)
	commands["mark"] = verb(mark)
	commands["settled"] = verb(settled)
	commands["execsync-big"] = verb(execSyncBig)
	commands["execsync-many"] = verb(execSyncMany)
	commands["execsync-leave"] = verb(execSyncLeave)
	commands["leave"] = verb(leave)
	commands["until-ps"] = verb(untilPs)
	commands["daemon-below"] = verb(daemonBelow)
}

// noise is a stream of bytes that never repeats, and knows its own checksum.
type noise struct {
	io.Reader
	sum hash.Hash
}

func newNoise(size int64) *noise {
	n := &noise{sum: sha256.New()}
	n.Reader = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), n.sum)
	return n
}

// compare says whether what came back is what was sent.
func compare(sent *noise, back hash.Hash, size, got int64) error {
	if got != size || !bytes.Equal(sent.sum.Sum(nil), back.Sum(nil)) {
		return fmt.Errorf("of %d bytes %d came back, and not the same", size, got)
	}
	return nil
}

// counter counts what is written to it.
type counter struct {
	io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Writer.Write(p)
}

// pump [FLAGS] MIB NAME ARG... sends bytes through a command that sends them
// back, both ways at once.
func pump(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	mib, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	sent, back := newNoise(mib<<20), sha256.New()
	got := &counter{Writer: back}
	o.stdin, o.stdout = sent, got
	address, err := s.execURL(ctx, o, args[1:])
	if err != nil {
		return err
	}
	if err := s.stream(ctx, address, o, out); err != nil {
		return err
	}
	return compare(sent, back, mib<<20, got.n)
}

// pump-forward [-ws] MIB POD PORT does the same through a forwarded port.
func pumpForward(s *session, ctx context.Context, args []string, _ io.Writer) error {
	o, args := streamFlags(args)
	mib, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	return s.forwarded(ctx, o, args[1], args[2], func(c net.Conn) error {
		sent, back := newNoise(mib<<20), sha256.New()
		sending := make(chan error, 1)
		go func() {
			_, err := io.Copy(c, sent)
			sending <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.CopyN(back, c, mib<<20)
		if err := errors.Join(err, <-sending); err != nil {
			return err
		}
		return compare(sent, back, mib<<20, got)
	})
}

// firstWrite calls f once something arrives.
type firstWrite struct {
	once sync.Once
	f    func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(w.f)
	return len(p), nil
}

// vanish exec|attach|forward [FLAGS] NAME ARG... starts a stream and hangs up
// when something has come. Its stdin never ends.
func vanish(s *session, ctx context.Context, args []string, out io.Writer) error {
	kind := args[0]
	o, args := streamFlags(args[1:])
	if kind == "forward" {
		return s.forwarded(ctx, o, args[0], args[1], func(c net.Conn) error {
			_, err := c.Read(make([]byte, 1))
			return err
		})
	}
	address, err := s.execOrAttach(ctx, kind, &o, args)
	if err != nil {
		return err
	}
	target, relay, err := s.through(address)
	if err != nil {
		return err
	}
	defer relay.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.stdout = &firstWrite{f: func() { relay.cut(); cancel() }}
	err = streamTo(ctx, target, o, out)
	if ctx.Err() == nil {
		return fmt.Errorf("the stream ended before anything came: %w", err)
	}
	return nil
}

// execOrAttach gives a stream's URL, with a stdin on which nothing ever comes.
func (s *session) execOrAttach(ctx context.Context, kind string, o *streamOptions, args []string) (string, error) {
	if o.stdin == nil {
		o.stdin, _ = io.Pipe()
	}
	if kind == "exec" {
		return s.execURL(ctx, *o, args)
	}
	return s.attachURL(ctx, *o, args)
}

// stall exec|attach [FLAGS] NAME ARG... starts a stream of which nothing is ever
// taken, and leaves it so until the script's end.
func stall(s *session, ctx context.Context, args []string, _ io.Writer) error {
	kind := args[0]
	o, args := streamFlags(args[1:])
	address, err := s.execOrAttach(ctx, kind, &o, args)
	if err != nil {
		return err
	}
	target, relay, err := s.through(address)
	if err != nil {
		return err
	}
	arrived, never := make(chan struct{}), make(chan struct{})
	o.stdout = &firstWrite{f: func() { close(arrived); <-never }}
	ended := make(chan error, 1)
	go func() { // ends with the test's process
		defer relay.Close()
		ended <- streamTo(context.Background(), target, o, io.Discard)
	}()
	select {
	case <-arrived:
		return nil
	case err := <-ended:
		return fmt.Errorf("the stream ended: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// together N NAME TEXT attaches N clients, types a text at one of them, and
// returns when all have got it back.
func together(s *session, ctx context.Context, args []string, _ io.Writer) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	want := strings.ToUpper(args[2])
	typing, typist := io.Pipe()
	var got, clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	failed := make(chan error, n)
	for i := range n {
		o := streamOptions{stdout: &expecting{want: want, found: got.Done}}
		if i%2 == 1 {
			o.webSocket = "v5.channel.k8s.io"
		}
		if i == 0 {
			o.stdin = typing
		}
		address, err := s.attachURL(ctx, o, args[1:])
		if err != nil {
			return err
		}
		got.Add(1)
		clients.Go(func() {
			if err := s.stream(ctx, address, o, io.Discard); ctx.Err() == nil {
				failed <- fmt.Errorf("client %d ended: %w", i, err)
			}
		})
	}
	all := make(chan struct{})
	go func() { got.Wait(); close(all) }()
	// Whoever is attached late gets a later line.
	go poll(ctx, func() (bool, error) { _, err := io.WriteString(typist, args[2]+"\n"); return false, err })
	select {
	case <-all:
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// expecting calls found when a text has come.
type expecting struct {
	want  string
	found func()
	seen  []byte
	done  bool
}

func (e *expecting) Write(p []byte) (int, error) {
	e.seen = append(e.seen, p...)
	if !e.done && bytes.Contains(e.seen, []byte(e.want)) {
		e.done = true
		e.found()
	}
	e.seen = append(e.seen[:0], e.seen[max(0, len(e.seen)-len(e.want)):]...)
	return len(p), nil
}

// attach-until [FLAGS] NAME TEXT attaches until a text has come.
func attachUntil(s *session, ctx context.Context, args []string, out io.Writer) error {
	o, args := streamFlags(args)
	found, cancel := context.WithCancel(ctx)
	defer cancel()
	o.stdout = &expecting{want: args[1], found: cancel}
	address, err := s.attachURL(ctx, o, args)
	if err != nil {
		return err
	}
	if err := s.stream(found, address, o, out); found.Err() == nil {
		return fmt.Errorf("the stream ended first: %w", err)
	}
	return ctx.Err()
}

// held counts the descriptors of the daemon and its shims, by process and kind.
func (s *session) held() (map[string]int, error) {
	pids := []int{s.node.Pid()}
	shims, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, name := range shims {
		cmd, _ := os.ReadFile(name)
		env, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "environ"))
		if bytes.HasPrefix(cmd, []byte("longshore-shim\x00")) && bytes.Contains(env, []byte(s.node.Dir+"/")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	held := map[string]int{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, fd := range fds {
			target, _ := os.Readlink(filepath.Join(dir, fd.Name()))
			kind, _, _ := strings.Cut(target, ":") // pipe:[7] and pipe:[8] are alike
			held[fmt.Sprintf("%d %s", pid, kind)]++
		}
	}
	return held, nil
}

// mark remembers how many descriptors of each kind daemon and shims hold;
// settled waits until they hold no more than that.
func mark(s *session, ctx context.Context, _ []string, _ io.Writer) error {
	return poll(ctx, func() (up bool, err error) {
		s.marked, err = s.held()
		up = true
		for kind := range s.marked { // a shim that is just starting has no connection yet
			pid, _, _ := strings.Cut(kind, " ")
			up = up && s.marked[pid+" socket"] > 1 && s.marked[pid+" anon_inode"] > 1
		}
		return up, err
	})
}

func settled(s *session, ctx context.Context, _ []string, _ io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, patience/4)
	defer cancel()
	var more []string
	err := poll(ctx, func() (bool, error) {
		now, err := s.held()
		more = nil
		for kind, n := range now {
			if before := s.marked[kind]; n > before {
				more = append(more, fmt.Sprintf("%s: %d, before %d", kind, n, before))
			}
		}
		return more == nil, err
	})
	if err != nil {
		return fmt.Errorf("daemon and shims hold more descriptors than they did: %w\n%s", err, strings.Join(more, "\n"))
	}
	return nil
}

// execsync-big NAME ARG... prints how much of a command's output came.
func execSyncBig(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.ids[args[0]], Cmd: args[1:]})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d KiB of stdout, %d bytes of stderr, exit code %d\n", len(resp.Stdout)>>10, len(resp.Stderr), resp.ExitCode)
	return nil
}

// execsync-many N NAME runs commands at once, each with an exit code of its own.
func execSyncMany(s *session, ctx context.Context, args []string, _ io.Writer) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	errs := make([]error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			code := int32(i % 100)
			resp, err := s.node.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.ids[args[1]], Cmd: []string{"guest", "exit", fmt.Sprint(code)}, Timeout: 50})
			if err == nil && resp.ExitCode != code {
				err = fmt.Errorf("exit code %d, want %d", resp.ExitCode, code)
			}
			errs[i] = err
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// execsync-leave NAME ARG... starts a command and does not wait for it; leave
// cancels it, as a client that dies.
func execSyncLeave(s *session, _ context.Context, args []string, _ io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.node.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.ids[args[0]], Cmd: args[1:]})
	}()
	s.leave = func() { cancel(); <-ended }
	return nil
}

func leave(s *session, _ context.Context, _ []string, _ io.Writer) error {
	s.leave()
	return nil
}

// until-ps NAME [!] TEXT waits until a container has, or has not, a process with
// such a command line.
func untilPs(s *session, ctx context.Context, args []string, out io.Writer) error {
	want := args[1] != "!"
	text := strings.TrimPrefix(strings.Join(args[1:], " "), "! ")
	return poll(ctx, func() (bool, error) {
		var list bytes.Buffer
		err := execSync(s, ctx, []string{args[0], "guest", "ps"}, &list)
		return strings.Contains(list.String(), text) == want, err
	})
}

// daemon-below MIB fails if the daemon's own memory is more.
func daemonBelow(s *session, _ context.Context, args []string, out io.Writer) error {
	limit, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.node.Pid()))
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(string(data), "RssAnon:")
	kib := 0
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return err
	}
	if kib > limit<<10 {
		return fmt.Errorf("the daemon holds %d KiB", kib)
	}
	return nil
}
