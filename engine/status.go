package engine

// UsesCgroupV2 reports whether all controllers are on cgroup v2.
func (e *Engine) UsesCgroupV2() bool { return e.host.cgroupV2 }
