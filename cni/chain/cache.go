package chain

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/longshore/longshore/internal/atomicfile"
)

// cacheKind names the format, which is libcni's.
const cacheKind = "cniCacheV1"

// cached is a file of the cache.
type cached struct {
	Kind         string          `json:"kind"`
	ContainerID  string          `json:"containerId"`
	Config       []byte          `json:"config"`
	IfName       string          `json:"ifName"`
	NetworkName  string          `json:"networkName"`
	NetNS        string          `json:"netns,omitempty"`
	Args         [][2]string     `json:"cniArgs,omitempty"`
	Capabilities map[string]any  `json:"capabilityArgs,omitempty"`
	Result       json.RawMessage `json:"result,omitempty"`
}

// defaultCacheDir is libcni's.
const defaultCacheDir = "/var/lib/cni"

func (r *Runner) cacheDir() string {
	return filepath.Join(cmp.Or(r.CacheDir, defaultCacheDir), "results")
}

func (r *Runner) cacheFile(l *List, a *Attachment) string {
	return filepath.Join(r.cacheDir(), l.Name+"-"+a.ContainerID+"-"+a.IfName)
}

// remember keeps the result of an ADD.
func (r *Runner) remember(l *List, a *Attachment, result types.Result) error {
	text, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("result of network %s: %w", l.Name, err)
	}
	if err := os.MkdirAll(r.cacheDir(), 0o700); err != nil {
		return fmt.Errorf("keep the result of network %s: %w", l.Name, err)
	}
	err = atomicfile.WriteJSON(r.cacheFile(l, a), &cached{
		Kind: cacheKind, ContainerID: a.ContainerID, Config: l.raw, IfName: a.IfName, NetworkName: l.Name,
		NetNS: a.NetNS, Args: a.Args, Capabilities: a.Capabilities, Result: text,
	}, atomicfile.Volatile)
	if err != nil {
		return fmt.Errorf("keep the result of network %s: %w", l.Name, err)
	}
	return nil
}

// recall gives the result of an attachment's ADD in the version of the list,
// nil where there is none.
func (r *Runner) recall(l *List, a *Attachment) (types.Result, error) {
	var file cached
	err := atomicfile.ReadJSON(r.cacheFile(l, a), &file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && file.Kind != cacheKind {
		err = fmt.Errorf("kind %.32q is unknown", file.Kind)
	}
	var result types.Result
	if err == nil {
		result, err = create.CreateFromBytes(file.Result)
	}
	if err == nil {
		// The list may have changed while the container ran.
		result, err = result.GetAsVersion(l.CNIVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("cached result of network %s: %w", l.Name, err)
	}
	return result, nil
}

func (r *Runner) forget(l *List, a *Attachment) error {
	if err := os.Remove(r.cacheFile(l, a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// attachments gives those of a network that have a cached result. A file that
// is none of this cache is passed over.
func (r *Runner) attachments(l *List) ([]*Attachment, error) {
	entries, err := os.ReadDir(r.cacheDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Attachment
	for _, entry := range entries {
		var file cached
		if atomicfile.IsTemp(entry.Name()) {
			continue
		}
		if err := atomicfile.ReadJSON(filepath.Join(r.cacheDir(), entry.Name()), &file); err != nil || file.Kind != cacheKind || file.NetworkName != l.Name {
			continue
		}
		all = append(all, &Attachment{ContainerID: file.ContainerID, NetNS: file.NetNS, IfName: file.IfName, Args: file.Args, Capabilities: file.Capabilities})
	}
	return all, nil
}
