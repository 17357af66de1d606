package console

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/provision"
)

// stage is a provisioned namespace with nobody in it but the command.
type stage struct {
	*kafkatest.Kafka
	t         testing.TB
	namespace string
	cluster   *kafka.Cluster // writes what services would
	conn      *clickhouse.Conn
	env       map[string]string
}

func newStage(t testing.TB) *stage {
	t.Helper()
	s := &stage{Kafka: kafkatest.Start(t, kafkatest.Bare()), t: t, namespace: clickhousetest.Namespace()}
	engine := clickhousetest.Config(t)
	var err error
	s.conn, err = clickhouse.Open(engine, s.namespace)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.conn.Exec(context.Background(), "DROP DATABASE "+s.conn.Database()+" SYNC"))
		s.conn.Close()
	})
	cfg := s.Config()
	cfg.Namespace = s.namespace
	_, err = provision.Run(t.Context(), provision.Options{Kafka: cfg,
		Config:  provision.Config{Partitions: 4, ReplicationFactor: 1, Patience: kafkatest.Patience},
		Migrate: func(ctx context.Context) ([]string, error) { return s.conn.Migrate(ctx, migrations.FS) }})
	require.NoError(t, err)
	s.cluster = s.ClusterWith(t, topic.Resolver, cfg)
	s.env = map[string]string{"KAFKA_BROKERS": strings.Join(cfg.Brokers, ","), "SCHEMA_REGISTRY_URL": cfg.RegistryURL, "CLICKHOUSE_URL": engine.URL, "NAMESPACE": s.namespace}
	return s
}

// answer is what one call of the command did.
type answer struct {
	code     int
	out, err string
}

func (s *stage) hikyaku(args ...string) answer { return s.say("", args...) }

// say calls the command with something on stdin.
func (s *stage) say(stdin string, args ...string) answer {
	s.t.Helper()
	var out, errs locked
	code := run(s.t.Context(), args, envconfig.MapLookuper(s.env), strings.NewReader(stdin), &out, &errs)
	return answer{code, out.String(), errs.String()}
}

// locked may be read while the command still writes.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// ok calls the command and requires exit code 0.
func (s *stage) ok(args ...string) answer {
	s.t.Helper()
	a := s.hikyaku(args...)
	require.Equal(s.t, exitDone, a.code, "hikyaku %v: %s%s", args, a.out, a.err)
	return a
}

// one is the one JSON value that the command printed.
func (a answer) one(t testing.TB) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(a.out))
	var v map[string]any
	require.NoError(t, d.Decode(&v), a.out)
	require.False(t, d.More(), "more than one value: %s", a.out)
	return v
}

// lines are the JSON Lines that the command printed.
func (a answer) lines(t testing.TB) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(a.out) {
		var v map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &v), line)
		out = append(out, v)
	}
	return out
}

// files writes definitions into a directory of their own.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// letters are definitions that most tests use.
const letters = `kind: Audience
id: adults
filter:
  all:
    - attribute: {name: age, gte: 18}
    - event: {name: visit, within: 30d}
---
kind: Template
id: hello
channel: email
subject: "Hello {{ name }}"
html: "<html><body><p>Hello {{ name }}, <a href='https://example.test/x'>look</a></p></body></html>"
text: "Hello {{ name }}, look"
strict: true
---
kind: Campaign
id: hello-all
audience: adults
template: hello
from: {name: Hikyaku, address: hello@example.test}
policy: at_most_once
consent: not_unsubscribed
`

func (s *stage) apply(text string) {
	s.t.Helper()
	s.ok("apply", "-f", files(s.t, map[string]string{"all.yaml": text}))
}

// row is a row of a *_rows table. ingested_at is now unless given: retention goes
// by it.
type row map[string]any

func (s *stage) insert(table string, rows ...row) {
	s.t.Helper()
	for _, r := range rows {
		if _, ok := r["ingested_at"]; !ok {
			r["ingested_at"] = time.Now()
		}
		columns := slices.Sorted(maps.Keys(r))
		// Not the test's own context: whoever plays a service may still be writing when it ends.
		require.NoError(s.t, s.conn.Insert(context.WithoutCancel(s.t.Context()), table, columns, 1, func(b driver.Batch) error {
			var values []any
			for _, c := range columns {
				v := r[c]
				if id, ok := v.(identity.ID); ok {
					v = uuid.UUID(id)
				}
				values = append(values, v)
			}
			return b.Append(values...)
		}), table)
	}
}

// visitor is somebody in the audience adults, with an address.
func (s *stage) visitor(userID, name string, age int64) {
	s.t.Helper()
	s.insert("profile_rows", row{"user_id": userID, "revision": int64(1), "attr_string": map[string]string{"name": name}, "attr_int": map[string]int64{"age": age},
		"addresses": map[string]string{"email": userID + "@example.test"}})
	s.insert("event_rows", row{"user_id": userID, "event_id": "visit of " + userID, "name": "visit", "occurred_at": time.Now().Add(-time.Hour)})
}

// run is the row of a run of hello-all.
func (s *stage) run(id identity.ID, state string, more row) {
	s.t.Helper()
	r := row{"run_id": id, "campaign_id": "hello-all", "state": state, "audience_id": "adults", "audience_version": int64(1), "template_id": "hello", "template_version": int64(1),
		"channel": "email", "requested_at": time.Now(), "as_of": time.Now(), "kafka_offset": time.Now().UnixNano()}
	maps.Copy(r, more)
	s.insert("run_rows", r)
}

func (s *stage) outcome(run identity.ID, userID, outcome string, attempt int32, more row) {
	s.t.Helper()
	message := identity.Message(s.namespace, "hello-all", run.String(), userID, "")
	r := row{"outcome_id": identity.Outcome(message, outcome, attempt, ""), "message_id": message, "run_id": run, "campaign_id": "hello-all", "user_id": userID,
		"channel": "email", "lane": "bulk", "outcome": outcome, "attempt": attempt, "occurred_at": time.Now()}
	maps.Copy(r, more)
	s.insert("outcome_rows", r)
}

func (s *stage) requested(run identity.ID, userID string) {
	s.t.Helper()
	s.insert("message_input_rows", row{"message_id": identity.Message(s.namespace, "hello-all", run.String(), userID, ""), "run_id": run, "campaign_id": "hello-all",
		"template_id": "hello", "template_version": int64(1), "user_id": userID, "channel": "email", "lane": "bulk", "address": userID + "@example.test", "requested_at": time.Now(),
		"attributes": "{}", "segments": "{}"})
}

func (s *stage) produce(name topic.Name, key string, rec event.Record) *kgo.Record {
	s.t.Helper()
	r, err := s.cluster.Record(name, key, rec)
	require.NoError(s.t, err)
	s.Produce(s.t, r)
	return r
}

// records are what is in a topic now.
func records[T any, P interface {
	*T
	event.Record
}](s *stage, name topic.Name) []T {
	s.t.Helper()
	ends, err := s.cluster.HighWatermarks(s.t.Context(), name)
	require.NoError(s.t, err)
	var ranges []kafka.Range
	for p, end := range ends[name] {
		ranges = append(ranges, kafka.Range{Topic: name, Partition: p, To: end})
	}
	var out []T
	require.NoError(s.t, s.cluster.Read(s.t.Context(), ranges, kgo.ReadCommitted(), func(r *kgo.Record) error {
		var v T
		out = append(out, v)
		return s.cluster.Decode(r, P(&out[len(out)-1]))
	}))
	return out
}
