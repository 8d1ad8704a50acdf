// Package leanjson reads JSON into Go values with little memory.
//
// encoding/json builds, and keeps, an encoder and a decoder for every type that
// a type leads to: for the OCI runtime spec a quarter of a megabyte, in every
// shim. This package allocates the result and next to nothing else. It is a pure
// function of its input, which may be hostile: nesting is bounded, and what is
// not JSON, or does not fit the type, is an error.
//
// It differs from encoding/json in that names must match exactly, which no
// writer of OCI files fails to do, that an escaped lone surrogate of U+DC80 to
// U+DCFF is the byte 80 to FF (PEP 383: an environment need not be UTF-8), and that types with methods of their own for
// JSON, interfaces and byte strings are refused.
package leanjson

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of objects and arrays, and so the stack.
const maxDepth = 64

var (
	// ErrSyntax says that the input is not JSON.
	ErrSyntax = errors.New("not JSON")
	// ErrType says that a value does not fit where it belongs.
	ErrType = errors.New("value of another type")
)

// Raw is a value that is kept as its text, a part of the input itself: it is
// valid as long as that.
type Raw []byte

var rawType = reflect.TypeFor[Raw]()

// Unmarshal reads data, one JSON value, into what v points to, as encoding/json
// would. An error wraps [ErrSyntax] or [ErrType] and names the place; v may be
// filled in part then.
func Unmarshal(data []byte, v any) error {
	to := reflect.ValueOf(v)
	if to.Kind() != reflect.Pointer || to.IsNil() {
		return fmt.Errorf("decode JSON into %T: %w", v, ErrType)
	}
	d := decoder{data: data, fields: map[reflect.Type][]field{}}
	d.space()
	if err := d.value(to.Elem(), 0); err != nil {
		return fmt.Errorf("decode JSON at byte %d: %w", d.at, err)
	}
	if d.space(); d.at != len(data) {
		return fmt.Errorf("decode JSON at byte %d: %w", d.at, ErrSyntax)
	}
	return nil
}

type decoder struct {
	data   []byte
	at     int
	fields map[reflect.Type][]field // for one call: the types of a spec are few
	all    []field                  // what fields has, in few pieces
	slab   strings.Builder          // of the text kept
}

// field is a field of a struct by its name in JSON. A struct that is embedded
// has no name; its fields count as those of the outer one.
type field struct {
	name  string
	index int
}

// manyFields is room for the types of a usual specification.
const manyFields = 160

func (d *decoder) fieldsOf(t reflect.Type) []field {
	if known, ok := d.fields[t]; ok {
		return known
	}
	if cap(d.all)-len(d.all) < t.NumField() {
		d.all = make([]field, 0, max(t.NumField(), min(manyFields, len(d.data)/32)))
	}
	start := len(d.all)
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-", !f.IsExported() && !f.Anonymous:
			continue
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
		case !f.IsExported():
			continue
		case tag == "":
			tag = f.Name
		}
		d.all = append(d.all, field{tag, i})
	}
	fields := d.all[start:len(d.all):len(d.all)]
	d.fields[t] = fields
	return fields
}

// find gives the field of a struct for a name; the outer struct's come first.
func (d *decoder) find(v reflect.Value, name []byte) (reflect.Value, bool) {
	fields := d.fieldsOf(v.Type())
	for i := range fields {
		if fields[i].name != "" && fields[i].name == string(name) {
			return v.Field(fields[i].index), true
		}
	}
	for i := range fields {
		if fields[i].name == "" {
			if f, ok := d.find(v.Field(fields[i].index), name); ok {
				return f, true
			}
		}
	}
	return reflect.Value{}, false
}

func (d *decoder) space() {
	for d.at < len(d.data) {
		switch d.data[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return
		}
	}
}

// peek gives the next byte, 0 at the end.
func (d *decoder) peek() byte {
	if d.at < len(d.data) {
		return d.data[d.at]
	}
	return 0
}

// literal takes a word such as null.
func (d *decoder) literal(word string) error {
	if len(d.data)-d.at < len(word) || string(d.data[d.at:d.at+len(word)]) != word {
		return ErrSyntax
	}
	d.at += len(word)
	return nil
}

func (d *decoder) value(to reflect.Value, depth int) error {
	if to.Type() == rawType {
		start := d.at
		if err := d.skip(depth); err != nil {
			return err
		}
		to.SetBytes(d.data[start:d.at:d.at])
		return nil
	}
	if d.peek() == 'n' {
		switch to.Kind() {
		case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface:
			to.SetZero()
		}
		return d.literal("null")
	}
	if to.Kind() == reflect.Pointer {
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		return d.value(to.Elem(), depth)
	}
	switch d.peek() {
	case '{':
		return d.object(to, depth+1)
	case '[':
		return d.array(to, depth+1)
	case '"':
		return d.text(to)
	case 't', 'f':
		return d.boolean(to)
	}
	return d.number(to)
}

