package criu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func program(t *testing.T, script string) (*Program, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(path, filepath.Join(t.TempDir(), "bin")), path
}

const good = `[ "$1" != --version ] || echo 'Version: 3.19'` + "\n"

func TestUsable(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"good":         {good, ""},
		"old":          {"echo 'Version: 3.15.1'", "3.15, and 3.16 is the oldest"},
		"stranger":     {"echo hello", `says "hello`},
		"not for this": {good + `[ "$1" = --version ] || { echo "(0.1) Error (a.c:1): no"; exit 3; }`, "exit status 3: Error (a.c:1): no"},
	} {
		p, _ := program(t, c.script)
		_, err := p.Usable(context.Background())
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := New("no-such-criu", "").Usable(context.Background()); !errors.Is(err, ErrUnusable) {
		t.Errorf("no program: %v", err)
	}
}

func TestUsableNoticesAnotherFile(t *testing.T) {
	p, path := program(t, "echo 'Version: 2.0'")
	if _, err := p.Usable(context.Background()); err == nil {
		t.Fatal("an old one is usable")
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+good), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Usable(context.Background()); err != nil {
		t.Error(err)
	}
	if got := p.Version(); !strings.HasPrefix(got, "criu 3.19 (/") {
		t.Error(got)
	}
}

func TestSaveGivesUpInTime(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	p, _ := program(t, good+`case $1 in dump) while [ -d `+images+` ]; do sleep 0.01; done; touch `+dir+`/right; exit 1 ;; esac`)
	if _, err := p.Usable(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, errors.New("too long"))
	defer cancel()
	err := p.Save(ctx, Dump{Images: images, Work: dir})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "right")); err != nil {
		t.Error("criu could not put things right:", err)
	}
}

func TestSettleEndsWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, outFile))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	left := exec.Command("sh", "-c", `while [ -d "$0" ]; do sleep 0.01; done; exit 7`, images)
	left.Stdout = out
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	if err := Settle(images, dir); err != nil {
		t.Error(err)
	}
	if err := left.Wait(); err == nil || left.ProcessState.ExitCode() != 7 {
		t.Errorf("it ended otherwise: %v", err)
	}
	if err := Settle(images, t.TempDir()); err != nil {
		t.Error("nothing was left:", err)
	}
}

func TestSaveQuotesTheLog(t *testing.T) {
	dir := t.TempDir()
	log := "(0.1) fine\n(0.2) Error (x.c:7): cannot\n"
	if err := os.WriteFile(filepath.Join(dir, DumpLog), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	p, _ := program(t, good+`case $1 in dump) exit 1 ;; esac`)
	err := p.Save(context.Background(), Dump{Images: dir, Work: dir})
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 1: Error (x.c:7): cannot") {
		t.Error(err)
	}
}

func TestTheNetworkIsLeftAlone(t *testing.T) {
	if got := networkLock([2]int{4, 0}); !slices.Equal(got, []string{"--network-lock", "skip"}) {
		t.Error(got)
	}
	if got := networkLock([2]int{3, 18}); got != nil {
		t.Error(got)
	}
	for version, found := range map[string]bool{"3.18": true, "3.19": false} {
		dir := t.TempDir()
		p, _ := program(t, `case $1 in
--version) echo 'Version: `+version+`' ;;
dump) command -v ip6tables-restore >`+dir+`/found; true ;;
esac
exit 0`)
		if err := p.Save(context.Background(), Dump{Images: dir, Work: dir}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "found"))
		if ours := strings.HasPrefix(string(got), p.dir); ours != found || err != nil {
			t.Errorf("criu %s finds %q, %v", version, got, err)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("(00.1) Error (a.c:1): x\nError (b")
	f.Fuzz(func(_ *testing.T, log string) { _ = quote(log) })
}
