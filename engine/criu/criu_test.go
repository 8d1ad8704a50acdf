package criu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"github.com/longshore/longshore/engine/criu/criutest"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	criutest.Main()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else each criu with the race detector ends a second later
	os.Exit(m.Run())
}

// program is a criu in a mode of criutest.
func program(t *testing.T, mode string) (p *Program, dir string) {
	t.Helper()
	dir = t.TempDir()
	path, err := criutest.Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "criu.mode"), []byte(mode), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(path, filepath.Join(t.TempDir(), "bin")), dir
}

// stranger is a program that is no criu.
func stranger(t *testing.T) (p *Program, dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho hello\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(path, filepath.Join(t.TempDir(), "bin")), dir
}

func TestUsable(t *testing.T) {
	for name, c := range map[string]struct{ mode, want string }{
		"good":         {"", ""},
		"old":          {"3.15", "3.15, and 3.16 is the oldest"},
		"stranger":     {"", `says "hello`},
		"not for this": {"bad", "exit status 1: Error (vdso.c:1): no symbols"},
	} {
		p, _ := program(t, c.mode)
		if name == "stranger" {
			p, _ = stranger(t)
		}
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
	p, dir := stranger(t)
	if _, err := p.Usable(context.Background()); err == nil {
		t.Fatal("a stranger is usable")
	}
	if _, err := criutest.Install(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Usable(context.Background()); err != nil {
		t.Error(err)
	}
	if got := p.Version(); !strings.HasPrefix(got, "criu 3.17 (/") {
		t.Error(got)
	}
}

// waitFor returns when a file is there, or when the test is over.
func waitFor(t *testing.T, path string) {
	for t.Context().Err() == nil {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSaveGivesUpInTime(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	p, node := program(t, "patient")
	if _, err := p.Usable(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		waitFor(t, filepath.Join(images, "core-1.img"))
		cancel(errors.New("too long"))
	}()
	err := p.Save(ctx, Dump{Images: images, Work: dir})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(node, "criu.right")); err != nil {
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
	p, _ := program(t, "fail")
	err := p.Save(context.Background(), Dump{Images: dir, Work: dir})
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 1: Error (boom.c:1): it went wrong") {
		t.Error(err)
	}
}

func TestTheNetworkIsLeftAlone(t *testing.T) {
	for version, want := range map[string]string{"3.18": "network lock IPTABLES\nip6tables-restore OURS", "3.19": "network lock SKIP\n", "4.0": "network lock SKIP\n"} {
		dir := t.TempDir()
		p, node := program(t, version)
		if err := p.Save(context.Background(), Dump{Images: dir, Work: dir}); err != nil {
			t.Fatal(err)
		}
		seen, err := os.ReadFile(filepath.Join(node, "criu.seen"))
		want = strings.Replace(want, "OURS", p.dir, 1)
		if err != nil || !strings.Contains(string(seen), want) {
			t.Errorf("criu %s sees %q, want %q, %v", version, seen, want, err)
		}
		if ours := strings.Contains(string(seen), p.dir); ours != (version == "3.18") {
			t.Errorf("criu %s finds %q", version, seen)
		}
	}
}

func TestRestoreOptionsAreCommon(t *testing.T) {
	p, _ := program(t, "")
	text, err := p.RestoreOptions(Restore{Root: "/root", External: []string{"mnt[/a]:/b"}, Inherit: []Inherited{{7, "net"}}, Join: []Joined{{"uts", "/pin"}}})
	if err != nil {
		t.Fatal(err)
	}
	var opts rpc.CriuOpts
	if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(text, &opts); err != nil {
		t.Fatal(err)
	}
	if opts.ImagesDirFd != nil || opts.WorkDirFd != nil {
		t.Error("the directories are the shim's to name")
	}
	if !opts.GetRstSibling() || !opts.GetTcpClose() || opts.GetManageCgroupsMode() != rpc.CriuCgMode_IGNORE || opts.GetRoot() != "/root" ||
		opts.GetInheritFd()[0].GetFd() != 7 || opts.GetInheritFd()[0].GetKey() != "net" || opts.GetJoinNs()[0].GetNsFile() != "/pin" {
		t.Error(opts.String())
	}
}

func FuzzQuote(f *testing.F) {
	f.Add("(00.1) Error (a.c:1): x\nError (b")
	f.Fuzz(func(_ *testing.T, log string) { _ = quote(log) })
}