func (d *decoder) object(to reflect.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels: %w", maxDepth, ErrSyntax)
	}
	var key, elem reflect.Value
	switch to.Kind() {
	case reflect.Struct:
	case reflect.Map:
		if to.Type().Key().Kind() != reflect.String {
			return ErrType
		}
		if to.IsNil() {
			to.Set(reflect.MakeMap(to.Type()))
		}
		key, elem = reflect.New(to.Type().Key()).Elem(), reflect.New(to.Type().Elem()).Elem()
	default:
		return ErrType
	}
	return d.members(func(name []byte) error {
		if to.Kind() == reflect.Map {
			elem.SetZero()
			if err := d.value(elem, depth); err != nil {
				return err
			}
			key.SetString(d.keep(name))
			to.SetMapIndex(key, elem)
			return nil
		}
		f, ok := d.find(to, name)
		if !ok {
			return d.skip(depth)
		}
		if err := d.value(f, depth); err != nil {
			return within(string(name), err)
		}
		return nil
	})
}

// within puts a name in front of an error's place.
func within(name string, err error) error { return fmt.Errorf("%s: %w", name, err) }

// members walks an object; visit reads the value.
func (d *decoder) members(visit func(name []byte) error) error {
	d.at++
	if d.space(); d.peek() == '}' {
		d.at++
		return nil
	}
	for {
		d.space()
		name, err := d.quoted()
		if err != nil {
			return err
		}
		if d.space(); d.peek() != ':' {
			return ErrSyntax
		}
		d.at++
		d.space()
		if err := visit(name); err != nil {
			return err
		}
		if more, err := d.more('}'); !more {
			return err
		}
	}
}

// more reads what follows an element: a comma, or the end of its container.
func (d *decoder) more(end byte) (bool, error) {
	d.space()
	switch c := d.peek(); c {
	case ',', end:
		d.at++
		return c == ',', nil
	}
	return false, ErrSyntax
}

// elements walks an array; visit reads the i-th value.
func (d *decoder) elements(visit func(i int) error) error {
	d.at++
	if d.space(); d.peek() == ']' {
		d.at++
		return nil
	}
	for i := 0; ; i++ {
		d.space()
		if err := visit(i); err != nil {
			return err
		}
		if more, err := d.more(']'); !more {
			return err
		}
	}
}

func (d *decoder) array(to reflect.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels: %w", maxDepth, ErrSyntax)
	}
	if to.Kind() != reflect.Slice || to.Type().Elem().Kind() == reflect.Uint8 {
		return ErrType
	}
	n, err := d.count(depth)
	if err != nil {
		return err
	}
	to.Set(reflect.MakeSlice(to.Type(), n, n)) // of the right size, and not nil
	return d.elements(func(i int) error {
		if err := d.value(to.Index(i), depth); err != nil {
			return within(strconv.Itoa(i), err)
		}
		return nil
	})
}

// count gives the length of the array that begins here.
func (d *decoder) count(depth int) (n int, err error) {
	ahead := decoder{data: d.data, at: d.at}
	err = ahead.elements(func(int) error {
		n++
		return ahead.skip(depth)
	})
	return n, err
}

func (d *decoder) text(to reflect.Value) error {
	s, err := d.quoted()
	if err != nil {
		return err
	}
	if to.Kind() != reflect.String {
		return ErrType
	}
	to.SetString(d.keep(s))
	return nil
}

// slabSize is how much text shares one allocation.
const slabSize = 4096

// keep copies text behind the text kept before. Strings of their own would
// take a page or two for each of a dozen sizes.
func (d *decoder) keep(s []byte) string {
	if d.slab.Cap()-d.slab.Len() < len(s) {
		if len(s) > slabSize/4 {
			return string(s)
		}
		d.slab = strings.Builder{}
		d.slab.Grow(min(slabSize, max(len(d.data)-d.at, len(s))))
	}
	start := d.slab.Len()
	d.slab.Write(s)
	return d.slab.String()[start:]
}

func (d *decoder) boolean(to reflect.Value) error {
	word := "false"
	if d.peek() == 't' {
		word = "true"
	}
	if err := d.literal(word); err != nil {
		return err
	}
	if to.Kind() != reflect.Bool {
		return ErrType
	}
	to.SetBool(word == "true")
	return nil
}

