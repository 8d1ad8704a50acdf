// Package pb encodes and decodes protobuf messages that are plain Go structs.
//
// The shim speaks containerd's protobuf wire without linking the protobuf
// runtime, whose descriptors and registries would cost each shim hundreds of
// KiB of private memory. A field carries its number in a tag, `pb:"3"`; the
// encodings are those of proto3 (https://protobuf.dev/programming-guides/encoding):
// integers, bool and enums as varints, string, []byte, nested *struct,
// repeated string, bytes and *struct, and map[string]string. Unknown fields
// are skipped, so both sides may be newer than the other.
package pb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// Wire types of the encoding.
const (
	typeVarint  = 0
	typeFixed64 = 1
	typeBytes   = 2
	typeFixed32 = 5
)

// maxDepth bounds nesting, so that a hostile message cannot exhaust the stack.
const maxDepth = 16

// ErrMalformed says that the bytes are not a message of the wanted shape.
var ErrMalformed = errors.New("malformed protobuf message")

// Marshal encodes the struct that msg points to.
func Marshal(msg any) []byte { return appendStruct(nil, reflect.ValueOf(msg).Elem()) }

func appendStruct(b []byte, v reflect.Value) []byte {
	for i := range v.NumField() {
		if num := fieldNumber(v.Type().Field(i)); num != 0 {
			b = appendField(b, num, v.Field(i))
		}
	}
	return b
}

func fieldNumber(f reflect.StructField) uint64 {
	num, _ := strconv.ParseUint(f.Tag.Get("pb"), 10, 29)
	return num
}

// appendField leaves out zero values, as proto3 does.
func appendField(b []byte, num uint64, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			b = append(appendTag(b, num, typeVarint), 1)
		}
	case reflect.Int32, reflect.Int64:
		if n := v.Int(); n != 0 {
			b = binary.AppendUvarint(appendTag(b, num, typeVarint), uint64(n))
		}
	case reflect.Uint32, reflect.Uint64:
		if n := v.Uint(); n != 0 {
			b = binary.AppendUvarint(appendTag(b, num, typeVarint), n)
		}
	case reflect.String:
		if v.Len() > 0 {
			b = appendString(b, num, v.String())
		}
	case reflect.Pointer:
		if !v.IsNil() {
			b = appendBytes(b, num, appendStruct(nil, v.Elem()))
		}
	case reflect.Map:
		b = appendMap(b, num, v)
	case reflect.Slice:
		b = appendSlice(b, num, v)
	default:
		panic("pb: no encoding for " + v.Type().String())
	}
	return b
}

func appendSlice(b []byte, num uint64, v reflect.Value) []byte {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		if v.Len() > 0 {
			b = appendBytes(b, num, v.Bytes())
		}
		return b
	}
	for i := range v.Len() {
		switch e := v.Index(i); e.Kind() {
		case reflect.String:
			b = appendString(b, num, e.String())
		case reflect.Pointer:
			b = appendBytes(b, num, appendStruct(nil, e.Elem()))
		default:
			panic("pb: no encoding for " + v.Type().String())
		}
	}
	return b
}

func appendMap(b []byte, num uint64, v reflect.Value) []byte {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int {
		return compare(a.String(), b.String())
	})
	for _, k := range keys {
		entry := appendString(nil, 1, k.String())
		b = appendBytes(b, num, appendString(entry, 2, v.MapIndex(k).String()))
	}
	return b
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func appendTag(b []byte, num, wire uint64) []byte { return binary.AppendUvarint(b, num<<3|wire) }

func appendBytes(b []byte, num uint64, p []byte) []byte {
	b = binary.AppendUvarint(appendTag(b, num, typeBytes), uint64(len(p)))
	return append(b, p...)
}

func appendString(b []byte, num uint64, s string) []byte {
	b = binary.AppendUvarint(appendTag(b, num, typeBytes), uint64(len(s)))
	return append(b, s...)
}

