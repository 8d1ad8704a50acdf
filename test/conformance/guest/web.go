package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

// pidFile is where critest waits for nginx.
const pidFile = "/var/run/nginx.pid"

func nginx(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return err
	}
	return serve(l)
}

func httpd(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "AH00094: Command line: 'httpd -D FOREGROUND'")
	return serve(l)
}

func serve(l net.Listener) error {
	page := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "<html><body><h1>It works!</h1></body></html>")
	}
	return http.Serve(l, http.HandlerFunc(page))
}
