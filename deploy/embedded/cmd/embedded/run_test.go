package main

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/deploy/embedded"
	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
)

// With asCommand set the test binary is the command.
const asCommand = "EMBEDDED_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// elsewhere leaves ClickHouse out: it needs a library that is no business of these tests.
var elsewhere = []string{"CLICKHOUSE_URL=http://elsewhere"}

func command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{asCommand + "=1", "PATH=" + os.Getenv("PATH")}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// process is a running command.
type process struct {
	cmd   *exec.Cmd
	lines map[string]string // what was printed for each part
	once  sync.Once
}

func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: command(env, args...), lines: map[string]string{}}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return p
		}
		p.lines[strings.TrimSpace(lines.Text()[:16])] = strings.TrimSpace(lines.Text()[16:])
	}
	require.Fail(t, "ended before it was ready")
	return nil
}

func (p *process) at(part embedded.Part) string {
	addr, _, _ := strings.Cut(p.lines[string(part)], ",")
	return addr
}

func (p *process) end(s os.Signal) {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(s)
		_ = p.cmd.Wait()
	})
}

func freePorts(dir string) []string {
	const free = "127.0.0.1:0"
	return []string{"--data", dir, "--kafka", free, "--registry", free, "--s3", free, "--smtp", free, "--outbox", free}
}

func TestKilledStackKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	open := func(p *process) (*kgo.Client, *sr.Client, *smtp.Client) {
		k, err := kgo.NewClient(kgo.SeedBrokers(p.at(embedded.Kafka)))
		require.NoError(t, err)
		t.Cleanup(k.Close)
		r, err := sr.NewClient(sr.URLs(p.at(embedded.Registry)))
		require.NoError(t, err)
		m, err := smtp.Dial(p.at(embedded.Outbox))
		require.NoError(t, err)
		t.Cleanup(func() { m.Close() })
		return k, r, m
	}
	p := start(t, elsewhere, freePorts(dir)...)
	k, r, m := open(p)
	_, err := kadm.NewClient(k).CreateTopic(ctx, 1, -1, nil, "shop.events")
	require.NoError(t, err)
	require.NoError(t, k.ProduceSync(ctx, &kgo.Record{Topic: "shop.events", Value: []byte("x")}).FirstErr())
	first, err := r.CreateSchema(ctx, "a-value", sr.Schema{Schema: `"string"`})
	require.NoError(t, err)
	second, err := r.CreateSchema(ctx, "b-value", sr.Schema{Schema: `"long"`})
	require.NoError(t, err)
	require.NoError(t, m.SendMail("news@example.test", []string{"ada@example.test"}, strings.NewReader("Subject: 1\r\n\r\n")))
	p.end(syscall.SIGKILL)

	p = start(t, elsewhere, freePorts(dir)...)
	k, r, m = open(p)
	ends, err := kadm.NewClient(k).ListEndOffsets(ctx, "shop.events")
	require.NoError(t, err)
	end, _ := ends.Lookup("shop.events", 0)
	assert.EqualValues(t, 1, end.Offset)
	again, err := r.CreateSchema(ctx, "b-value", sr.Schema{Schema: `"long"`})
	require.NoError(t, err)
	assert.Equal(t, second.ID, again.ID)
	again, err = r.CreateSchema(ctx, "a-value", sr.Schema{Schema: `"string"`})
	require.NoError(t, err)
	assert.Equal(t, first.ID, again.ID)
	require.NoError(t, m.SendMail("news@example.test", []string{"bob@example.test"}, strings.NewReader("Subject: 2\r\n\r\n")))
	var to []string
	require.NoError(t, outbox.ReadIndex(filepath.Join(dir, "outbox"), func(e outbox.Entry) error {
		to = append(to, e.To)
		return nil
	}))
	assert.Equal(t, []string{"ada@example.test", "bob@example.test"}, to)
}

