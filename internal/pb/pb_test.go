package pb

import (
	"bytes"
	"reflect"
	"testing"
)

type inner struct {
	S string `pb:"1"`
	N int64  `pb:"2"`
}

type outer struct {
	B    bool              `pb:"1"`
	I    int32             `pb:"2"`
	U    uint64            `pb:"3"`
	S    string            `pb:"4"`
	P    []byte            `pb:"5"`
	In   *inner            `pb:"6"`
	Ins  []*inner          `pb:"7"`
	Strs []string          `pb:"8"`
	M    map[string]string `pb:"9"`
}

func full() *outer {
	return &outer{B: true, I: -3, U: 1 << 40, S: "é", P: []byte{0, 1}, In: &inner{"x", -1},
		Ins: []*inner{{"a", 1}, {}}, Strs: []string{"", "b"}, M: map[string]string{"k": "v", "": ""}}
}

func TestRoundTrip(t *testing.T) {
	for _, want := range []*outer{full(), {}} {
		var got outer
		if err := Unmarshal(Marshal(want), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	var got inner
	if err := Unmarshal(Marshal(full()), &struct {
		S string `pb:"4"`
	}{}); err != nil {
		t.Error(err)
	}
	// Field 9 as a fixed64 and field 10 as a fixed32, then field 1.
	b := []byte{9<<3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, 10<<3 | 5, 0, 0, 0, 0, 1<<3 | 2, 1, 'x'}
	if err := Unmarshal(b, &got); err != nil || got.S != "x" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestMalformedIsAnError(t *testing.T) {
	for _, b := range [][]byte{{0}, {8}, {1<<3 | 2, 5, 'x'}, {1<<3 | 3}, {1 << 3, 1}, {0xff}} {
		if err := Unmarshal(b, &inner{}); err == nil {
			t.Errorf("% x was accepted", b)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(Marshal(full()))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v, again outer
		if Unmarshal(b, &v) != nil {
			return
		}
		first := Marshal(&v)
		if err := Unmarshal(first, &again); err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
		if !bytes.Equal(first, Marshal(&again)) {
			t.Error("a second round trip differs")
		}
	})
}
