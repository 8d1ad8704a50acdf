package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/longshore/longshore/images"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// The daemon's own service beside the CRI, on the same socket: what the
// longshore command asks of a running daemon. A list of strings goes in and
// one comes back.
const (
	adminService = "longshore.v1.Admin"
	importMethod = "ImportImage"
)

// registerAdmin adds the service to a server.
func registerAdmin(g *grpc.Server, store *images.Store) {
	handler := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var args structpb.ListValue
		if err := decode(&args); err != nil {
			return nil, err
		}
		words := stringsOf(&args)
		if len(words) != 2 {
			return nil, status.Errorf(codes.InvalidArgument, "%s takes a path and a name", importMethod)
		}
		lines, err := importTo(ctx, store, words[0], words[1])
		if err != nil {
			return nil, status.Error(codes.Unknown, err.Error())
		}
		return listOf(lines...), nil
	}
	g.RegisterService(&grpc.ServiceDesc{ServiceName: adminService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: importMethod, Handler: handler}}}, store)
}

func listOf(words ...string) *structpb.ListValue {
	list := &structpb.ListValue{}
	for _, w := range words {
		list.Values = append(list.Values, structpb.NewStringValue(w))
	}
	return list
}

func stringsOf(list *structpb.ListValue) []string {
	var words []string
	for _, v := range list.Values {
		words = append(words, v.GetStringValue())
	}
	return words
}

// importTo takes in the images of an archive or layout and describes each in
// a line.
func importTo(ctx context.Context, store *images.Store, path, name string) ([]string, error) {
	r, err := openArchive(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	imported, err := store.Import(ctx, r, name)
	var lines []string
	for _, img := range imported {
		lines = append(lines, img.ID+" "+strings.Join(img.Tags, " "))
	}
	return lines, err
}

// openArchive opens an archive; an image layout that is a directory is read as
// the archive that it would make.
func openArchive(path string) (io.ReadCloser, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.Open(path)
	}
	r, w := io.Pipe()
	go func() { // ends when the reader is closed, at the latest
		archive := tar.NewWriter(w)
		err := archive.AddFS(os.DirFS(path))
		if err == nil {
			err = archive.Close()
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// importImage asks the running daemon to import, or without one works on the
// store itself.
func importImage(ctx context.Context, cfg *Config, path, name string, out io.Writer) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	lines, err := importByDaemon(ctx, cfg, path, name)
	if errors.Is(err, errNoDaemon) {
		lines, err = importAlone(ctx, cfg, path, name)
	}
	for _, line := range lines {
		fmt.Fprintln(out, line)
	}
	return err
}

var errNoDaemon = errors.New("no daemon answers")

func importByDaemon(ctx context.Context, cfg *Config, path, name string) ([]string, error) {
	probe, err := net.Dial("unix", cfg.Socket)
	if err != nil {
		return nil, errNoDaemon
	}
	probe.Close()
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var lines structpb.ListValue
	if err := conn.Invoke(ctx, "/"+adminService+"/"+importMethod, listOf(path, name), &lines); err != nil {
		return nil, errors.New(status.Convert(err).Message())
	}
	return stringsOf(&lines), nil
}

func importAlone(ctx context.Context, cfg *Config, path, name string) ([]string, error) {
	log, _, err := newLogger(cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	unlock, err := lockState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	store, err := images.Open(filepath.Join(cfg.StateDir, "images"), cfg.images(), log)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return importTo(ctx, store, path, name)
}
