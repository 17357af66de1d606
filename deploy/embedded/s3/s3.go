// Package s3 is an S3 server in this process: versitygw over a plain
// directory. A bucket is a folder, an object is a file, and dropping a file
// into the folder is uploading it.
//
// What callers must know:
//
//   - The ETag of an uploaded object is kept in an extended attribute of its
//     file (beside the data, in <dir>.attributes, on file systems without them).
//     A dropped file has none: its ETag is empty, even after it changes, and a
//     request with If-Match is then refused with 412. Take size and
//     modification time instead, and take the file only when both were the
//     same at two looks.
//   - A file that replaces an uploaded object by rename has no ETag either; one
//     written over it in place keeps the old, wrong ETag.
//   - The gateway works with paths relative to its directory, so Open changes
//     the working directory of the whole process, and Close changes it back.
//     Whoever is in the same process uses absolute paths.
//   - One gateway per process at a time.
//   - An upload is complete or absent after kill -9 (it is linked into place
//     when it is whole); nothing is fsynced.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
)

// Defaults of Options; fixed so that commands agree without being told.
const (
	DefaultAddr            = "127.0.0.1:7070"
	DefaultBucket          = "hikyaku"
	DefaultAccessKeyID     = "hikyaku"
	DefaultSecretAccessKey = "hikyaku-embedded"
	DefaultRegion          = "us-east-1"
)

// Limits of the gateway: connections, and requests at once.
const (
	maxConnections = 4096
	maxRequests    = 1024
	maxParts       = 10000 // of one multipart upload, as AWS
)

// closeTimeout is how long Close waits for requests that are under way.
const closeTimeout = 12 * time.Second

// Options says where the objects are and who may read them. Only Dir is required.
type Options struct {
	Dir             string // holds the buckets; made if missing
	Addr            string // DefaultAddr if empty; port 0 takes a free one
	Bucket          string // made at start; DefaultBucket if empty
	AccessKeyID     string
	SecretAccessKey string
	Region          string
	VersionsDir     string // keeps older versions, in buckets that are told to; outside Dir; no bucket can be told if empty
}

// Server is a running gateway.
type Server struct {
	addr   string
	folder string
	before string // working directory to go back to
	cancel context.CancelFunc
	done   chan error
}

// Open starts the gateway and returns when it serves. A taken port is an
// error that wraps syscall.EADDRINUSE.
func Open(o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("opening s3: no directory")
	}
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	set(&o.Addr, DefaultAddr)
	set(&o.Bucket, DefaultBucket)
	set(&o.AccessKeyID, DefaultAccessKeyID)
	set(&o.SecretAccessKey, DefaultSecretAccessKey)
	set(&o.Region, DefaultRegion)

	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening s3: %w", err)
	}
	folder := filepath.Join(dir, o.Bucket)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("opening s3: %w", err)
	}
	before, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("opening s3: %w", err)
	}

	// The gateway binds its port itself and does not tell which one it got, so
	// the port is found here first. Another process may take a free one in
	// between: then the next is tried.
	_, port, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return nil, fmt.Errorf("opening s3: %w", err)
	}
	for attempt := 1; ; attempt++ {
		var addr string
		if addr, err = probe(o.Addr); err != nil {
			return nil, fmt.Errorf("opening s3: %w", err)
		}
		var s *Server
		if s, err = start(o, dir, addr); err == nil {
			s.folder, s.before = folder, before
			return s, nil
		}
		_ = os.Chdir(before)
		if _, taken := probe(addr); port != "0" || taken == nil || attempt == 10 {
			return nil, fmt.Errorf("opening s3: %w", err)
		}
	}
}

// probe binds and frees an address; it returns the one it got.
func probe(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func start(o Options, dir, addr string) (*Server, error) {
	files, err := backend(dir, o.VersionsDir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{addr: addr, cancel: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		s.done <- embedgw.RunVersityGW(ctx, files, &embedgw.Config{
			RootUserAccess: o.AccessKeyID,
			RootUserSecret: o.SecretAccessKey,
			// Given, because the gateway prints to stdout when it has to choose.
			IAMService: auth.NewIAMServiceSingle(auth.Account{
				Access: o.AccessKeyID, Secret: o.SecretAccessKey, Role: auth.RoleAdmin,
			}),
			Region:            o.Region,
			Ports:             []string{addr},
			MaxConnections:    maxConnections,
			MaxRequests:       maxRequests,
			MultipartMaxParts: maxParts,
			HealthPath:        "/healthz",
			KeepAlive:         true,
			Quiet:             true,
			S3Options:         []s3api.Option{s3api.WithOnListen(func() { close(ready) })},
		})
	}()
	select {
	case <-ready:
		return s, nil
	case err := <-s.done:
		cancel()
		if err == nil {
			err = errors.New("the gateway ended at once")
		}
		return nil, err
	}
}

func backend(dir, versions string) (*posix.Posix, error) {
	// Extended attributes travel with a file and go when it is replaced; that
	// makes them truer than a directory beside it.
	var attributes meta.MetadataStorer = meta.XattrMeta{}
	opts := posix.PosixOpts{VersioningDir: versions}
	if err := (meta.XattrMeta{}).Test(dir); err != nil {
		beside := dir + ".attributes" // must not be inside
		if err := os.MkdirAll(beside, 0o755); err != nil {
			return nil, err
		}
		sidecar, err := meta.NewSideCar(beside)
		if err != nil {
			return nil, err
		}
		attributes, opts.SideCarDir = sidecar, beside
	}
	return posix.New(dir, attributes, opts)
}

// Addr is the server's address, host:port.
func (s *Server) Addr() string { return s.addr }

// Endpoint is the value of AWS_ENDPOINT_URL_S3.
func (s *Server) Endpoint() string { return "http://" + s.addr }

// Folder is the bucket's directory: a file dropped there is an object.
func (s *Server) Folder() string { return s.folder }

// Close finishes the requests under way and stops.
func (s *Server) Close() error {
	s.cancel()
	select {
	case err := <-s.done:
		if cd := os.Chdir(s.before); err == nil && cd != nil {
			return fmt.Errorf("closing s3: %w", cd)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("closing s3: %w", err)
		}
		return nil
	case <-time.After(closeTimeout):
		return fmt.Errorf("closing s3: still serving after %v", closeTimeout)
	}
}