func TestSignalStopsItWithinSeconds(t *testing.T) {
	t.Parallel()
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		dir := t.TempDir()
		p := start(t, elsewhere, freePorts(dir)...)
		c, err := smtp.Dial(p.at(embedded.Outbox)) // an idle connection must not hold it up
		require.NoError(t, err)
		require.NoError(t, c.Noop())
		p.end(s)
		assert.Equal(t, exitDone, p.cmd.ProcessState.ExitCode(), "after stopTimeout it is another")
		assert.FileExists(t, filepath.Join(dir, "kafka", "clean"))
		c.Close()
	}
}

func TestTakenPortIsNamedWithItsVariable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for flag, variable := range map[string]string{
		"--kafka": "KAFKA_BROKERS", "--registry": "SCHEMA_REGISTRY_URL", "--s3": "AWS_ENDPOINT_URL_S3", "--smtp": "SMTP_ADDR", "--outbox": "SMTP_ADDR",
	} {
		cmd := command(elsewhere, append(freePorts(t.TempDir()), flag, l.Addr().String())...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run()
		assert.Equal(t, exitMissing, cmd.ProcessState.ExitCode(), flag)
		assert.Contains(t, stderr.String(), "port "+l.Addr().String()+" is taken", flag)
		assert.Contains(t, stderr.String(), "set "+variable+" to", flag)
	}
}

func TestTakenPortOfClickHouse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	cmd := command(nil, append(freePorts(t.TempDir()), "--clickhouse", l.Addr().String())...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	assert.Equal(t, exitMissing, cmd.ProcessState.ExitCode())
	assert.Contains(t, stderr.String(), "set CLICKHOUSE_URL to")
}

func TestDataDirectoryHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, elsewhere, freePorts(dir)...)
	cmd := command(elsewhere, freePorts(dir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	assert.Equal(t, exitMissing, cmd.ProcessState.ExitCode())
	assert.Contains(t, stderr.String(), dir+" is in use by process ")
	p.end(syscall.SIGKILL)
	start(t, elsewhere, freePorts(dir)...) // the lock went with the process
}

func TestPartsElsewhereAreNotStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, append(elsewhere, "KAFKA_BROKERS=kafka:9092", "SMTP_ADDR=mail:25", "SCHEMA_REGISTRY_URL=http://x"), freePorts(dir)...)
	assert.Equal(t, "elsewhere: KAFKA_BROKERS=kafka:9092", p.lines["kafka"])
	assert.Equal(t, "elsewhere: SMTP_ADDR=mail:25", p.lines["outbox"])
	assert.Contains(t, p.lines["s3"], "http://127.0.0.1:")
	assert.NoDirExists(t, filepath.Join(dir, "kafka"))
	assert.NoDirExists(t, filepath.Join(dir, "outbox"))
}

func TestCountingOutbox(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, nil, "outbox", "--count", "--listen", "127.0.0.1:0", "--dir", dir)
	c, err := smtp.Dial(p.at(embedded.Outbox))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SendMail("news@example.test", []string{"ada@example.test"}, strings.NewReader("Message-ID: <1@x>\r\n\r\n")))
	var got []outbox.Entry
	require.NoError(t, outbox.ReadIndex(dir, func(e outbox.Entry) error {
		got = append(got, e)
		return nil
	}))
	require.Len(t, got, 1)
	assert.Equal(t, "<1@x>", got[0].MessageID)
	assert.Equal(t, outbox.NotKept, got[0].File)
	p.end(syscall.SIGTERM)
	assert.Equal(t, exitDone, p.cmd.ProcessState.ExitCode())
}

func TestUsage(t *testing.T) {
	t.Parallel()
	none := func(string) (string, bool) { return "", false }
	var out, errs bytes.Buffer
	assert.Equal(t, exitDone, run(context.Background(), []string{"-h"}, none, &out, &errs))
	for _, p := range embedded.Parts() {
		assert.Contains(t, errs.String(), p.Variable())
	}
	assert.Equal(t, exitDone, run(context.Background(), []string{"outbox", "-h"}, none, &out, &errs))
	assert.Equal(t, exitUsage, run(context.Background(), []string{"--nonsense"}, none, &out, &errs))
	assert.Equal(t, exitUsage, run(context.Background(), []string{"start"}, none, &out, &errs))
	assert.Empty(t, out.String())
}
