package engine

import "fmt"

// Ready says why no container can be made, nil if one can.
func (e *Engine) Ready() error {
	if err := e.shims.Err(); err != nil {
		return fmt.Errorf("no shim can be started: %w", err)
	}
	return nil
}

// UsesCgroupV2 reports whether all controllers are on cgroup v2.
func (e *Engine) UsesCgroupV2() bool { return e.host.cgroupV2 }
