package launch

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkCreateStart is a container from Create to its end, and the parts of
// that up to the first instruction of its program.
func BenchmarkCreateStart(b *testing.B) {
	for _, template := range []bool{false, true} {
		name := "hostmounts"
		if template {
			name = "template"
		}
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, "exit", "0")
			if template {
				f.cfg.Template = filepath.Join(b.TempDir(), "template")
				if err := PinTemplate(f.cfg.Template); err != nil {
					b.Fatal(err)
				}
				defer RemoveTemplate(f.cfg.Template)
			}
			for b.Loop() {
				c, err := Create(f.cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Start(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				c.Init().Signal(unix.SIGKILL)
				c.Init().Wait()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkExec is an exec until execve has happened, by shared and by copied memory.
func BenchmarkExec(b *testing.B) {
	for _, share := range []bool{true, false} {
		name := "shared"
		if !share {
			name = "copied"
		}
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, "wait")
			old := kernel
			defer func() { kernel = old }()
			kernel.noSharedMemory = !share
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
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer null.Close()
			for b.Loop() {
				proc, err := c.Exec(&p, Stdio{})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				proc.Wait()
				b.StartTimer()
			}
		})
	}
}
