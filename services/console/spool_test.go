package console

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/spool"
)

func TestASpoolIsShownAndDrainedOnce(t *testing.T) {
	t.Parallel()
	s := &stage{Kafka: kafkatest.Start(t), t: t}
	cfg := s.Config()
	s.env = map[string]string{"KAFKA_BROKERS": strings.Join(cfg.Brokers, ","), "SCHEMA_REGISTRY_URL": cfg.RegistryURL, "NAMESPACE": cfg.Namespace}
	dir := t.TempDir()
	left, err := spool.Open(spool.Options{Dir: dir, Label: cfg.Namespace, Owner: "event-collector-3", MaxBytes: 1 << 20, SegmentBytes: 2 << 10})
	require.NoError(t, err)
	var want []string
	for i := range 50 {
		id := fmt.Sprint(i)
		want = append(want, id)
		at := time.Date(2026, 5, 17, 12, 0, i, 0, time.UTC)
		require.NoError(t, left.Append(t.Context(), spool.Entry{Topic: topic.Events, Key: "u", Record: &event.Event{EventID: id, UserID: "u", Name: "x", OccurredAt: at, ReceivedAt: at}}))
	}

	shown := s.ok("spool", "show", dir, "--json").one(t)
	require.EqualValues(t, 50, shown["records"])
	require.Equal(t, cfg.Namespace, shown["namespace"])
	require.NotNil(t, shown["oldest"])
	inUse := s.hikyaku("spool", "drain", dir)
	require.Equal(t, exitMissing, inUse.code)
	require.Contains(t, inUse.err, "in use")
	require.NoError(t, left.Close())

	require.Equal(t, exitUsage, s.hikyaku("spool", "drain", t.TempDir()).code, "a directory that is no spool does not become one")
	s.env["NAMESPACE"] = "another"
	require.Equal(t, exitUsage, s.hikyaku("spool", "drain", dir).code)
	s.env["NAMESPACE"] = cfg.Namespace

	var back atomic.Bool
	s.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.Fake.KeepControl()
		return nil, errors.New("gone"), !back.Load()
	})
	away := s.hikyaku("spool", "drain", dir, "--timeout", "300ms")
	require.Equal(t, exitMissing, away.code, away.err)
	require.Contains(t, away.err, "50 records are left")
	back.Store(true)
	require.Contains(t, s.ok("spool", "drain", dir).out, "Kafka has 50 records")
	again := s.ok("spool", "drain", dir, "--json").one(t)
	require.EqualValues(t, 0, again["drained"])
	require.EqualValues(t, 0, again["left"])
	var got []string
	for _, e := range kafkatest.Consume[event.Event](t, s.Kafka, topic.Events, 50) {
		got = append(got, e.EventID)
	}
	require.Equal(t, want, got)
	require.EqualValues(t, 0, s.ok("spool", "show", dir, "--json").one(t)["records"])

	// Whoever drains it says so in Kafka as its collector would have, and again, in case nobody heard.
	require.Regexp(t, "^event-collector-3-[0-9a-f]{16}$", left.Name())
	told := func(n int) event.Spool {
		all := kafkatest.Consume[event.Spool](t, s.Kafka, topic.Spools, n)
		require.Len(t, s.All(t, topic.Spools), n)
		return all[n-1]
	}
	require.Equal(t, []any{left.Name(), int64(0)}, []any{told(2).Spool, told(2).Records})
	require.Equal(t, exitUsage, s.hikyaku("spool", "forget", "event-collector-4").code)
	s.ok("spool", "forget", left.Name())
	told(2)
	r, err := s.Cluster(t, topic.Collector).Record(topic.Spools, "lost", &event.Spool{Spool: "lost", Records: 1204, UpdatedAt: time.Now()})
	require.NoError(t, err)
	s.Produce(t, r)
	require.Contains(t, s.ok("spool", "forget", "lost").err, "no longer count the 1,204 records")
	require.Equal(t, []any{"lost", int64(0)}, []any{told(4).Spool, told(4).Records})

	// Damage is not passed over, unless somebody has decided so.
	dir = t.TempDir()
	left, err = spool.Open(spool.Options{Dir: dir, Label: cfg.Namespace, MaxBytes: 1 << 20})
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, left.Append(t.Context(), spool.Entry{Topic: topic.Events, Key: "u", Record: &event.Event{EventID: "e", UserID: "u", Name: "x"}}))
	}
	require.NoError(t, left.Close())
	files, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	require.NoError(t, err)
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	b[40] ^= 1
	require.NoError(t, os.WriteFile(files[0], b, 0o600))
	damaged := s.hikyaku("spool", "drain", dir)
	require.Equal(t, exitBroken, damaged.code, damaged.err)
	require.Contains(t, damaged.err, files[0])
	salvaged := s.hikyaku("spool", "drain", dir, "--salvage", "--json")
	require.Equal(t, exitBroken, salvaged.code, salvaged.err)
	require.EqualValues(t, 2, salvaged.one(t)["drained"])
	require.EqualValues(t, len(b)/3, salvaged.one(t)["damaged_bytes"])
}
