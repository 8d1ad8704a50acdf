// Command guest is what runs inside the demonstration's and the tests'
// containers: one static program with the few commands that show what a
// container is, since the image has nothing else in it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// commands by name; arguments follow.
var commands = map[string]func(args []string) error{
	"serve": serve, "get": get, "tick": tick, "sleep": sleep, "pause": pause, "echo": echo, "cat": cat, "write": write, "append": appendTo,
	"ls": ls, "env": env, "id": id, "ps": ps, "hostname": hostname, "exit": exit, "stubborn": stubborn, "eat": eat,
	"status": status, "lines": lines, "upper": upper, "tty": tty, "true": succeed, "false": fail, "err": stderr, "crash": crash,
	"echoserver": echoServer, "flood": flood, "spawn": spawn,
	"breed": breed, "winsize": winsize, "mount": mount, "owner": owner, "cwd": cwd, "label": label,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: guest COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func arg(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

// serve answers HTTP requests and logs them.
func serve(args []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s from %s\n", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "hello from pod %s\n", name)
	})
	port := arg(args, 0, "8080")
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Printf("serving on port %s\n", port)
	return http.Serve(l, nil)
}

// mount TYPE DIRECTORY mounts a filesystem.
func mount(args []string) error {
	kind, dir := arg(args, 0, "tmpfs"), arg(args, 1, "/tmp")
	return unix.Mount(kind, dir, kind, 0, "")
}

// flood sends to whoever connects, for ever.
func flood(args []string) error {
	l, err := net.Listen("tcp", ":"+arg(args, 0, "9"))
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Println("flooding")
		go func() {
			for buf := make([]byte, 64<<10); err == nil; {
				_, err = c.Write(buf)
			}
		}()
	}
}

// echoServer sends back what it receives on a port, or on an address with one.
func echoServer(args []string) error {
	address := arg(args, 0, "7")
	if !strings.Contains(address, ":") {
		address = ":" + address
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func get(args []string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(arg(args, 0, ""))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// tick prints a line now and then.
func tick(args []string) error {
	every, err := time.ParseDuration(arg(args, 0, "1s"))
	if err != nil {
		return err
	}
	for i := 1; ; i++ {
		fmt.Println("tick", i)
		time.Sleep(every)
	}
}

func sleep(args []string) error {
	d, err := time.ParseDuration(arg(args, 0, "1h"))
	if err == nil {
		time.Sleep(d)
	}
	return err
}

// pause waits for SIGTERM and ends well.
func pause([]string) error {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	fmt.Println("ready")
	fmt.Println("got", <-ch)
	return nil
}

// stubborn ignores SIGTERM.
func stubborn([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ready")
	return sleep(nil)
}

func echo(args []string) error { fmt.Println(strings.Join(args, " ")); return nil }

func stderr(args []string) error { fmt.Fprintln(os.Stderr, strings.Join(args, " ")); return nil }

func succeed([]string) error { return nil }

func fail([]string) error { os.Exit(1); return nil }

func exit(args []string) error {
	code, err := strconv.Atoi(arg(args, 0, "0"))
	if err == nil {
		os.Exit(code)
	}
	return err
}

func crash([]string) error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }

func cat(args []string) error {
	if len(args) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, name := range args {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		os.Stdout.Write(data)
	}
	return nil
}

func cwd([]string) error {
	dir, err := os.Getwd()
	fmt.Println(dir)
	return err
}

// owner prints who owns files, and their mode.
func owner(args []string) error {
	for _, name := range args {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return &os.PathError{Op: "stat", Path: name, Err: err}
		}
		fmt.Println(st.Uid, st.Gid, os.FileMode(st.Mode&0o777))
	}
	return nil
}

// label prints the SELinux labels of files.
func label(args []string) error {
	for _, name := range args {
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(name, "security.selinux", buf)
		if err != nil {
			return &os.PathError{Op: "label", Path: name, Err: err}
		}
		fmt.Println(name, strings.TrimRight(string(buf[:n]), "\x00"))
	}
	return nil
}

func write(args []string) error {
	return os.WriteFile(arg(args, 0, ""), []byte(strings.Join(args[1:], " ")+"\n"), 0o644)
}

func appendTo(args []string) error {
	f, err := os.OpenFile(arg(args, 0, ""), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, strings.Join(args[1:], " "))
	return err
}

func ls(args []string) error {
	entries, err := os.ReadDir(arg(args, 0, "/"))
	for _, entry := range entries {
		fmt.Println(entry.Name())
	}
	return err
}

// env prints the environment, quoted if an argument says so.
func env(args []string) error {
	all := os.Environ()
	slices.Sort(all)
	for _, v := range all {
		if len(args) > 0 {
			v = strconv.QuoteToASCII(v)
		}
		fmt.Println(v)
	}
	return nil
}

func id([]string) error {
	groups, err := os.Getgroups()
	fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "groups", groups)
	return err
}

// ps lists the processes that can be seen.
func ps([]string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		data, err := os.ReadFile(dir + "/cmdline")
		stat, statErr := os.ReadFile(dir + "/stat")
		switch {
		case err != nil || statErr != nil: // it has ended
		case strings.Contains(string(stat), ") Z "):
			fmt.Println(filepath.Base(dir), "is a zombie")
		default:
			fmt.Println(filepath.Base(dir), strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " "))
		}
	}
	return nil
}

