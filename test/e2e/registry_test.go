package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/longshore/longshore/images/archive"
	"github.com/longshore/longshore/images/registrytest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func init() {
	commands["registry"] = verb(registry)
	commands["pull-as"] = verb(pullAs)
	commands["pull-for"] = verb(pullFor)
	commands["small-disk"] = verb(smallDisk)
	commands["disk"] = verb(disk)
}

// registryPort is where a script's registry listens in its room.
const registryPort = 5005

// startRegistry serves the guest program as hello:v1 over two layers, of which
// requests can be spoiled; the room reaches it at 127.0.0.1:5005.
func startRegistry(t *testing.T, s *session) error {
	program, err := os.ReadFile(bin + "/guest")
	if err != nil {
		return err
	}
	reg := registrytest.New(t)
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool { return s.spoil != nil && s.spoil(w, r) }
	reg.Put(t, "hello", "v1", archive.Image{
		Layers: [][]archive.File{{{Name: "tmp/", Mode: 0o1777}}, {{Name: "bin/guest", Mode: 0o755, Data: program}}},
		Config: v1.ImageConfig{Entrypoint: []string{"/bin/guest"}, Env: []string{"PATH=/bin"}},
	})
	s.registry = reg
	var l net.Listener
	s.node.Room.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", registryPort)) })
	if err != nil {
		return err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed by the test
			}
			go pipeTo(c, reg.Host())
		}
	}()
	return nil
}

func pipeTo(c net.Conn, address string) {
	defer c.Close()
	out, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		io.Copy(out, c)
		out.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(c, out)
}

// registry good|html|truncated|down|private says how the registry behaves from
// now on.
func registry(s *session, _ context.Context, args []string, _ io.Writer) error {
	s.spoil, s.registry.User, s.registry.Password = nil, "", ""
	switch args[0] {
	case "good":
	case "html":
		s.spoil = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>please log in</html>")
			return true
		}
	case "truncated":
		s.spoil = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			w.Header().Set("Content-Length", "1000000")
			fmt.Fprint(w, "the beginning")
			return true
		}
	case "down":
		s.spoil = func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
	case "private":
		s.registry.User, s.registry.Password = "sailor", "ahoy"
	default:
		return fmt.Errorf("registry %s: no such behaviour", args[0])
	}
	return nil
}

// pull-as USER PASSWORD IMAGE
func pullAs(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[2]},
		Auth: &runtimeapi.AuthConfig{Username: args[0], Password: args[1]}})
	if err == nil {
		fmt.Fprintln(out, resp.ImageRef)
	}
	return err
}

// pull-for HANDLER REFERENCE pulls for pods of a runtime handler.
func pullFor(s *session, ctx context.Context, args []string, out io.Writer) error {
	resp, err := s.node.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[1], RuntimeHandler: args[0]}})
	if err == nil {
		fmt.Fprintln(out, resp.ImageRef)
	}
	return err
}

// smallDisk puts the daemon's state on a disk of a few bytes (a size that
// tmpfs understands); call it before the daemon is started.
func smallDisk(s *session, _ context.Context, args []string, _ io.Writer) (err error) {
	s.node.Room.Do(func() { err = unix.Mount("small", s.node.Path("lib"), "tmpfs", 0, "size="+args[0]) })
	return err
}

// disk lists what lies in the image store, as the daemon sees it.
func disk(s *session, _ context.Context, _ []string, out io.Writer) (err error) {
	root := s.node.Path("lib", "images")
	s.node.Room.Do(func() {
		for _, kind := range []string{"images", "layers", "tmp", "quarantine"} {
			entries, readErr := os.ReadDir(filepath.Join(root, kind))
			if readErr != nil && !os.IsNotExist(readErr) {
				err = readErr
			}
			for _, e := range entries {
				fmt.Fprintln(out, kind, e.Name())
			}
		}
	})
	return err
}
