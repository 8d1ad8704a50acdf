package leanjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

type sample struct {
	Text    string            `json:"text"`
	Int     *int8             `json:"int,omitempty"`
	Uint    uint16            `json:"uint"`
	Float   float64           `json:"float"`
	Flag    bool              `json:"flag"`
	List    []string          `json:"list"`
	Nested  []sample          `json:"nested"`
	Map     map[string]sample `json:"map"`
	Plain   int
	Hidden  string `json:"-"`
	private int
	embedded
}

type embedded struct {
	Inner string `json:"inner"`
	Text  string `json:"text"`
}

var samples = []string{
	`{}`, `null`, ` { "text" : "x" , "int" : -128 } `, `{"text":null,"int":null,"list":null}`,
	`{"list":[],"nested":[{"text":"a","nested":[{}]},{"uint":65535}],"map":{"k":{"flag":true},"l":{}}}`,
	`{"text":"\u00e9\ud83d\ude00\n\"\\\/ \ud800 x","inner":"i","Plain":7,"unknown":[{"a":[1,2.5e-3,true,false,null,"s"]}]}`,
	"{\"text\":\"b\xc3\x28d é\",\"float\":1.5e3}", `{"text":"a","text":"b","int":1,"int":2}`,
	// no JSON, or of another type
	``, `{`, `{"text"}`, `{"text":}`, `{"text":"x",}`, `[1,]`, `{"text":"x"} x`, `{"text":1}`, `{"int":128}`, `{"int":1.0}`, `{"uint":-1}`,
	`{"flag":"true"}`, `{"list":{}}`, `{"list":"x"}`, `{"map":[]}`, `{"text":"\x"}`, `{"text":"\u12"}`, "{\"text\":\"a\tb\"}", `{"int":01}`, `{"int":1.}`,
	`{"int":-}`, `{"float":1e}`, `tru`, `{"flag":tru}`, `"x`, `{"text":"`, `{"nested":[{]}`, `{"private":1,"Hidden":"h","-":"x"}`,
}

// same checks that what encoding/json reads is read alike, and what it refuses
// is refused.
func same[T any](t *testing.T, data []byte) {
	t.Helper()
	var want, got T
	wantErr, err := json.Unmarshal(data, &want), Unmarshal(data, &got)
	if (wantErr == nil) != (err == nil) {
		t.Errorf("%q: %v, encoding/json says %v", data, err, wantErr)
	}
	if err != nil && !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrType) {
		t.Errorf("%q: %v", data, err)
	}
	if wantErr == nil && err == nil && !reflect.DeepEqual(got, want) {
		t.Errorf("%q: %+v, encoding/json reads %+v", data, got, want)
	}
}

func TestReadsAsEncodingJSON(t *testing.T) {
	for _, s := range samples {
		same[sample](t, []byte(s))
	}
	same[specs.Spec](t, []byte(`{"ociVersion":"1.2.0","process":{"user":{"uid":1,"additionalGids":[1,2]},"args":["a"],"cwd":"/"},
		"linux":{"devices":[{"path":"/d","type":"c","major":1,"minor":3,"fileMode":438}],"resources":{"blockIO":{"weightDevice":[
		{"major":8,"minor":0,"weight":5}]},"unified":{"a":"b"}},"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1}},
		"windows":{"layerFolders":["x"]},"annotations":{"k":"v"}}`))
}

func TestLoneSurrogatesAreBytes(t *testing.T) {
	for in, want := range map[string]string{`"caf\udce9"`: "caf\xe9", `"\uDC80\udcff"`: "\x80\xff", `"\udc7f\udd00"`: "\ufffd\ufffd", `"\ud83d\ude00"`: "\U0001F600",
		`"\ud800\udcff"`: "\U000100ff"} {
		var got string
		if err := Unmarshal([]byte(in), &got); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestRawIsKept(t *testing.T) {
	var v struct {
		A Raw `json:"a"`
		B Raw `json:"b"`
	}
	if err := Unmarshal([]byte(`{"a": {"x": [1, "}"]} , "b":null}`), &v); err != nil || string(v.A) != `{"x": [1, "}"]}` || string(v.B) != "null" {
		t.Errorf("%q %q %v", v.A, v.B, err)
	}
}

func TestNestingIsBounded(t *testing.T) {
	for _, data := range []string{strings.Repeat("[", 1<<20), `{"nested":` + strings.Repeat(`[{"nested":`, 1<<16), `{"x":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`} {
		var v sample
		if err := Unmarshal([]byte(data), &v); err == nil {
			t.Errorf("%.20q is read", data)
		}
	}
}

func TestErrorsNameThePlace(t *testing.T) {
	var v sample
	if err := Unmarshal([]byte(`{"nested":[{},{"uint":"x"}]}`), &v); err == nil || !strings.Contains(err.Error(), "nested: 1: uint: value of another type") {
		t.Errorf("error: %v", err)
	}
	if err := Unmarshal(nil, v); !errors.Is(err, ErrType) {
		t.Errorf("into no pointer: %v", err)
	}
}

// FuzzReadsAsEncodingJSON: names that differ in case only are encoding/json's
// own, and so is a depth beyond ours.
func FuzzReadsAsEncodingJSON(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if deep(data) || strings.ContainsAny(string(data), "ſK") || oddCase(data) || strings.Contains(strings.ToLower(string(data)), `\udc`) {
			var v sample
			_ = Unmarshal(data, &v)
			return
		}
		same[sample](t, data)
	})
}

func deep(data []byte) bool {
	return strings.Count(string(data), "[")+strings.Count(string(data), "{") > maxDepth
}

// oddCase says whether a name may be one that encoding/json takes for another,
// or an element may be one that it decodes over an earlier one.
func oddCase(data []byte) bool {
	var any any
	if json.Unmarshal(data, &any) != nil {
		return false
	}
	lower := strings.ToLower(string(data))
	for _, name := range []string{"text", "int", "uint", "float", "flag", "list", "nested", "map", "plain", "inner"} {
		want := name
		if name == "plain" {
			want = "Plain"
		}
		if strings.Count(lower, `"`+name+`"`) != strings.Count(string(data), `"`+want+`"`) || strings.Count(lower, `"`+name+`"`) > 1 {
			return true
		}
	}
	return strings.Contains(lower, `\`)
}
