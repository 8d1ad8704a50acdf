package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/longshore/longshore/cni/chain"
	"github.com/longshore/longshore/cni/hostlocal"
)

func (c *call) owner() hostlocal.Owner {
	return hostlocal.Owner{ContainerID: c.containerID, IfName: c.ifName}
}

// hostLocal is the plugin of that name, called by the chain or by another
// built-in plugin.
func (c *call) hostLocal() commands {
	with := func(do func(*hostlocal.Config) error) func(context.Context) error {
		return func(context.Context) error {
			conf, err := hostlocal.Parse(c.stdin, c.args, c.exec.dataDir)
			if err != nil {
				return err
			}
			return do(conf)
		}
	}
	return commands{
		add: func(ctx context.Context) (result *types100.Result, err error) {
			err = with(func(conf *hostlocal.Config) error {
				result, err = conf.Add(c.owner())
				return err
			})(ctx)
			return result, err
		},
		del: with(func(conf *hostlocal.Config) error { return conf.Del(c.owner()) }),
		check: with(func(conf *hostlocal.Config) error {
			var addresses []netip.Addr
			if c.prev != nil {
				for _, ip := range c.prev.IPs {
					if p, ok := prefixOf(ip.Address); ok {
						addresses = append(addresses, p.Addr())
					}
				}
			}
			return conf.Check(c.owner(), addresses)
		}),
		gc: with(func(conf *hostlocal.Config) error {
			valid := map[hostlocal.Owner]bool{}
			for _, a := range c.conf.ValidAttachments {
				valid[hostlocal.Owner{ContainerID: a.ContainerID, IfName: a.IfName}] = true
			}
			return conf.GC(valid)
		}),
		statusFunc: with(func(*hostlocal.Config) error { return nil }),
	}
}

// ipam runs the address plugin that the configuration names, with the same
// command. Only ADD gives a result.
func (c *call) ipam(ctx context.Context) (*types100.Result, error) {
	name := c.conf.IPAM.Type
	path, err := c.exec.FindInPath(name, c.path)
	if err != nil {
		return nil, err
	}
	if c.command != "ADD" {
		_, err := c.exec.ExecPlugin(ctx, path, c.stdin, c.environ)
		return nil, err
	}
	result, err := c.delegate(ctx, path)
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result of %s: %w", name, err)
	}
	if len(r.IPs) == 0 {
		return nil, errors.Join(fmt.Errorf("%s gave no address", name), c.ipamDel(ctx))
	}
	return r, nil
}

// ipamDel gives back what the present ADD got.
func (c *call) ipamDel(ctx context.Context) error {
	undo := *c
	undo.command = "DEL"
	undo.environ = append(append([]string(nil), c.environ...), "CNI_COMMAND=DEL")
	_, err := undo.ipam(ctx)
	return err
}

// delegate runs another plugin with the call's own configuration and environment.
func (c *call) delegate(ctx context.Context, path string) (types.Result, error) {
	out, err := c.exec.ExecPlugin(ctx, path, c.stdin, c.environ)
	if err != nil {
		return nil, err
	}
	return chain.DecodeResult(out, c.conf.CNIVersion)
}
