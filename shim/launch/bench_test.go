package launch

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// times are the durations of one step, of which the tenth percentile says what
// the code costs where the median says how busy the machine is.
type times []time.Duration

func (l *times) since(begin time.Time) { *l = append(*l, time.Since(begin)) }

func (l times) report(b *testing.B, step string) {
	slices.Sort(l)
	b.ReportMetric(float64(l[len(l)/10].Nanoseconds()), step+"-p10-ns")
	b.ReportMetric(float64(l[len(l)/2].Nanoseconds()), step+"-p50-ns")
}

// BenchmarkCreateStart is a container up to the first instruction of its
// program, alone or in a pod's namespaces, each with a new writable layer.
func BenchmarkCreateStart(b *testing.B) {
	for _, way := range []struct {
		name          string
		template, pod bool
	}{{"alone", false, false}, {"template", true, false}, {"pod", true, true}} {
		b.Run(way.name, func(b *testing.B) {
			f := newFixture(b, "exit", "0")
			if way.template {
				f.cfg.Template = filepath.Join(b.TempDir(), "template")
				if err := PinTemplate(f.cfg.Template); err != nil {
					b.Fatal(err)
				}
				defer RemoveTemplate(f.cfg.Template)
			}
			if way.pod {
				cfg, _ := newSandbox(b, SandboxConfig{NewNet: true, NewIPC: true, NewUTS: true})
				f.join(cfg.Dir, "net", "ipc", "uts")
				f.spec.Hostname = ""
			}
			var created, started, closed times
			for b.Loop() {
				b.StopTimer()
				f.freshLayer()
				b.StartTimer()
				begin := time.Now()
				c, err := Create(f.cfg)
				if err != nil {
					b.Fatal(err)
				}
				created.since(begin)
				begin = time.Now()
				if err := c.Start(); err != nil {
					b.Fatal(err)
				}
				started.since(begin)
				b.StopTimer()
				c.Init().Wait()
				begin = time.Now()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				closed.since(begin)
				b.StartTimer()
			}
			created.report(b, "create")
			started.report(b, "start")
			closed.report(b, "close")
		})
	}
}

// BenchmarkExec is an exec until execve has happened: by shared memory, with a
// score of its own, by copied memory, and where it may be traced.
func BenchmarkExec(b *testing.B) {
	for _, way := range []string{"shared", "scored", "copied", "late"} {
		b.Run(way, func(b *testing.B) {
			f := newFixture(b, "wait")
			old := kernel
			defer func() { kernel = old }()
			kernel.noSharedMemory = way == "copied"
			if way == "late" {
				f.mayTrace()
			}
			io := f.pipes()
			f.cfg.Stdio = io
			c, err := Create(f.cfg)
			io.closeAll()
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				c.Init().Signal(unix.SIGKILL)
				c.Init().Wait()
				c.Close()
			}()
			if err := c.Start(); err != nil {
				b.Fatal(err)
			}
			p := *f.spec.Process
			p.Args = []string{"/probe", "exit", "0"}
			if way == "scored" {
				score := 100
				p.OOMScoreAdj = &score
			}
			var execed times
			for b.Loop() {
				begin := time.Now()
				proc, err := c.Exec(&p, Stdio{})
				if err != nil {
					b.Fatal(err)
				}
				execed.since(begin)
				b.StopTimer()
				proc.Wait()
				b.StartTimer()
			}
			execed.report(b, "exec")
		})
	}
}
