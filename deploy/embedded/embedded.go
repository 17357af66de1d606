// Package embedded runs everything that Hikyaku talks to in one process, with
// the real protocols on the usual ports: Kafka, a Schema Registry, ClickHouse,
// S3 and a mail server. The services cannot tell the difference, and none of
// their code is here.
//
// What it promises: what a part has acknowledged survives kill -9 of this
// process (with Sync also a power cut, ClickHouse excepted: it is filled again
// from Kafka). A data directory has one owner at a time. Each part's own
// package says what it does not promise.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb"
	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
	"github.com/hikyaku/hikyaku/deploy/embedded/registry"
	"github.com/hikyaku/hikyaku/deploy/embedded/s3"
)

// Part is one of the servers.
type Part string

// The parts, in the order in which they are started.
const (
	Outbox     Part = "outbox"
	Registry   Part = "schema registry"
	Kafka      Part = "kafka"
	ClickHouse Part = "clickhouse"
	S3         Part = "s3" // last: it changes the working directory
)

// Parts returns all parts, in the order in which they are started.
func Parts() []Part { return []Part{Outbox, Registry, Kafka, ClickHouse, S3} }

// Variable is the environment variable that tells services where a part is.
// Where it is set, the part is somebody else's and is not started.
func (p Part) Variable() string {
	switch p {
	case Outbox:
		return "SMTP_ADDR"
	case Registry:
		return "SCHEMA_REGISTRY_URL"
	case Kafka:
		return "KAFKA_BROKERS"
	case ClickHouse:
		return "CLICKHOUSE_URL"
	case S3:
		return "AWS_ENDPOINT_URL_S3"
	}
	return ""
}

// DefaultClickHouseAddr is where clients expect ClickHouse's HTTP interface.
const DefaultClickHouseAddr = "127.0.0.1:8123"

// DefaultDataDir is where data is kept when nobody says otherwise.
const DefaultDataDir = ".hikyaku"

// closeTimeout bounds how long requests under way hold up Close.
const closeTimeout = 3 * time.Second

// Options says what to run and where. The zero value runs everything at the
// default addresses in DefaultDataDir.
type Options struct {
	DataDir string // made if missing
	Parts   []Part // nil runs all

	// Listen addresses, host:port. Empty takes the default; port 0 a free one.
	KafkaAddr, RegistryAddr, ClickHouseAddr, S3Addr, SMTPAddr, OutboxAddr string

	// S3 bucket and credentials; s3's defaults if empty.
	S3Bucket, S3AccessKeyID, S3SecretAccessKey, S3Region string

	Sync                  bool  // fsync before acknowledging
	CountOnly             bool  // the outbox keeps its index only
	ClickHouseMemoryBytes int64 // chdb's default if 0

	Logger *slog.Logger // nothing is logged if nil
}

// PortTakenError says that another process has a port that a part needs.
type PortTakenError struct {
	Part Part
	Addr string
	Err  error
}

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("%s: port %s is taken; stop what holds it, or set %s to use another %s",
		e.Part, e.Addr, e.Part.Variable(), e.Part)
}

// Unwrap gives the operating system's error.
func (e *PortTakenError) Unwrap() error { return e.Err }

// Stack is the running parts. Addresses of parts that do not run are empty.
type Stack struct {
	KafkaAddr     string // host:port
	RegistryURL   string
	ClickHouseURL string
	S3Endpoint    string
	S3Folder      string // a file dropped here is an object
	SMTPAddr      string // host:port
	OutboxURL     string // the page
	OutboxDir     string // mbox files and index.tsv
	DataDir       string // absolute

	options Options
	started []Part
	failed  chan error
	closers []func() error
	unlock  func() // after the closers
	closing chan struct{}
	once    sync.Once
	err     error
}

