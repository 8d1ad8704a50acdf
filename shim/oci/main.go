package oci

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// release is the version of a build that is given one by the linker.
var release = "0.1.0"

// defaultRoot is where the state of containers lives: it goes with a reboot, as
// they do.
const defaultRoot = "/run/longshore-oci"

const usage = `usage: longshore-shim [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND [FLAGS] [CONTAINER]

commands of an OCI runtime:
  create    make a container from a bundle; its program waits for start
  start     run the program of a created container
  run       create and start
  state     print the state of a container
  kill      send a signal to a container
  delete    remove what a stopped container holds
  exec      run another process in a container
  ps        list the processes of a container
  pause     freeze a container
  resume    let a frozen container go on
  update    change a container's limits
  events    print what a container uses (--stats)
  list      list the containers
  features  print what this runtime implements
  spec      write a config.json to begin with
`

// exitStatus ends a command with a status that is not its own failure.
type exitStatus int

func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// errUsage is an error in the command line.
var errUsage = errors.New("bad command line")

// cli is one command with what it shares with all others.
type cli struct {
	root          string
	systemdCgroup bool
	log           logger
	in, out, err  *os.File
}

// Main carries out one command line, without the name of the program, and
// gives the status to exit with: 0, that of the process for run and exec, 1 for
// an error, and 255 for one of exec, whose own statuses are the process's.
func Main(args []string) int {
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	verb, err := c.run(args)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(c.out, usage)
		return 0
	}
	c.log.write("error", err.Error())
	fmt.Fprintln(c.err, err)
	if verb == "exec" {
		return 255
	}
	return 1
}

// run reads the flags of all commands and carries out the command.
func (c *cli) run(args []string) (verb string, err error) {
	f := newFlags("longshore-shim")
	f.StringVar(&c.root, "root", defaultRoot, "")
	f.StringVar(&c.log.path, "log", "", "")
	f.StringVar(&c.log.format, "log-format", "text", "")
	f.BoolVar(&c.log.debug, "debug", false, "")
	f.BoolVar(&c.systemdCgroup, "systemd-cgroup", false, "")
	// Who may do what is asked of the kernel, whatever this says.
	f.String("rootless", "auto", "")
	version := f.Bool("version", false, "")
	f.BoolVar(version, "v", false, "")
	if err := f.Parse(args); err != nil {
		return "", flagError(err)
	}
	if c.log.format != "text" && c.log.format != "json" {
		return "", fmt.Errorf("--log-format %.32q, want text or json: %w", c.log.format, errUsage)
	}
	if *version {
		return "", printVersion(c.out)
	}
	if f.NArg() == 0 {
		return "", fmt.Errorf("%w\n%s", errUsage, usage)
	}
	verb = f.Arg(0)
	command := c.command(verb)
	if command == nil {
		return verb, fmt.Errorf("no command %q: %w", verb, errUsage)
	}
	if c.root, err = filepath.Abs(c.root); err != nil {
		return verb, err
	}
	c.log.write("debug", verb)
	return verb, command(f.Args()[1:])
}

func (c *cli) command(verb string) func(args []string) error {
	switch verb {
	case "create":
		return c.create
	case "start":
		return c.start
	case "run":
		return c.runContainer
	case "state":
		return c.state
	case "kill":
		return c.kill
	case "delete":
		return c.delete
	case "exec":
		return c.exec
	case "ps":
		return c.ps
	case "pause":
		return c.pause
	case "resume":
		return c.resume
	case "update":
		return c.update
	case "events":
		return c.events
	case "list":
		return c.list
	case "features":
		return c.features
	case "spec":
		return c.spec
	case "help":
		return func([]string) error { return flag.ErrHelp }
	}
	return nil
}

func printVersion(w io.Writer) error {
	version := release
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				version += "+" + s.Value[:12]
			}
		}
	}
	_, err := fmt.Fprintf(w, "longshore-shim version %s\nspec: %s\n", version, specs.Version)
	return err
}

// newFlags gives a set of flags that leaves talking to [Main].
func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// flagError marks an error in flags as one of the command line.
func flagError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return fmt.Errorf("%w: %w", errUsage, err)
}

// parse reads flags before, between and behind the arguments, as runc does,
// and gives the arguments, of which there must be at least least.
func parse(f *flag.FlagSet, args []string, least, most int) ([]string, error) {
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), flagError(err))
		}
		if ended := len(args) - f.NArg(); ended > 0 && args[ended-1] == "--" {
			rest = append(rest, f.Args()...)
			break
		}
		if f.NArg() == 0 {
			break
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
	if len(rest) < least || len(rest) > most {
		return nil, fmt.Errorf("%s: %d arguments, want %d to %d: %w", f.Name(), len(rest), least, most, errUsage)
	}
	return rest, nil
}

// stringList is a flag that may be given more than once.
type stringList []string

func (l *stringList) String() string { return "" }

func (l *stringList) Set(s string) error {
	*l = append(*l, s)
	return nil
}
