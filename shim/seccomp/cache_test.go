package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// cached gives the one file of a cache.
func cached(t *testing.T, dir string) string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files of the cache: %v, %v", files, err)
	}
	return filepath.Join(dir, files[0].Name())
}

func TestProgramsAreCached(t *testing.T) {
	p := defaultProfile(t)
	want, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "cache")
	for _, when := range []string{"first", "second"} {
		got, err := Load(dir, text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s load differs: %v", when, err)
		}
		cached(t, dir)
	}
	if sum := sha256.Sum256(text); filepath.Base(cached(t, dir)) != hex.EncodeToString(sum[:]) {
		t.Errorf("the file is %s", cached(t, dir))
	}
	// It is the file that is used.
	other := &Filter{Program: want.Program[:1], Flags: 4}
	if err := os.WriteFile(cached(t, dir), other.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(dir, text); err != nil || !reflect.DeepEqual(got, other) {
		t.Errorf("load of a changed file: %+v, %v", got, err)
	}
}

func TestDamagedProgramIsCompiledAnew(t *testing.T) {
	p := defaultProfile(t)
	want, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	good := want.encode()
	flip := func(at int) []byte {
		bad := append([]byte(nil), good...)
		bad[at] ^= 1
		return bad
	}
	for name, data := range map[string][]byte{
		"empty": {}, "short": good[:len(good)-1], "half": good[:len(good)/2], "long": append(append([]byte(nil), good...), 0),
		"header": flip(3), "flags": flip(len(cacheHeader)), "program": flip(len(good) / 2), "checksum": flip(len(good) - 1),
		"huge": make([]byte, 1<<20),
	} {
		dir := t.TempDir()
		if _, err := Load(dir, text); err != nil {
			t.Fatal(err)
		}
		file := cached(t, dir)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(dir, text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(file); err != nil || string(after) != string(good) {
			t.Errorf("%s: the file was not replaced: %v", name, err)
		}
	}
}

func TestLoadRefusesWhatCompileDoes(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{`{"defaultAction":"NO"}`, `{"defaultAction":1}`, `{`, `[]`} {
		if f, err := Load(dir, []byte(text)); err == nil {
			t.Errorf("%s: %+v", text, f)
		}
	}
	for _, text := range []string{"", `null`, `{}`} {
		if f, err := Load(dir, []byte(text)); err != nil || f != nil {
			t.Errorf("%s: %+v, %v", text, f, err)
		}
	}
	if f, err := Load("/proc/no/such", []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)); err != nil || f == nil {
		t.Errorf("a cache that cannot be: %+v, %v", f, err)
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("cached: %v", files)
	}
}

// TestCacheKnowsItsCompiler: a change of what profiles are compiled to needs
// another number in cacheHeader, and then another sum here.
func TestCacheKnowsItsCompiler(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the sum is that of amd64")
	}
	f, err := Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "write", "openat", "futex", "connect", "shmat", "mmap2"}, Action: specs.ActAllow},
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpMaskedEqual, 0x7e020000, 0)}},
			{Names: []string{"personality"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(0, specs.OpGreaterThan, 1<<33, 0)}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(f.encode())
	if got, want := hex.EncodeToString(sum[:8]), "fb579cdfa5b6bed8"; got != want {
		t.Errorf("a profile is compiled to %s, and was to %s with the same number in cacheHeader", got, want)
	}
}

func FuzzDecodeFilter(f *testing.F) {
	p, err := Compile(defaultProfile(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.encode())
	f.Add([]byte(cacheHeader))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := decodeFilter(data); err == nil && string(p.encode()) != string(data) {
			t.Error("read back otherwise")
		}
	})
}
