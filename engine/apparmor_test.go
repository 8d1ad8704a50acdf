package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestHasAppArmorProfile(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(list, []byte("longshore-default-not (enforce)\n/usr/bin/man (enforce)\nodd (x) (complain)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"longshore-default": false, "longshore-default-not": true, "/usr/bin/man": true, "odd (x)": true, "": false} {
		if got, err := hasAppArmorProfile(list, name); got != want || err != nil {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

func TestAppArmorOfContainers(t *testing.T) {
	without := appArmor{profile: DefaultAppArmorProfile}
	if name, err := without.name(t.Context()); name != "" || err != nil {
		t.Errorf("a kernel without AppArmor: %q, %v", name, err)
	}
	if err := without.check(Profile{Kind: ProfileLocalhost, Name: "mine"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a profile that a kernel without AppArmor cannot have: %v", err)
	}
	for _, p := range []Profile{{}, {Kind: ProfileDefault}, {Kind: ProfileUnconfined}, {Kind: ProfileLocalhost, Name: "unconfined"}} {
		if err := without.check(p); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for profile, want := range map[string]string{"unconfined": "", "other": "other"} {
		a := appArmor{enabled: true, profile: profile}
		if name, err := a.name(t.Context()); name != want || err != nil {
			t.Errorf("%s: %q, %v", profile, name, err)
		}
	}
	// What cannot be loaded is tried once.
	a := appArmor{enabled: true, profile: DefaultAppArmorProfile, failed: os.ErrNotExist}
	if name, err := a.name(t.Context()); name != "" || err != nil {
		t.Errorf("after a failure: %q, %v", name, err)
	}
}
