package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/leanjson"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// An environment variable's value is bytes (CRI 1.36), and JSON is UTF-8. A byte
// that is no UTF-8 is written as the lone surrogate U+DC00+byte, as Python's
// PEP 383 has it: valid JSON, that [leanjson] reads back, in the shim as well, and
// that every other reader shows as a replacement character.

// bytesEnv is an environment that survives JSON.
type bytesEnv []string

func (e bytesEnv) MarshalJSON() ([]byte, error) {
	out := []byte("[")
	for i, entry := range e {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '"')
		for len(entry) > 0 {
			r, size := utf8.DecodeRuneInString(entry)
			if r == utf8.RuneError && size == 1 {
				out = fmt.Appendf(out, `\udc%02x`, entry[0])
				entry = entry[1:]
				continue
			}
			text, err := json.Marshal(entry[:size])
			if err != nil {
				return nil, err
			}
			out, entry = append(out, text[1:len(text)-1]...), entry[size:]
		}
		out = append(out, '"')
	}
	return append(out, ']'), nil
}

// The outer field hides the one of the same name that is embedded.
type (
	bytesProcess struct {
		*specs.Process
		Env bytesEnv `json:"env,omitempty"`
	}
	bytesSpec struct {
		*specs.Spec
		Process bytesProcess `json:"process"`
	}
)

func isUTF8(entry string) bool { return utf8.ValidString(entry) }

// encodable gives what to encode for a process.
func encodable(p *specs.Process) any {
	if p == nil || !slices.ContainsFunc(p.Env, func(s string) bool { return !isUTF8(s) }) {
		return p
	}
	return &bytesProcess{p, p.Env}
}

// writeSpec writes a container's specification for its shim.
func (e *Engine) writeSpec(id string, spec *specs.Spec) error {
	var v any = spec
	if p, ok := encodable(spec.Process).(*bytesProcess); ok {
		v = &bytesSpec{spec, *p}
	}
	return atomicfile.WriteJSON(filepath.Join(e.cfg.containerDir(id), configFile), v, atomicfile.Volatile)
}

// readSpec reads what [Engine.writeSpec] wrote.
func (e *Engine) readSpec(id string) (*specs.Spec, error) {
	path := filepath.Join(e.cfg.containerDir(id), configFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := leanjson.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &spec, nil
}

// textEnv gives an environment for those who take only text.
func textEnv(env []string) []string {
	out := slices.Clone(env)
	for i, entry := range out {
		out[i] = strings.ToValidUTF8(entry, string(utf8.RuneError))
	}
	return out
}
