package launch

import "github.com/opencontainers/runtime-spec/specs-go"

func hasRootHooks(h *specs.Hooks) bool { return false }
func (k *creation) rootHooks() error   { return nil }
func (c *Container) startHooks() error { return nil }
func (c *Container) poststart() error  { return nil }
func (c *Container) poststop() error   { return nil }
