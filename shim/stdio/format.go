package stdio

import (
	"bytes"
	"time"
)

// MaxLine is the length, in bytes, past which a line is split into partial
// records, as other runtimes split it.
const MaxLine = 16 << 10

// stampLayout is RFC 3339 with all nine digits: records keep their columns.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// formatter turns a stream's bytes into CRI log records:
//
//	2016-10-06T00:17:09.669794202Z stdout F The content of a line
//
// The tag is F for a line's end and P for a part of a line that goes on.
type formatter struct {
	name string // "stdout" or "stderr"
	tail []byte // the beginning of a line whose end has not come
}

// append formats data, read at the given time, onto out.
func (f *formatter) append(out, data []byte, now time.Time) []byte {
	var stamp [len(stampLayout) + 8]byte
	prefix := append(now.AppendFormat(stamp[:0], stampLayout), ' ')
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			return f.keep(out, data, prefix)
		}
		out = f.line(out, data[:end], prefix)
		data = data[end+1:]
	}
	return out
}

// line writes the tail and rest, the end of a line.
func (f *formatter) line(out, rest, prefix []byte) []byte {
	if len(f.tail)+len(rest) > MaxLine {
		out = f.keep(out, rest, prefix)
		rest = nil
	}
	out = append(f.head(out, prefix, 'F'), f.tail...)
	f.tail = f.tail[:0]
	return append(append(out, rest...), '\n')
}

// keep adds to the tail, and writes what is too long to be kept as partial
// records.
func (f *formatter) keep(out, data, prefix []byte) []byte {
	for len(f.tail)+len(data) > MaxLine {
		n := MaxLine - len(f.tail)
		out = append(f.head(out, prefix, 'P'), f.tail...)
		out = append(append(out, data[:n]...), '\n')
		f.tail, data = f.tail[:0], data[n:]
	}
	f.tail = append(f.tail, data...)
	return out
}

func (f *formatter) head(out, prefix []byte, tag byte) []byte {
	out = append(append(out, prefix...), f.name...)
	return append(out, ' ', tag, ' ')
}

// flush writes a line that never ended: a partial record, for no newline was
// written.
func (f *formatter) flush(out []byte, now time.Time) []byte {
	if len(f.tail) == 0 {
		return out
	}
	prefix := append(now.AppendFormat(nil, stampLayout), ' ')
	out = append(f.head(out, prefix, 'P'), f.tail...)
	f.tail = nil
	return append(out, '\n')
}
