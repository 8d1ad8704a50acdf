package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestPgrep(t *testing.T) {
	proc := t.TempDir()
	for pid, name := range map[string]string{"1": "sh\n", "7": "sleep\n", "8": "top\n"} {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "comm"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := pgrep(proc, []string{"sleep"}, &out); err != nil || out.String() != "7\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	out.Reset()
	if err := pgrep(proc, []string{"nginx"}, &out); !errors.Is(err, errNoMatch) || out.Len() > 0 {
		t.Errorf("no process matches: got %q, %v", out.String(), err)
	}
	if err := pgrep(proc, nil, &out); err == nil {
		t.Error("no pattern: no error")
	}
}

func TestIpcs(t *testing.T) {
	table := filepath.Join(t.TempDir(), "shm")
	text := "       key      shmid perms                  size  cpid  lpid\n 1234567          9   644               1048576  77  0\n"
	if err := os.WriteFile(table, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	want := "\n------ Shared Memory Segments --------\nkey        shmid      perms      bytes\n1234567    9          644        1048576\n"
	if err := ipcs(table, &out); err != nil || out.String() != want {
		t.Errorf("got %q, %v, want %q", out.String(), err, want)
	}
}

func TestPort(t *testing.T) {
	for want, args := range map[string][]string{"80": {"nginx"}, "12003": {"nginx", "12003"}} {
		if got := port(args); got != want {
			t.Errorf("port of %q: got %s, want %s", args, got, want)
		}
	}
}
