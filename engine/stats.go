package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
)

// Usage is what a pod or container uses, read from the kernel when it is asked
// for and never in between.
type Usage struct {
	cgroup.Stats
	NanoCores *uint64    // CPU rate since the reading before, in billionths of a core; nil: there was none
	Processes uint64     // of a pod
	Layer     *DiskUsage // of a container's writable layer
	Network   []InterfaceUsage
	Details   *Details
}

// Details is what only metrics ask for, and costs more to read.
type Details struct {
	Processes, FileDescriptors, Sockets uint64
	MaxOpenFiles                        uint64 // soft limit of the first process
	Resources                           Resources
	StartedAt                           time.Time
	Disk                                Filesystem // that the writable layer is on
}

// Filesystem is the size of one, in bytes and inodes.
type Filesystem struct{ Bytes, Inodes, FreeInodes uint64 }

// InterfaceUsage counts a network interface's traffic since it was made.
type InterfaceUsage struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// rate remembers the last reading of an object's CPU time.
type rate struct {
	mu        sync.Mutex // guards all below
	at        time.Time  // zero: there was none
	cpu       time.Duration
	nanoCores *uint64
}

// minRateWindow is the shortest time that makes a rate: clients that ask more
// often get the last one again.
const minRateWindow = 100 * time.Millisecond

// next gives the rate since the reading before, nil if that makes none.
func (r *rate) next(at time.Time, cpu time.Duration) *uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, elapsed := r.at.IsZero(), at.Sub(r.at)
	if !first && elapsed < minRateWindow {
		return r.nanoCores
	}
	var nanoCores *uint64
	if !first && cpu >= r.cpu {
		nanoCores = new(uint64(float64(cpu-r.cpu) / elapsed.Seconds()))
	}
	r.at, r.cpu, r.nanoCores = at, cpu, nanoCores
	return nanoCores
}

// summary is what kubelet asks for of a cgroup every few seconds.
const summary = cgroup.PartCPU | cgroup.PartMemory | cgroup.PartPressure

// ContainerUsage reads what a container uses. One that has exited uses its
// writable layer alone.
func (e *Engine) ContainerUsage(id string) (Usage, error) {
	return e.containerUsage(id, summary)
}

// ContainerDetails reads all that there is to know.
func (e *Engine) ContainerDetails(id string) (Usage, error) {
	u, err := e.containerUsage(id, cgroup.AllParts)
	if err != nil {
		return Usage{}, err
	}
	c, err := e.findContainer(id)
	if err != nil {
		return Usage{}, err
	}
	rec := c.snapshot()
	u.Details = &Details{StartedAt: rec.StartedAt}
	if rec.Resources != nil {
		u.Details.Resources = *rec.Resources
	}
	pids, err := e.cgroups.Load(rec.CgroupPath).Procs()
	if err != nil {
		return Usage{}, err
	}
	u.Details.countProcesses(pids)
	u.Details.MaxOpenFiles = maxOpenFiles(rec.Pid)
	u.Details.Disk, err = filesystemOf(e.cfg.layerDir(c.id))
	return u, vanished(c.id, err)
}

func (e *Engine) containerUsage(id string, parts cgroup.Parts) (Usage, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Usage{}, err
	}
	rec := c.snapshot()
	u, err := e.groupUsage(&c.cpu, rec.CgroupPath, parts)
	if errors.Is(err, fs.ErrNotExist) && rec.State == ContainerExited {
		u, err = Usage{Stats: cgroup.Stats{Time: time.Now()}}, nil
	}
	if err != nil {
		return Usage{}, vanished(c.id, err)
	}
	layer, err := c.layer.of(filepath.Join(e.cfg.layerDir(c.id), "upper"))
	if err != nil {
		return Usage{}, vanished(c.id, fmt.Errorf("size of writable layer: %w", err))
	}
	u.Layer = &layer
	return u, nil
}

// vanished says of a container whose cgroup or layer is not there that it is not
// either: it is just ending, or being removed.
func vanished(id string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %q: %w: %w", id, ErrNotFound, err)
	}
	return err
}

