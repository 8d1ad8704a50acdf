package criu

import (
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"github.com/longshore/longshore/internal/atomicfile"
)

// skips is the first version that can be told to leave the network alone
// (network_lock SKIP, 3.19).
func skips(version [2]int) bool {
	return version[0] > 3 || version[0] == 3 && version[1] >= 19
}

// leaveNetwork keeps criu from locking the network. It would have the pod's drop
// every packet while it saves, to save connections that can be taken up again;
// ours are not, for the restored pod has another address. And a criu that is
// killed meanwhile leaves the pod without a network for good.
func leaveNetwork(opts *rpc.CriuOpts, version [2]int) {
	if skips(version) {
		opts.NetworkLock = rpc.CriuNetworkLockMethod_SKIP.Enum()
	}
}

// lockers are the programs by which an older criu locks the network.
var lockers = []string{"iptables-restore", "ip6tables-restore", "iptables", "ip6tables"}

// Path is the PATH for criu to run with. An older criu finds programs there
// that do nothing in place of those that lock the network.
func (p *Program) Path() (string, error) {
	path := os.Getenv("PATH") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if skips(p.known()) {
		return path, nil
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return "", err
	}
	for _, name := range lockers {
		if err := atomicfile.Write(filepath.Join(p.dir, name), []byte("#!/bin/sh\nexit 0\n"), 0o700, atomicfile.Volatile); err != nil {
			return "", err
		}
	}
	return p.dir + ":" + path, nil
}
