package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// readKnown reads the list of known failures.
func readKnown(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	known, err := parseKnown(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return known, nil
}

// parseKnown gives the reasons by program: "name # reason" on each line.
func parseKnown(r io.Reader) (map[string]string, error) {
	known := map[string]string{}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, "#")
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		if reason == "" {
			return nil, fmt.Errorf("line %d: no reason after #", number)
		}
		if _, twice := known[name]; twice {
			return nil, fmt.Errorf("line %d: %s is listed twice", number, name)
		}
		known[name] = reason
	}
	return known, lines.Err()
}
