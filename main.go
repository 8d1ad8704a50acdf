// Command longshore is the daemon of a container runtime for one Linux node,
// and the few commands that go with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

const usage = `usage:
  longshore serve [--config FILE]          serve the container runtime interface; SIGHUP has it read handlers,
                                           shim_dirs, images.registries and log_level again
  longshore config [--config FILE]         print the configuration with comments
  longshore image import [--config FILE] ARCHIVE [NAME]
                                           take in an OCI layout or a docker archive
  longshore publish [--address SOCKET] [--topic TOPIC] [--namespace NAMESPACE]
                                           pass on an event of another runtime's shim
  longshore version                        print the version
`

// release is the version of a build that is given one by the linker.
var release = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "longshore:", err)
		os.Exit(1)
	}
}

// errUsage is an error in the command line.
var errUsage = errors.New("bad command line\n" + strings.TrimSpace(usage))

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	if isPublish(args) {
		return publish(ctx, args, os.Stdin)
	}
	verb, args := args[0], args[1:]
	if verb == "image" && len(args) > 0 {
		verb, args = verb+" "+args[0], args[1:]
	}
	flags := flag.NewFlagSet("longshore "+verb, flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage) }
	file := flags.String("config", "", "configuration file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch verb {
	case "version":
		_, err := fmt.Fprintln(out, version())
		return err
	case "help", "--help", "-h":
		_, err := fmt.Fprint(out, usage)
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return err
	}
	switch verb {
	case "serve":
		if flags.NArg() > 0 {
			return errUsage
		}
		return serve(ctx, *file, &cfg)
	case "config":
		_, err := io.WriteString(out, cfg.String())
		return err
	case "image import":
		if flags.NArg() < 1 || flags.NArg() > 2 {
			return errUsage
		}
		return importImage(ctx, &cfg, flags.Arg(0), flags.Arg(1), out)
	}
	return fmt.Errorf("no command %q\n%s", verb, strings.TrimSpace(usage))
}

// version names the build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return release
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return release + "+" + s.Value[:12]
		}
	}
	return release
}
