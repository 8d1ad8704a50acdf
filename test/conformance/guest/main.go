// Command guest is what the look-alike images hold beside busybox: a web
// server that behaves as nginx or httpd do where critest looks, and the few
// programs that Debian's busybox lacks. It acts by the name it is called by.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// masterTitle is how nginx shows itself in its command line; critest searches
// for "master process" there.
const masterTitle = "nginx: master process nginx"

func main() {
	err := run(os.Args)
	if err == nil {
		return
	}
	if !errors.Is(err, errNoMatch) {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

func run(args []string) error {
	if args[0] == masterTitle {
		return nginx(port(args))
	}
	switch name := filepath.Base(args[0]); name {
	case "nginx":
		// By its own path, so that the process's name stays nginx, for pidof.
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return syscall.Exec(self, append([]string{masterTitle}, args[1:]...), os.Environ())
	case "httpd":
		return httpd(port(args))
	case "nonewprivs":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return nil
	case "pause":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	case "pgrep":
		return pgrep("/proc", args[1:], os.Stdout)
	case "ipcs":
		return ipcs("/proc/sysvipc/shm", os.Stdout)
	default:
		return fmt.Errorf("no program %q", name)
	}
}

// port is the first argument, or that of HTTP.
func port(args []string) string {
	if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		return args[1]
	}
	return "80"
}
