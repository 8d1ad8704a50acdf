package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPackIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	guest := filepath.Join(dir, "guest")
	if err := os.WriteFile(guest, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	var archives [2][]byte
	for i := range archives {
		out := filepath.Join(dir, "image.tar")
		if err := pack(guest, out); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if string(archives[0]) != string(archives[1]) || len(archives[0]) == 0 {
		t.Error("two archives of the same program differ")
	}
}