func (e *Engine) groupUsage(cpu *rate, path string, parts cgroup.Parts) (Usage, error) {
	stats, err := e.cgroups.Load(path).StatsOf(parts)
	if err != nil {
		return Usage{}, err
	}
	return Usage{Stats: stats, NanoCores: cpu.next(stats.Time, stats.CPU.Usage)}, nil
}

// PodUsage reads what a pod uses: the cgroup that holds its containers and
// its network.
func (e *Engine) PodUsage(ctx context.Context, id string) (Usage, error) {
	p, err := e.findPod(id)
	if err != nil {
		return Usage{}, err
	}
	rec := p.snapshot()
	path := e.usageCgroup(rec)
	u, err := e.groupUsage(&p.cpu, path, summary)
	if errors.Is(err, fs.ErrNotExist) { // there was no process yet, or there is none any more
		u, err = Usage{Stats: cgroup.Stats{Time: time.Now()}}, nil
	}
	if err != nil {
		return Usage{}, err
	}
	u.Network = e.podNetwork(ctx, rec)
	u.Processes, err = e.processesOf(rec)
	return u, err
}

// processesOf counts the processes of a pod: its first one, which has no child,
// and those of its containers. A look into each container's cgroup is cheaper
// than one for the groups that are in the pod's.
func (e *Engine) processesOf(p Pod) (n uint64, err error) {
	if p.InitPid > 0 {
		n = 1
	}
	for _, c := range e.containersOf(p.ID) {
		rec := c.snapshot()
		if rec.CgroupPath == "" || rec.State == ContainerExited {
			continue
		}
		pids, err := e.cgroups.Load(rec.CgroupPath).Procs()
		if err != nil {
			return 0, err
		}
		n += uint64(len(pids))
	}
	return n, nil
}

// PodNetworkUsage reads what a pod has sent and received.
func (e *Engine) PodNetworkUsage(ctx context.Context, id string) (Usage, error) {
	p, err := e.findPod(id)
	if err != nil {
		return Usage{}, err
	}
	return Usage{Stats: cgroup.Stats{Time: time.Now()}, Network: e.podNetwork(ctx, p.snapshot())}, nil
}

// DefaultInterface is the name of a pod's interface to its network.
const DefaultInterface = api.PodInterface

// podNetwork reads a ready pod's interfaces through one of its processes, since
// the daemon enters no namespace, or has a shim enter the pod's if it has no
// process. A pod in the host's network has none to show, nor has one that is
// just being stopped.
func (e *Engine) podNetwork(ctx context.Context, p Pod) []InterfaceUsage {
	if p.Config.Namespaces.Network == ModeHost || p.State != PodReady {
		return nil
	}
	for _, pid := range e.pidsOf(p) {
		if text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev"); err == nil { // or else it has just ended
			return parseInterfaces(text)
		}
	}
	var text []byte
	err := e.workers.with(func(s *client.Shim) (err error) {
		text, err = s.NetDev(ctx, filepath.Join(e.cfg.podDir(p.ID), "net"))
		return err
	})
	if err != nil {
		e.log.Debug("interfaces of a pod could not be read", "pod", p.ID, "err", err)
	}
	return parseInterfaces(text)
}

// pidsOf gives the first processes that a pod has.
func (e *Engine) pidsOf(p Pod) []int {
	var pids []int
	if p.InitPid > 0 {
		pids = append(pids, p.InitPid)
	}
	for _, c := range e.containersOf(p.ID) {
		rec := c.snapshot()
		if rec.Pid > 0 && (rec.State == ContainerRunning || rec.State == ContainerCreated) {
			pids = append(pids, rec.Pid)
		}
	}
	return pids
}

// parseInterfaces reads the text of /proc/net/dev, without loopback.
func parseInterfaces(text []byte) []InterfaceUsage {
	var all []InterfaceUsage
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(fields) < 12 {
			continue
		}
		count := func(i int) uint64 {
			n, _ := strconv.ParseUint(fields[i], 10, 64) // the kernel writes numbers
			return n
		}
		all = append(all, InterfaceUsage{Name: name, RxBytes: count(0), RxPackets: count(1), RxErrors: count(2), RxDropped: count(3),
			TxBytes: count(8), TxPackets: count(9), TxErrors: count(10), TxDropped: count(11)})
	}
	return all
}
