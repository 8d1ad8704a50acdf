package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPackIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	guest, err := os.Executable() // any program
	if err != nil {
		t.Fatal(err)
	}
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(dir, "image.tar")
		if err := pack(guest, out); err != nil {
			t.Fatal(err)
		}
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if string(archives[0]) != string(archives[1]) || len(archives[0]) == 0 {
		t.Error("two archives of the same program differ")
	}
}

func TestPackWantsAProgram(t *testing.T) {
	dir := t.TempDir()
	guest := filepath.Join(dir, "guest")
	if err := os.WriteFile(guest, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := pack(guest, filepath.Join(dir, "image.tar")); err == nil || !strings.Contains(err.Error(), guest) {
		t.Errorf("%v", err)
	}
}
