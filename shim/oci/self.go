package oci

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/binview"
)

// programName is the name of the process in procfs: one started from a
// descriptor has the number's.
const programName = "longshore-shim"

// ready makes this process fit to start processes in containers: it runs from a
// read-only view of its binary, if need be by starting it again so. What a
// container gets hold of through /proc/PID/exe of a process that enters it can
// then not be written (CVE-2019-5736). It does not return if it starts anew. A
// binary of hack/build.sh has seen to it already, at less cost: shim/entry.go.
func ready() error {
	runs, err := binview.Runs()
	if err != nil {
		return err
	}
	if runs {
		if err := os.Unsetenv("GOMAXPROCS"); err != nil { // of the entry, not the caller: not for hooks
			return err
		}
		return os.WriteFile("/proc/self/comm", []byte(programName), 0)
	}
	view, err := binview.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(view), os.Args, os.Environ())
	return fmt.Errorf("start from a read-only view of the binary: %w", err)
}
