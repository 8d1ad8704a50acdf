package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// List is a network configuration list, complete: every plugin is in it.
type List struct {
	Name, CNIVersion string

	disableCheck, disableGC bool
	plugins                 []plugin
	raw                     []byte
}

type plugin struct {
	kind         string // its type
	capabilities map[string]bool
	raw          object
}

// flag is a boolean that older lists write as a string.
type flag bool

func (f *flag) UnmarshalJSON(text []byte) error {
	switch strings.ToLower(strings.Trim(string(text), `"`)) {
	case "true":
		*f = true
	case "false", "null":
		*f = false
	default:
		return fmt.Errorf("%.16s is neither true nor false", text)
	}
	return nil
}

// ParseList reads a list as package cni writes it: the version is chosen, and
// the plugins are inline.
func ParseList(data []byte) (*List, error) {
	var in struct {
		Name         string   `json:"name"`
		CNIVersion   string   `json:"cniVersion"`
		DisableCheck flag     `json:"disableCheck"`
		DisableGC    flag     `json:"disableGC"`
		Plugins      []object `json:"plugins"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, err
	}
	if !ValidName(in.Name) {
		return nil, fmt.Errorf("network name %.64q is not valid", in.Name)
	}
	if in.CNIVersion == "" {
		in.CNIVersion = "0.1.0"
	}
	l := &List{Name: in.Name, CNIVersion: in.CNIVersion, disableCheck: bool(in.DisableCheck), disableGC: bool(in.DisableGC), raw: data}
	for i, raw := range in.Plugins {
		p := plugin{raw: raw}
		if err := json.Unmarshal(raw["type"], &p.kind); err != nil || p.kind == "" {
			return nil, fmt.Errorf("plugin %d of network %q has no type", i, l.Name)
		}
		if text, ok := raw["capabilities"]; ok {
			if err := json.Unmarshal(text, &p.capabilities); err != nil {
				return nil, fmt.Errorf("capabilities of plugin %s: %w", p.kind, err)
			}
		}
		l.plugins = append(l.plugins, p)
	}
	if len(l.plugins) == 0 {
		return nil, errors.New("no plugins in the list")
	}
	return l, nil
}

// ValidName says that a container id or the name of a network may be one: it
// begins with a letter or a digit, and has beside those only "_", "." and "-".
func ValidName(name string) bool {
	for i, c := range []byte(name) {
		alphanumeric := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alphanumeric && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return name != ""
}

// validInterface is the kernel's rule for the names of interfaces
// (dev_valid_name).
func validInterface(name string) bool {
	const maxName = 15 // IFNAMSIZ, less the end
	return name != "" && len(name) <= maxName && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) })
}

// BuiltInType reports whether plugins of a type run inside our own process, see
// package plugin.
func BuiltInType(name string) bool {
	switch name {
	case "bridge", "host-local", "loopback", "portmap":
		return true
	}
	return false
}