// Start runs the parts and returns when all of them serve. Every port is
// bound before anything else is done: a taken one is a *PortTakenError, a data
// directory in use a *LockedError.
func Start(ctx context.Context, o Options) (_ *Stack, err error) {
	if o.DataDir == "" {
		o.DataDir = DefaultDataDir
	}
	if o.Parts == nil {
		o.Parts = Parts()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for value, fallback := range map[*string]string{
		&o.KafkaAddr: kafka.DefaultAddr, &o.RegistryAddr: registry.DefaultAddr, &o.ClickHouseAddr: DefaultClickHouseAddr,
		&o.S3Addr: s3.DefaultAddr, &o.SMTPAddr: outbox.DefaultSMTPAddr, &o.OutboxAddr: outbox.DefaultPageAddr,
		&o.S3Bucket: s3.DefaultBucket, &o.S3AccessKeyID: s3.DefaultAccessKeyID,
		&o.S3SecretAccessKey: s3.DefaultSecretAccessKey, &o.S3Region: s3.DefaultRegion,
	} {
		if *value == "" {
			*value = fallback
		}
	}
	// Absolute, because the S3 gateway changes the working directory.
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("starting the embedded stack: %w", err)
	}
	s := &Stack{DataDir: dir, options: o, failed: make(chan error, 8), closing: make(chan struct{})}
	unlock, err := Lock(dir)
	if err != nil {
		return nil, err
	}
	var mail, page, schemas, broker, clickhouse net.Listener // nil once a part has taken it
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			for _, l := range []net.Listener{mail, page, schemas, broker, clickhouse} {
				if l != nil {
					l.Close()
				}
			}
			unlock()
		}
	}()
	for _, b := range []struct {
		part     Part
		addr     string
		listener *net.Listener
	}{
		{Outbox, o.SMTPAddr, &mail},
		{Outbox, o.OutboxAddr, &page},
		{Registry, o.RegistryAddr, &schemas},
		{Kafka, o.KafkaAddr, &broker},
		{ClickHouse, o.ClickHouseAddr, &clickhouse},
		{S3, o.S3Addr, nil}, // only looked at: the gateway binds for itself, at the end
	} {
		if !slices.Contains(o.Parts, b.part) {
			continue
		}
		l, err := net.Listen("tcp", b.addr)
		if err != nil {
			return nil, bindError(b.part, b.addr, err)
		}
		if b.listener == nil {
			l.Close()
		} else {
			*b.listener = l
		}
	}

	for _, p := range Parts() {
		if !slices.Contains(o.Parts, p) {
			continue
		}
		began := time.Now()
		switch p {
		case Outbox:
			err = s.startOutbox(mail, page)
			mail, page = nil, nil
		case Registry:
			err = s.startRegistry(schemas)
			schemas = nil
		case Kafka:
			err = s.startKafka(ctx, broker)
			broker = nil
		case ClickHouse:
			err = s.startClickHouse(clickhouse)
			clickhouse = nil
		case S3:
			err = s.startS3()
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("starting the embedded stack: %w", context.Cause(ctx))
		}
		s.started = append(s.started, p)
		o.Logger.Info("part started", "part", string(p), "took", time.Since(began).Round(time.Millisecond).String())
	}
	s.unlock = unlock
	return s, nil
}

func bindError(p Part, addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return &PortTakenError{Part: p, Addr: addr, Err: err}
	}
	return fmt.Errorf("starting %s: %w", p, err)
}

func (s *Stack) startOutbox(mail, page net.Listener) error {
	s.OutboxDir = filepath.Join(s.DataDir, "outbox")
	box, err := outbox.Open(outbox.Options{
		Dir: s.OutboxDir, CountOnly: s.options.CountOnly, Sync: s.options.Sync, Logger: s.options.Logger,
	})
	if err != nil {
		return errors.Join(err, mail.Close(), page.Close())
	}
	s.SMTPAddr, s.OutboxURL = mail.Addr().String(), "http://"+page.Addr().String()
	go func() { s.fail(Outbox, box.ServeSMTP(mail)) }()
	stop := s.serve(Outbox, page, box.Handler())
	s.closers = append(s.closers, func() error { return errors.Join(stop(), box.Close()) })
	return nil
}

func (s *Stack) startRegistry(l net.Listener) error {
	r, err := registry.Open(filepath.Join(s.DataDir, "registry", "schemas.jsonl"))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.RegistryURL = "http://" + l.Addr().String()
	stop := s.serve(Registry, l, r.Handler())
	s.closers = append(s.closers, func() error { return errors.Join(stop(), r.Close()) })
	return nil
}

func (s *Stack) startKafka(ctx context.Context, l net.Listener) error {
	b, err := kafka.Open(ctx, kafka.Options{
		Dir: filepath.Join(s.DataDir, "kafka"), Listener: l, Sync: s.options.Sync, Logger: s.options.Logger,
	})
	if err != nil {
		return err
	}
	s.KafkaAddr = b.Addr()
	s.closers = append(s.closers, b.Close)
	return nil
}

