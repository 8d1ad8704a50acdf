package criu

import (
	"bufio"
	"os"
	"strings"
)

// maxQuoted is how many lines of a log an error holds: the first ones name the
// cause, the rest what came of it.
const maxQuoted = 4

// quote gives the errors of a log in one line.
func quote(log string) string {
	var found []string
	lines := bufio.NewScanner(strings.NewReader(log))
	for lines.Scan() {
		if _, message, ok := strings.Cut(lines.Text(), "Error ("); ok && len(found) < maxQuoted {
			found = append(found, "Error ("+strings.TrimSpace(message))
		}
	}
	if len(found) == 0 {
		return strings.TrimSpace(log[max(0, len(log)-200):])
	}
	return strings.Join(found, "; ")
}

// maxLog bounds how much of a log is read for an error.
const maxLog = 1 << 20

// Quote gives what the log file at path says of errors, "" if there is none.
func Quote(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxLog {
		_, _ = f.Seek(-maxLog, 2) // what went wrong stands at the end
	}
	data := make([]byte, maxLog)
	n, _ := f.Read(data)
	return quote(string(data[:n]))
}
