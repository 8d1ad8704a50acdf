package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// logger appends to the file of --log, which callers read for the reason of a
// failure. Without a file it is silent: errors go to standard error anyway.
type logger struct {
	path, format string
	debug        bool
}

func (l *logger) write(level, message string) {
	if l.path == "" || level == "debug" && !l.debug {
		return
	}
	now := time.Now().Format(time.RFC3339)
	var line []byte
	if l.format == "json" {
		line, _ = json.Marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, message, now})
		line = append(line, '\n')
	} else {
		line = fmt.Appendf(nil, "time=%q level=%s msg=%q\n", now, level, message)
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "longshore-shim: log:", err)
		return
	}
	defer f.Close()
	if _, err := f.Write(line); err != nil {
		fmt.Fprintln(os.Stderr, "longshore-shim: log:", err)
	}
}

// warn tells what went wrong without stopping the command.
func (c *cli) warn(err error) {
	if err == nil {
		return
	}
	c.log.write("warning", err.Error())
	fmt.Fprintln(c.err, "warning:", err)
}
