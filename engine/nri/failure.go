package nri

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
)

// A failure is which plugin an error is of: the library passes on what a
// plugin answers without its name.
type failure struct {
	err    error
	plugin string
}

// keptFailures is how many are remembered. Requests are made one at a time, so
// an error is asked for before many others have come.
const keptFailures = 16

// meter notes, as the library's recorder of metrics, who is connected and
// whose errors are whose.
type meter struct{ *Host }

// RecordPluginInvocation notes whose an error is.
func (m meter) RecordPluginInvocation(plugin, operation string, err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = append(m.failed, failure{err, plugin})
	if len(m.failed) > keptFailures {
		m.failed = m.failed[1:]
	}
}

// RecordPluginLatency does nothing.
func (meter) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments notes who adjusts a container that is being made;
// the library calls it within [Host.Create].
func (m meter) RecordPluginAdjustments(plugin, _ string, adjust *api.ContainerAdjustment, _, _ int) {
	if adjust != nil {
		m.adjusters = append(m.adjusters, plugin)
	}
}

// UpdatePluginCount notes how many plugins there are.
func (m meter) UpdatePluginCount(count int) {
	if before := m.plugins.Swap(int64(count)); before != int64(count) {
		m.log.Info("plugins are connected", "count", count)
	}
}

// named says which plugin and event an error is of. The error it gives has
// none of the codes that a plugin may have chosen for its own.
func (h *Host) named(event api.Event, err error) error {
	if err == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, f := range slices.Backward(h.failed) {
		if errors.Is(err, f.err) {
			h.failed = slices.Delete(h.failed, i, i+1)
			return fmt.Errorf("plugin %s, %s: %v", f.plugin, event.PrettyName(), err)
		}
	}
	return fmt.Errorf("plugins, %s: %v", event.PrettyName(), err)
}