func (s *Stack) startClickHouse(l net.Listener) error {
	engine, err := chdb.Open(filepath.Join(s.DataDir, "clickhouse"), chdb.Options{
		MaxServerMemoryBytes: s.options.ClickHouseMemoryBytes, Log: s.options.Logger,
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.ClickHouseURL = "http://" + l.Addr().String()
	stop := s.serve(ClickHouse, l, engine.Handler())
	s.closers = append(s.closers, func() error { return errors.Join(stop(), engine.Close()) })
	return nil
}

func (s *Stack) startS3() error {
	server, err := s3.Open(s3.Options{
		Dir: filepath.Join(s.DataDir, "s3"), Addr: s.options.S3Addr, Bucket: s.options.S3Bucket,
		AccessKeyID: s.options.S3AccessKeyID, SecretAccessKey: s.options.S3SecretAccessKey, Region: s.options.S3Region,
	})
	if err != nil {
		return bindError(S3, s.options.S3Addr, err)
	}
	s.S3Endpoint, s.S3Folder = server.Endpoint(), server.Folder()
	s.closers = append(s.closers, server.Close)
	return nil
}

// serve runs an HTTP server on l; the function it returns stops it.
func (s *Stack) serve(p Part, l net.Listener, h http.Handler) (stop func() error) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		err := server.Serve(l)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		s.fail(p, err)
	}()
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			return server.Close() // somebody is still asking: drop them
		}
		return nil
	}
}

// fail reports a server that ended though nobody closed it.
func (s *Stack) fail(p Part, err error) {
	select {
	case <-s.closing:
		return
	default:
	}
	if err == nil {
		err = errors.New("its server ended")
	}
	select {
	case s.failed <- fmt.Errorf("running %s: %w", p, err):
	default:
	}
}

// Failed gives the first error of a part that ended by itself. The rest still
// runs then; whoever runs the stack should close it.
func (s *Stack) Failed() <-chan error { return s.failed }

// Started returns the parts that run.
func (s *Stack) Started() []Part { return slices.Clone(s.started) }

// Env returns the environment that services need to find the running parts.
func (s *Stack) Env() map[string]string {
	env := map[string]string{}
	for _, p := range s.started {
		switch p {
		case Outbox:
			env["SMTP_ADDR"] = s.SMTPAddr
		case Registry:
			env["SCHEMA_REGISTRY_URL"] = s.RegistryURL
		case Kafka:
			env["KAFKA_BROKERS"] = s.KafkaAddr
		case ClickHouse:
			env["CLICKHOUSE_URL"] = s.ClickHouseURL
		case S3:
			env["AWS_ENDPOINT_URL_S3"] = s.S3Endpoint
			env["AWS_ACCESS_KEY_ID"] = s.options.S3AccessKeyID
			env["AWS_SECRET_ACCESS_KEY"] = s.options.S3SecretAccessKey
			env["AWS_REGION"] = s.options.S3Region
			env["S3_BUCKET"] = s.options.S3Bucket
		}
	}
	return env
}

// Close stops all parts at once, each after the requests it has under way or
// a few seconds, and gives the data directory free.
func (s *Stack) Close() error {
	s.once.Do(func() {
		close(s.closing)
		errs := make([]error, len(s.closers))
		var wg sync.WaitGroup
		for i, stop := range s.closers {
			wg.Go(func() { errs[i] = stop() })
		}
		wg.Wait()
		s.err = errors.Join(errs...)
		if s.unlock != nil {
			s.unlock()
		}
	})
	return s.err
}

// LockedError says that another process uses the data directory.
type LockedError struct {
	Dir string
	PID string // of that process, if it is known
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != "" {
		who = "process " + e.PID
	}
	return fmt.Sprintf("data directory %s is in use by %s; stop it, or set HIKYAKU_DATA to another directory", e.Dir, who)
}

// Lock makes this process the owner of a data directory, which it makes if it
// is missing. The kernel gives the lock back when the process ends, however it
// ends. If another process has it the error is a *LockedError.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "embedded.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking the data directory %s: %w", dir, err)
		}
		pid := make([]byte, 20)
		n, _ := f.Read(pid)
		return nil, &LockedError{Dir: dir, PID: string(pid[:n])}
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprint(f, os.Getpid())
	}
	return func() {
		// Not by closing alone: a child that is just being started has the file
		// open too, until it is its own program.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}, nil
}
