package main

import (
	"context"
	"flag"
	"io"
	"os"
	"strings"

	"github.com/longshore/longshore/shim/client"
)

// maxEvent bounds an event, in bytes.
const maxEvent = 1 << 20

// isPublish recognizes the command line by which another runtime's shim
// publishes an event, whose flags stand on both sides of the verb:
//
//	longshore --address SOCKET publish --topic TOPIC --namespace NAMESPACE
func isPublish(args []string) bool {
	for _, arg := range args {
		if arg == "publish" {
			return true
		}
		if !strings.HasPrefix(args[0], "-") {
			return false
		}
	}
	return false
}

// publish passes on the event on in. Without an address nobody wants to know.
func publish(ctx context.Context, args []string, in io.Reader) error {
	flags := flag.NewFlagSet("longshore publish", flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	address := flags.String("address", "", "socket of the container's keeper")
	topic := flags.String("topic", "", "what the event is about")
	namespace := flags.String("namespace", "", "containerd's namespace")
	for rest := args; len(rest) > 0; rest = flags.Args() {
		if rest[0] == "publish" {
			rest = rest[1:]
		}
		if err := flags.Parse(rest); err != nil {
			return err
		}
		if flags.NArg() > 0 && flags.Arg(0) != "publish" {
			return errUsage
		}
	}
	event, err := io.ReadAll(io.LimitReader(in, maxEvent))
	if err != nil || *address == "" {
		return err
	}
	return client.Publish(ctx, *address, *namespace, *topic, event)
}