func hostname([]string) error {
	name, err := os.Hostname()
	fmt.Println(name)
	return err
}

// eat takes memory, in MiB, until it has it all or is killed.
func eat(args []string) error {
	n, err := strconv.Atoi(arg(args, 0, "64"))
	if err != nil {
		return err
	}
	var held [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held), "MiB")
	if arg(args, 1, "") != "hold" {
		return nil
	}
	err = pause(nil)
	runtime.KeepAlive(held)
	return err
}

// status prints lines of /proc/self/status that begin with one of the words.
func status(args []string) error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		key, _, _ := strings.Cut(scan.Text(), ":")
		if slices.Contains(args, key) {
			fmt.Println(strings.Join(strings.Fields(scan.Text()), " "))
		}
	}
	return scan.Err()
}

// lines prints numbered lines of a given length, as fast as it can.
func lines(args []string) error {
	n, err := strconv.Atoi(arg(args, 0, "10"))
	if err != nil {
		return err
	}
	length, err := strconv.Atoi(arg(args, 1, "20"))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	for i := range n {
		text := fmt.Sprintf("%08d ", i)
		fmt.Fprintln(w, text+strings.Repeat("x", max(0, length-len(text))))
	}
	return w.Flush()
}

// upper answers each line of stdin in capitals.
func upper([]string) error {
	scan := bufio.NewScanner(os.Stdin)
	for scan.Scan() {
		if n, ok := strings.CutPrefix(scan.Text(), "lines "); ok {
			if err := lines([]string{n, "100"}); err != nil {
				return err
			}
			continue
		}
		fmt.Println(strings.ToUpper(scan.Text()))
	}
	fmt.Println("end of input")
	return scan.Err()
}

// tty says whether stdin is a terminal, and its size.
func tty([]string) error {
	size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		fmt.Println("terminal false")
		return nil
	}
	fmt.Println("terminal true", size.Col, size.Row)
	return nil
}

// spawn leaves a child behind that holds stdout open, and ends.
func spawn(args []string) error {
	_, err := os.StartProcess("/proc/self/exe", []string{"guest", "sleep", arg(args, 0, "1h")}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	return err
}

// breed makes a child in a session of its own that holds stdout open, and stays
// as long. The child is this program's sleep, or another command of it.
func breed(args []string) error {
	attr := &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true}}
	_, err := os.StartProcess("/proc/self/exe", []string{"guest", arg(args, 1, "sleep"), arg(args, 0, "1h")}, attr)
	if err != nil {
		return err
	}
	fmt.Println("bred")
	return sleep(args)
}

// winsize waits until its terminal has a size.
func winsize(args []string) error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	for {
		size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		if now := fmt.Sprintf("%dx%d", size.Col, size.Row); now == arg(args, 0, "") {
			fmt.Println("the terminal is", now)
			return nil
		}
		<-changed
	}
}
