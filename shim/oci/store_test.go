package oci

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/longshore/longshore/internal/leanjson"
)

// TestRecordComesBack: every field, also one that is added later.
func TestRecordComesBack(t *testing.T) {
	full := record{
		Version: "1.2.3", ID: "a", Pid: 7, Started: 1 << 60, Bundle: "/b\"\n", Rootfs: "/r\xff", Created: "2026-01-01T00:00:00Z", Owner: 5,
		Cgroup: "/c", Scope: "s.scope", NoProcess: true, Annotations: map[string]string{"x": "y", "a b": "", "é": "\\"},
	}
	for i, v := 0, reflect.ValueOf(full); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("field %s is not tested", v.Type().Field(i).Name)
		}
	}
	for _, want := range []record{full, {Annotations: map[string]string{}}} {
		text := want.encode()
		var got record
		if err := leanjson.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s came back as %+v, %v", text, got, err)
		}
		if !json.Valid(text) {
			t.Errorf("no JSON: %s", text)
		}
	}
}
