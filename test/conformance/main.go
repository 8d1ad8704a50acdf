// Command conformance runs critest against a private daemon.
//
// It builds critest, makes look-alikes of the images critest wants, serves them
// from a registry, starts a daemon whose registries are mirrored there, and
// compares what critest says with the list of known failures. Everything it
// makes is below one temporary directory and in namespaces of its own, and is
// gone when it ends; only the tools and the last run's logs stay, in bin/.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/longshore/longshore/test/node"
	"golang.org/x/sys/unix"
)

// options are the command line's.
type options struct {
	bin   string // the daemon and the shim
	cache string // tools and logs
	known string
	skips string
	focus string
	limit time.Duration
	suite string   // a critest to run instead of the one that is built
	extra []string // for critest
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "../../bin", "directory of longshore and longshore-shim")
	flag.StringVar(&o.cache, "cache", "bin", "directory that keeps critest, crictl and the logs of the last run")
	flag.StringVar(&o.known, "known", "known-failures.txt", "specs that are known to fail, each with its reason")
	flag.StringVar(&o.skips, "skips", "known-skips.txt", "specs that may skip themselves, by the beginning of their names, each with its reason")
	flag.StringVar(&o.focus, "focus", "", "run only the specs that match this regular expression")
	flag.DurationVar(&o.limit, "limit", 11*time.Minute, "how long critest may take")
	flag.StringVar(&o.suite, "critest", "", "run this critest, e.g. a newer one, instead of building one")
	crictl := flag.Bool("crictl", false, "only build crictl, if it is not there, and print its path")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: conformance [flags] [flags of critest, as -websocket-exec, after --]")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.extra = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if *crictl {
		if err := printCrictl(ctx, o.cache); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			os.Exit(1)
		}
		return
	}
	specs, known, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	// The counts are the last line, whatever else there is to say.
	if specs != nil && !judge(os.Stdout, specs, known) || err != nil {
		os.Exit(1)
	}
}

func printCrictl(ctx context.Context, cache string) error {
	cache, err := filepath.Abs(cache) // it is built in another directory
	if err != nil {
		return err
	}
	dir, err := toolsDir(cache)
	if err != nil {
		return err
	}
	path, err := buildCrictl(ctx, dir)
	if err == nil {
		fmt.Println(path)
	}
	return err
}

// run gives what the specs said and what was known of them.
func run(ctx context.Context, o options) (specs []spec, known lists, err error) {
	if os.Getuid() != 0 {
		return nil, known, errors.New("real containers need root")
	}
	if known, err = readLists(o.known, o.skips); err != nil {
		return nil, known, err
	}
	for _, dir := range []*string{&o.bin, &o.cache} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, known, err
		}
	}
	tools, err := prepare(ctx, o.cache)
	if err != nil {
		return nil, known, err
	}
	if o.suite != "" {
		if tools.critest, err = filepath.Abs(o.suite); err != nil {
			return nil, known, err
		}
	}
	specs, err = test(ctx, o, tools)
	return specs, known, err
}

// test makes the room, runs critest in it and takes everything down again.
func test(ctx context.Context, o options, tools tools) (specs []spec, err error) {
	logs := filepath.Join(o.cache, "last")
	if err := os.RemoveAll(logs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	// Short, because the path of a unix socket is.
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	n, err := newNode(dir, o.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end(n, logs)) }()
	specs, err = testIn(ctx, n, o, tools, logs)
	if n.Pid() != 0 { // or else there is no daemon, and so no pod
		err = errors.Join(err, clearPods(context.WithoutCancel(ctx), n))
	}
	return specs, err
}

// testIn fills a registry, starts the daemon and runs critest.
func testIn(ctx context.Context, n *node.Node, o options, tools tools, logs string) (specs []spec, err error) {
	registry, err := startRegistry(ctx, n.Room, tools.registry, n.Path("registry"), filepath.Join(logs, "registry.log"))
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	defer func() { err = errors.Join(err, registry.stop()) }()
	images := lookAlikes(tools)
	fmt.Printf("filling the registry with %d images\n", len(images))
	if err := fill(ctx, n.Room, images); err != nil {
		return nil, fmt.Errorf("fill registry: %w", err)
	}
	if err := n.Start(ctx); err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	fmt.Println("running critest; its output goes to", filepath.Join(logs, "critest.log"))
	return critest(ctx, n, tools.critest, logs, o)
}
