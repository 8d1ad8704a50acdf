package leanjson

import "unicode/utf8"

// AppendString appends s as a JSON string that [Unmarshal] reads back byte for
// byte: what is no UTF-8 is written as lone surrogates.
func AppendString(to []byte, s string) []byte {
	const hex = "0123456789abcdef"
	to = append(to, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				to = append(to, '\\', 'u', 'd', 'c', hex[c>>4], hex[c&15])
			} else {
				to = append(to, s[i:i+size]...)
			}
			i += size
			continue
		}
		switch {
		case c < ' ' || c == 0x7f:
			to = append(to, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c == '"' || c == '\\':
			to = append(to, '\\', c)
		default:
			to = append(to, c)
		}
		i++
	}
	return append(to, '"')
}
