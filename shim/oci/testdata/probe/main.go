// Command probe is the program of the test containers: it does what its first
// argument says.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		os.Exit(2)
	}
	switch args[0] {
	case "say":
		fmt.Println(args[1])
	case "exit":
		code, err := strconv.Atoi(args[1])
		if err != nil {
			os.Exit(2)
		}
		os.Exit(code)
	case "wait": // for the end of standard input
		fmt.Println("waiting")
		io.Copy(io.Discard, os.Stdin)
	case "trap": // a signal, and say which
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("waiting")
		fmt.Println(<-signals)
	case "who":
		fmt.Println(os.Getpid(), os.Getuid(), os.Getgid(), os.Getenv("WHO"))
		dir, err := os.Getwd()
		fmt.Println(dir, err)
	case "cgroup": // in the cgroup2 tree
		data, _ := os.ReadFile("/proc/self/cgroup")
		for line := range strings.Lines(string(data)) {
			if path, ok := strings.CutPrefix(line, "0::"); ok {
				fmt.Print(path)
			}
		}
	case "tty":
		for fd := range 3 {
			name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			fmt.Println(fd, strings.HasPrefix(name, "/dev/pts/") || name == "/dev/console", err)
		}
	case "labels": // SELinux's, of itself and of files
		data, _ := os.ReadFile("/proc/self/attr/current")
		fmt.Println(strings.TrimRight(string(data), "\x00\n"))
		for _, name := range args[1:] {
			buf := make([]byte, 256)
			n, err := syscall.Getxattr(name, "security.selinux", buf)
			if err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println(strings.TrimRight(string(buf[:n]), "\x00"))
		}
	case "fds":
		names, _ := filepath.Glob("/proc/self/fd/*")
		sort.Strings(names)
		for _, name := range names {
			if to, err := os.Readlink(name); err == nil {
				fmt.Println(filepath.Base(name), to)
			}
		}
		if data, err := io.ReadAll(os.NewFile(3, "extra")); err == nil {
			fmt.Printf("read %s\n", data)
		}
		fmt.Println(os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID"))
	default:
		os.Exit(2)
	}
}
