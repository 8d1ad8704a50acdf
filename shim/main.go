// Command longshore-shim is the parent of one container: it makes the
// namespaces, cgroups, mounts and network, starts the process, owns its stdio,
// its log and its exit record, and answers the daemon over a unix socket. It
// outlives the daemon and links neither gRPC nor Kubernetes.
//
// The same binary, started the same way, makes or removes a pod's sandbox and
// then ends. Started with "keep" it stands between the daemon and another
// runtime's shim: see package keeper. With any other command line it is an OCI runtime: see package oci.
//
// How many processors it uses is told by who starts it. What would look for another
// number from time to time takes a tenth of the start of a program.
//
//go:debug updatemaxprocs=0
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/keeper"
	"github.com/longshore/longshore/shim/oci"
)

// Descriptors that the daemon hands over; see api/PROTOCOL.md.
const (
	fdListener = 3
	fdLifeline = 4
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == restoreCommand {
		fmt.Fprintln(os.Stderr, "longshore-shim:", becomeCriu(os.Args[2]))
		os.Exit(1)
	}
	if len(os.Args) == 2 && os.Args[1] == "pause" {
		pause()
		return
	}
	if len(os.Args) < 2 || os.Args[1] != "serve" && os.Args[1] != "keep" {
		os.Exit(oci.Main(os.Args[1:]))
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "longshore-shim:", err)
		os.Exit(1)
	}
}

// pause is the program of a sandbox container, which another runtime has made for
// the sake of its pod. As the first process of a pid namespace it leaves what
// others leave behind to the kernel.
func pause() {
	signal.Ignore(unix.SIGCHLD)
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	<-end
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: longshore-shim serve|keep, with a listening socket as descriptor %d and the daemon's pipe as %d", fdListener, fdLifeline)
	}
	runtime.GOMAXPROCS(1)
	// Started from a descriptor, the process would have its number as its name.
	if err := os.WriteFile("/proc/self/comm", []byte("longshore-shim"), 0); err != nil {
		return err
	}
	l, err := inheritedListener()
	if err != nil {
		return err
	}
	unix.CloseOnExec(fdLifeline)
	if err := unix.SetNonblock(fdLifeline, true); err != nil { // so that waiting for it takes no thread
		return fmt.Errorf("descriptor %d: %w", fdLifeline, err)
	}
	lifeline := os.NewFile(fdLifeline, "lifeline")
	if args[0] == "keep" {
		s := keeper.New(l.Addr().String())
		return serve(l, lifeline, &s.Server, s.Ending(), s.DaemonGone)
	}
	s := newService()
	return serve(l, lifeline, &s.server, s.ending, s.daemonGone)
}

func inheritedListener() (*net.UnixListener, error) {
	f := os.NewFile(fdListener, "listener")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", fdListener)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fdListener, err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fdListener)
	}
	return unixListener, nil
}

// serve answers until the service is ending: it was told to, or it is idle
// and its daemon has gone.
func serve(l *net.UnixListener, lifeline *os.File, server *api.Server, ending <-chan struct{}, daemonGone func()) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	go func() {
		var b [1]byte
		lifeline.Read(b[:]) // returns when the daemon's end has closed
		daemonGone()
	}() // goes with the process
	<-ending
	removeSocket(l)
	l.Close()
	server.Close()
	return <-served
}

// removeSocket unlinks the socket's file; a listener made from a descriptor
// does not do so by itself.
func removeSocket(l *net.UnixListener) {
	if addr, ok := l.Addr().(*net.UnixAddr); ok && addr.Name != "" {
		os.Remove(addr.Name)
	}
}
