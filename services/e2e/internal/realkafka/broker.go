package realkafka

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Options say where a broker keeps its data and listens.
type Options struct {
	Libraries string // the folder of jars: see Fetch
	Dir       string // made if missing; what is in it is kept
	Port      int    // on loopback; 0 takes a free one
}

// Broker is one broker of Apache Kafka, its own controller, on loopback.
type Broker struct {
	addr       string
	controller string
	dir, libs  string
	java       string
	cmd        *exec.Cmd
	ended      chan struct{}
}

// heapMiB is enough for a broker that serves one machine's tests.
const heapMiB = 512

// Start runs a broker and returns when it serves, which takes some seconds. A
// *MissingError says that Java is missing or the port is taken.
func Start(ctx context.Context, o Options) (*Broker, error) {
	program, err := java()
	if err != nil {
		return nil, err
	}
	if o.Port != 0 {
		if !free(o.Port) {
			return nil, missing("port %d is taken; stop what holds it, or choose another with --port (0: a free one)", o.Port)
		}
	} else if o.Port, err = freePort(); err != nil {
		return nil, err
	}
	controller, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("starting Apache Kafka: %w", err)
	}
	b := &Broker{addr: local(o.Port), controller: local(controller), dir: dir, libs: o.Libraries, java: program}
	if err := os.WriteFile(b.properties(), []byte(b.settings()), 0o644); err != nil {
		return nil, fmt.Errorf("starting Apache Kafka: %w", err)
	}
	if err := b.format(ctx); err != nil {
		return nil, err
	}
	return b, b.Restart(ctx)
}

// Wipe removes a broker's folder, and nothing that is not one or is in use.
func Wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wiping the data directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "server.properties")); err != nil {
		return missing("%s is not wiped: it is not empty and has never been a broker's", dir)
	}
	lock, err := os.Open(filepath.Join(dir, "log", ".lock"))
	if err == nil {
		defer lock.Close()
		// The broker's own, which Java takes as a record lock.
		held := syscall.Flock_t{Type: syscall.F_WRLCK}
		if err := syscall.FcntlFlock(lock.Fd(), syscall.F_GETLK, &held); err == nil && held.Type != syscall.F_UNLCK {
			return missing("%s is not wiped: a running broker uses it; stop that first", dir)
		}
	}
	return os.RemoveAll(dir)
}

// Addr is host:port of the broker: what KAFKA_BROKERS must say.
func (b *Broker) Addr() string { return b.addr }

// Log is the file that has what the broker says.
func (b *Broker) Log() string { return filepath.Join(b.dir, "broker.log") }

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }

// settings are those of a cluster of one. What is not said has Kafka's default.
func (b *Broker) settings() string {
	return strings.Join([]string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + b.controller,
		"controller.listener.names=CONTROLLER",
		"listeners=PLAINTEXT://" + b.addr + ",CONTROLLER://" + b.controller,
		"advertised.listeners=PLAINTEXT://" + b.addr,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(b.dir, "log"),
		// Topics are made by provision; what is misspelt must not come to be.
		"auto.create.topics.enable=false",
		// There is nobody to hold another copy.
		"offsets.topic.replication.factor=1",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
		// For 50 partitions each a broker of this size needs seconds to load
		// after a kill.
		"offsets.topic.num.partitions=5",
		"transaction.state.log.num.partitions=5",
		// Longer than any topic's retention: an expired offset stops a group.
		"offsets.retention.minutes=43200",
		// Tests start one member at a time, and wait for the end of sessions.
		"group.initial.rebalance.delay.ms=0",
		"group.min.session.timeout.ms=1000",
		// After a kill the broker is let in again when its former self has been
		// silent for so long.
		"broker.heartbeat.interval.ms=500",
		"broker.session.timeout.ms=3000",
		"",
	}, "\n")
}

// format prepares an empty folder, once: the identity of the cluster and the
// versions of its features.
func (b *Broker) format(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(b.dir, "log", "meta.properties")); err == nil {
		return nil
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails; it may begin with a dash, which is no option
	said, err := b.command(ctx, "kafka.tools.StorageTool", "format", "--cluster-id="+base64.RawURLEncoding.EncodeToString(id[:]), "--config", b.properties()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("formatting the storage of Apache Kafka in %s: %w\n%s", b.dir, err, said)
	}
	return nil
}

func (b *Broker) command(ctx context.Context, class string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.java, append([]string{
		fmt.Sprintf("-Xmx%dm", heapMiB),
		// One thread for garbage: the machine has services to run.
		"-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-cp", filepath.Join(b.libs, "*"), class,
	}, args...)...)
	cmd.Dir = b.dir
	cmd.SysProcAttr = attributes()
	return cmd
}

// Restart starts the broker again, at its address and on its data, after Kill, Stop
// or an end of its own, and returns when it serves.
func (b *Broker) Restart(ctx context.Context) error {
	log, err := os.OpenFile(b.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("starting Apache Kafka: %w", err)
	}
	defer log.Close() // the child has it
	cmd := b.command(context.WithoutCancel(ctx), "kafka.Kafka", b.properties())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Apache Kafka: %w", err)
	}
	ended := make(chan struct{})
	b.cmd, b.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // how it ended is read from ProcessState
		close(ended)
	}()
	if err := b.serves(ctx); err != nil {
		b.Kill()
		return fmt.Errorf("starting Apache Kafka at %s: %w; its log is %s", b.addr, err, b.Log())
	}
	return nil
}

// serves waits until the broker answers and is not fenced.
func (b *Broker) serves(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr), kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		brokers, err := kadm.NewClient(cl).ListBrokers(attempt)
		cancel()
		if err == nil && len(brokers) > 0 {
			return nil
		}
		select {
		case <-b.ended:
			return errors.New("it ended: " + b.cmd.ProcessState.String())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Kill ends the broker as kill -9 does.
func (b *Broker) Kill() {
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.ended
}

// Pause stops the broker where it is (SIGSTOP) until Resume.
func (b *Broker) Pause() error { return b.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused broker go on.
func (b *Broker) Resume() error { return b.cmd.Process.Signal(syscall.SIGCONT) }

// Ended is closed when the broker has ended, whatever the reason.
func (b *Broker) Ended() <-chan struct{} { return b.ended }

// stopGrace is how long a broker that was told to end may write down what it has.
const stopGrace = 20 * time.Second

// Stop tells the broker to end, and waits for it.
func (b *Broker) Stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-b.ended:
	case <-time.After(stopGrace):
		b.Kill()
	}
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func free(port int) bool {
	l, err := net.Listen("tcp", local(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// freePort is one below those from which the kernel chooses for connections: while a
// broker is away, a client that looks for it must not be given its port.
func freePort() (int, error) {
	for range 100 {
		n, err := rand.Int(rand.Reader, big.NewInt(12_000))
		if err != nil {
			return 0, err
		}
		if port := 20_000 + int(n.Int64()); free(port) {
			return port, nil
		}
	}
	return 0, errors.New("no port of a hundred tried is free")
}