func (d *decoder) number(to reflect.Value) error {
	text, err := d.digits()
	if err != nil {
		return err
	}
	switch to.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil || to.OverflowInt(n) {
			return fmt.Errorf("number %s: %w", text, ErrType)
		}
		to.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(string(text), 10, 64)
		if err != nil || to.OverflowUint(n) {
			return fmt.Errorf("number %s: %w", text, ErrType)
		}
		to.SetUint(n)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(string(text), 64)
		if err != nil || to.OverflowFloat(n) {
			return fmt.Errorf("number %s: %w", text, ErrType)
		}
		to.SetFloat(n)
	default:
		return ErrType
	}
	return nil
}

// digits takes a number as RFC 8259 writes it.
func (d *decoder) digits() ([]byte, error) {
	start := d.at
	run := func() bool {
		from := d.at
		for c := d.peek(); c >= '0' && c <= '9'; c = d.peek() {
			d.at++
		}
		return d.at > from
	}
	if d.peek() == '-' {
		d.at++
	}
	if d.peek() == '0' {
		d.at++
	} else if !run() {
		return nil, ErrSyntax
	}
	if d.peek() == '.' {
		if d.at++; !run() {
			return nil, ErrSyntax
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.at++
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		if !run() {
			return nil, ErrSyntax
		}
	}
	return d.data[start:d.at], nil
}

// skip passes over one value and checks that it is JSON.
func (d *decoder) skip(depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels: %w", maxDepth, ErrSyntax)
	}
	switch d.peek() {
	case '{':
		return d.members(func([]byte) error { return d.skip(depth + 1) })
	case '[':
		return d.elements(func(int) error { return d.skip(depth + 1) })
	case '"':
		_, err := d.quoted()
		return err
	case 't':
		return d.literal("true")
	case 'f':
		return d.literal("false")
	case 'n':
		return d.literal("null")
	}
	_, err := d.digits()
	return err
}

// quoted takes a string. Without escapes it is a part of the input.
func (d *decoder) quoted() ([]byte, error) {
	if d.peek() != '"' {
		return nil, ErrSyntax
	}
	d.at++
	start := d.at
	for d.at < len(d.data) {
		switch c := d.data[d.at]; {
		case c == '"':
			d.at++
			return d.data[start : d.at-1], nil
		case c == '\\', c >= utf8.RuneSelf:
			return d.unquote(append([]byte(nil), d.data[start:d.at]...))
		case c < ' ':
			return nil, ErrSyntax
		}
		d.at++
	}
	return nil, ErrSyntax
}

// unquote takes the rest of a string with escapes or beyond ASCII. What is no
// UTF-8 becomes U+FFFD.
func (d *decoder) unquote(out []byte) ([]byte, error) {
	for d.at < len(d.data) {
		switch c := d.data[d.at]; {
		case c == '"':
			d.at++
			return out, nil
		case c < ' ':
			return nil, ErrSyntax
		case c == '\\':
			d.at++
			r, err := d.escape()
			if err != nil {
				return nil, err
			}
			if isByte(r) {
				out = append(out, byte(r))
			} else {
				out = utf8.AppendRune(out, r)
			}
		default:
			r, size := utf8.DecodeRune(d.data[d.at:])
			d.at += size
			out = utf8.AppendRune(out, r)
		}
	}
	return nil, ErrSyntax
}

func (d *decoder) escape() (rune, error) {
	c := d.peek()
	if c == 'u' {
		return d.unicode()
	}
	const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	i := strings.IndexByte(from, c)
	if c == 0 || i < 0 {
		return 0, ErrSyntax
	}
	d.at++
	return rune(to[i]), nil
}

// unicode takes "uXXXX", and with it the second half of a surrogate pair.
func (d *decoder) unicode() (rune, error) {
	r, ok := d.hex(d.at)
	if !ok {
		return 0, ErrSyntax
	}
	d.at += 5
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	if d.peek() == '\\' {
		if low, ok := d.hex(d.at + 1); ok {
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				d.at += 6
				return pair, nil
			}
		}
	}
	if isByte(r) {
		return r, nil
	}
	return utf8.RuneError, nil
}

// isByte says whether a lone surrogate stands for a byte that is no UTF-8, its
// low eight bits (PEP 383).
func isByte(r rune) bool { return r >= 0xDC80 && r <= 0xDCFF }

// hex reads "uXXXX" at a place.
func (d *decoder) hex(at int) (rune, bool) {
	if at+5 > len(d.data) || d.data[at] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range d.data[at+1 : at+5] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
