package criu

import (
	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// Restore says what a restored process is given by its node.
type Restore struct {
	Root     string // where its root is mounted for criu
	External []string
	Inherit  []Inherited
	Join     []Joined
	Terminal bool // the client is handed the master of the process's terminal
	// Label is the process's by a security module, "selinux:LABEL", and MountLabel that of
	// its mounts; empty for what was saved.
	Label, MountLabel string
}

// Inherited is a descriptor of criu that takes the place of what a dump calls so.
type Inherited struct {
	FD   int
	Name string
}

// Joined is a namespace that the process enters, by criu's name of its kind.
type Joined struct{ Kind, Path string }

// RestoreOptions encodes the options of a restore, to which the shim adds the
// directories: criu looks for these among its client's descriptors. The restored
// process is a child of the parent of criu, which runs in the control group and
// the cgroup namespace that the process shall have. [Program.Usable] has been
// asked before.
func (p *Program) RestoreOptions(r Restore) ([]byte, error) {
	opts := common(p.known())
	opts.Root, opts.LogFile, opts.RstSibling = proto.String(r.Root), proto.String(RestoreLog), proto.Bool(true)
	opts.External, opts.OrphanPtsMaster, opts.NotifyScripts = r.External, proto.Bool(r.Terminal), proto.Bool(r.Terminal)
	for _, i := range r.Inherit {
		opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: proto.String(i.Name), Fd: proto.Int32(int32(i.FD))})
	}
	for _, j := range r.Join {
		opts.JoinNs = append(opts.JoinNs, &rpc.JoinNamespace{Ns: proto.String(j.Kind), NsFile: proto.String(j.Path)})
	}
	if r.Label != "" {
		opts.LsmProfile = proto.String(r.Label)
	}
	if r.MountLabel != "" {
		opts.LsmMountContext = proto.String(r.MountLabel)
	}
	return proto.MarshalOptions{AllowPartial: true}.Marshal(opts)
}
