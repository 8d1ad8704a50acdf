package leanjson

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", "a\"b\\c", "\x00\x1f\x7f\n", "é€😀", "\xff\xc3", "\xed\xb3\xbf"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := AppendString(nil, s)
		if !json.Valid(text) {
			t.Fatalf("%q: %s", s, text)
		}
		var got, std string
		if err := Unmarshal(text, &got); err != nil || got != s {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
		if err := json.Unmarshal(text, &std); utf8.ValidString(s) && (err != nil || std != s) {
			t.Errorf("%q is %q to encoding/json, %v", s, std, err)
		}
	})
}
