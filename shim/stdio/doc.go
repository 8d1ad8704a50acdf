// Package stdio carries a container's output from its pipes or terminal to its
// log, and to whoever is attached.
//
// A [Stream] belongs to the goroutine that runs [Stream.Copy]. It holds no
// buffer while there is nothing to read, formats what one read(2) returned
// with one timestamp, and writes it with one write(2). A log that cannot be
// written never stops the container: its output goes on being read, and what
// was dropped is counted.
package stdio