// Unmarshal decodes b into the struct that msg points to. Byte fields are
// copies: b may be used again.
func Unmarshal(b []byte, msg any) error {
	v := reflect.ValueOf(msg).Elem()
	if err := decodeStruct(b, v, 0); err != nil {
		return fmt.Errorf("%s: %w", v.Type().Name(), err)
	}
	return nil
}

func decodeStruct(b []byte, v reflect.Value, depth int) error {
	if depth > maxDepth {
		return ErrMalformed
	}
	fields := map[uint64]reflect.Value{}
	for i := range v.NumField() {
		if num := fieldNumber(v.Type().Field(i)); num != 0 {
			fields[num] = v.Field(i)
		}
	}
	for len(b) > 0 {
		num, wire, n, p, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		if f, ok := fields[num]; ok {
			if err := setField(f, wire, n, p, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// next splits the first field off b: a number n or a payload p, by wire type.
func next(b []byte) (num, wire, n uint64, p, rest []byte, err error) {
	tag, size := binary.Uvarint(b)
	if size <= 0 || tag>>3 == 0 {
		return 0, 0, 0, nil, nil, ErrMalformed
	}
	num, wire, b = tag>>3, tag&7, b[size:]
	switch wire {
	case typeVarint, typeBytes:
		n, size = binary.Uvarint(b)
		if size <= 0 {
			return 0, 0, 0, nil, nil, ErrMalformed
		}
		b = b[size:]
		if wire == typeBytes {
			if n > uint64(len(b)) {
				return 0, 0, 0, nil, nil, ErrMalformed
			}
			p, b = b[:n], b[n:]
		}
	case typeFixed64, typeFixed32:
		size = 8
		if wire == typeFixed32 {
			size = 4
		}
		if len(b) < size {
			return 0, 0, 0, nil, nil, ErrMalformed
		}
		b = b[size:]
	default:
		return 0, 0, 0, nil, nil, ErrMalformed
	}
	return num, wire, n, p, b, nil
}

func setField(f reflect.Value, wire, n uint64, p []byte, depth int) error {
	wantBytes := f.Kind() == reflect.String || f.Kind() == reflect.Pointer || f.Kind() == reflect.Map || f.Kind() == reflect.Slice
	if wantBytes != (wire == typeBytes) || !wantBytes && wire != typeVarint {
		return ErrMalformed
	}
	switch f.Kind() {
	case reflect.Bool:
		f.SetBool(n != 0)
	case reflect.Int32:
		f.SetInt(int64(int32(n)))
	case reflect.Int64:
		f.SetInt(int64(n))
	case reflect.Uint32:
		f.SetUint(uint64(uint32(n)))
	case reflect.Uint64:
		f.SetUint(n)
	case reflect.String:
		f.SetString(string(p))
	case reflect.Pointer:
		if f.IsNil() {
			f.Set(reflect.New(f.Type().Elem()))
		}
		return decodeStruct(p, f.Elem(), depth+1)
	case reflect.Map:
		return setMapEntry(f, p)
	case reflect.Slice:
		return appendElement(f, p, depth)
	}
	return nil
}

func setMapEntry(f reflect.Value, p []byte) error {
	var pair [3]string
	for len(p) > 0 {
		num, wire, _, s, rest, err := next(p)
		if err != nil {
			return err
		}
		p = rest
		if wire == typeBytes && num < 3 {
			pair[num] = string(s)
		}
	}
	if f.IsNil() {
		f.Set(reflect.MakeMap(f.Type()))
	}
	f.SetMapIndex(reflect.ValueOf(pair[1]), reflect.ValueOf(pair[2]))
	return nil
}

func appendElement(f reflect.Value, p []byte, depth int) error {
	switch f.Type().Elem().Kind() {
	case reflect.Uint8:
		f.SetBytes(slices.Clone(p))
	case reflect.String:
		f.Set(reflect.Append(f, reflect.ValueOf(string(p))))
	case reflect.Pointer:
		e := reflect.New(f.Type().Elem().Elem())
		if err := decodeStruct(p, e.Elem(), depth+1); err != nil {
			return err
		}
		f.Set(reflect.Append(f, e))
	}
	return nil
}
