package collector

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// away makes Kafka lose every produce request while it is true.
func away(k *kafkatest.Kafka) *atomic.Bool {
	var gone atomic.Bool
	k.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.Fake.KeepControl()
		if gone.Load() {
			return nil, errors.New("gone"), true
		}
		return nil, nil, false
	})
	return &gone
}

// track posts the n-th event of a person and returns the status.
func (s *site) track(user string, n int) int {
	s.t.Helper()
	body := fmt.Sprintf(`{"userId":%q,"event":"x","messageId":"%s-%d","properties":{"n":%d}}`, user, user, n, n)
	return s.do("POST", "/v1/track", strings.NewReader(body), withKey).StatusCode
}

// came are the ids of everybody's events in the order in which Kafka has them.
func (s *site) came() map[string][]string {
	s.t.Helper()
	ids := map[string][]string{}
	for _, r := range s.All(s.t, topic.Events) {
		var e event.Event
		s.Decode(s.t, r, &e)
		ids[e.UserID] = append(ids[e.UserID], e.EventID)
	}
	return ids
}

// told is what the collectors of a site have told Kafka of their spools, once it is so many records
// or more, and the last says that nothing is left.
func (s *site) told(records int) (said []event.Spool) {
	s.t.Helper()
	kafkatest.Eventually(s.t, func() bool {
		said = nil
		for _, r := range s.All(s.t, topic.Spools) {
			var e event.Spool
			s.Decode(s.t, r, &e)
			said = append(said, e)
		}
		return len(said) >= records && said[len(said)-1].Records == 0
	}, "it is not said what is in the spool")
	return said
}

func firsts(ids []string) (out []string) {
	seen := map[string]bool{}
	for _, id := range ids {
		if !seen[id] {
			out = append(out, id)
		}
		seen[id] = true
	}
	return out
}

func sequence(user string, to int) (out []string) {
	for n := range to {
		out = append(out, fmt.Sprintf("%s-%d", user, n))
	}
	return out
}

// status is how Health has a component.
func (s *site) status(name string) telemetry.ComponentStatus {
	for _, c := range s.tel.Status().Components {
		if c.Name == name {
			return c
		}
	}
	return telemetry.ComponentStatus{}
}

// durable is a broker that keeps what it has while it is away.
func durable(t *testing.T) *kafkatest.Kafka {
	return kafkatest.Start(t, kafkatest.Fake(kfake.DataDir(t.TempDir())))
}

func TestKafkaAwayIsAnsweredWith200AndNobodyIsOvertaken(t *testing.T) {
	t.Parallel()
	var patience time.Duration
	s := startIntakeOn(t, durable(t), func(c *Config) {
		c.Intake.AckTimeout, c.Intake.HitTimeout = 50*time.Millisecond, 10*time.Second
		patience = c.Intake.patience()
	}).started()
	const people = 8
	var reached [people]atomic.Int64
	var again atomic.Int64
	var enough atomic.Bool
	all := func(n int64) func() bool {
		return func() bool {
			for p := range people {
				if reached[p].Load() < n {
					return false
				}
			}
			return true
		}
	}
	var posting sync.WaitGroup
	for p := range people {
		posting.Go(func() {
			for n, answered := 0, true; !answered || !enough.Load(); {
				began := time.Now()
				status := s.track(fmt.Sprintf("u%d", p), n)
				// The disk under these tests may be as busy as that: like anybody, they send it again.
				if answered = status != http.StatusServiceUnavailable || time.Since(began) < patience; !answered {
					again.Add(1)
					continue
				}
				if status != http.StatusOK {
					t.Errorf("event %d: %d", n, status)
				}
				n++
				reached[p].Add(1)
			}
		})
	}
	kafkatest.Eventually(t, all(5), "too slow")
	back := s.Away(t)
	kafkatest.Eventually(t, all(reached[0].Load()+20), "nothing is taken while Kafka is away")
	kafkatest.Eventually(t, func() bool { return metric(t, s.tel, "intake_state", "spooling") == 1 }, "no metric says so")
	require.Positive(t, metric(t, s.tel, "intake_spool_records", ""))
	require.Positive(t, metric(t, s.tel, "intake_spool_bytes", ""))
	require.Empty(t, s.tel.Health.NotReady(), "whoever routes requests must not turn away")
	require.Contains(t, s.status("spool").Reason, "goes into the spool")

	// Tracking and unsubscribing go the same way.
	require.Equal(t, http.StatusFound, s.do("GET", "/c/"+s.token(token.Click, target), nil, nil).StatusCode)
	require.Equal(t, http.StatusOK, s.do("POST", "/u/"+s.token(token.Unsubscribe, ""), strings.NewReader("List-Unsubscribe=One-Click"), nil).StatusCode)
	require.Zero(t, metric(t, s.tel, "tracking_hits_lost_total", "clicked"))

	back()
	s.direct() // while they go on posting
	kafkatest.Eventually(t, all(reached[0].Load()+5), "nothing is taken when Kafka is back")
	enough.Store(true)
	posting.Wait()
	s.direct()
	came := s.came()
	for p := range people {
		user := fmt.Sprintf("u%d", p)
		require.Equal(t, sequence(user, int(reached[p].Load())), firsts(came[user]))
	}
	kinds := map[string]bool{}
	for _, r := range s.All(t, topic.Engagements) {
		var e event.Engagement
		s.Decode(t, r, &e)
		kinds[e.Kind] = true
	}
	require.Len(t, kinds, 2)
	require.Zero(t, metric(t, s.tel, "intake_spool_records", ""))
	require.InDelta(t, metric(t, s.tel, "intake_spooled_total", ""), metric(t, s.tel, "intake_drained_total", "")+metric(t, s.tel, "intake_skipped_total", ""), float64(again.Load()),
		"what was told too late is drained, and not counted as spooled")
	require.True(t, s.status("spool").Ready)
}

func TestWhatKafkaTakesLateIsNotProducedTwice(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.AckTimeout = 50 * time.Millisecond }).started()
	gone := away(s.Kafka)
	gone.Store(true)
	for n := range 5 {
		require.Equal(t, http.StatusOK, s.track("u", n))
	}
	gone.Store(false)
	s.direct()
	require.Equal(t, http.StatusOK, s.track("u", 5))
	s.direct() // that one may have gone into the spool too
	require.Equal(t, sequence("u", 6), s.came()["u"], "each once")
}

func TestTheSpoolOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	k, dir := durable(t), t.TempDir()
	configure := func(c *Config) { c.Intake.AckTimeout, c.Spool.Dir = 50*time.Millisecond, dir }
	first := startIntakeOn(t, k, configure)
	first.direct() // and nothing has been in its spool
	back := k.Away(t)
	for n := range 3 {
		require.Equal(t, http.StatusOK, first.track("u", n))
	}
	first.stop()

	second := startIntakeOn(t, k, configure)
	require.Equal(t, http.StatusOK, second.track("u", 3), "events are taken from the first second, Kafka or not")
	require.EqualValues(t, 4, metric(t, second.tel, "intake_spool_records", ""))
	require.Empty(t, second.tel.Health.NotReady())

	cfg := intakeConfig(k.Config())
	configure(&cfg)
	rival, err := New(cfg, kafkatest.Telemetry(t, topic.Collector))
	require.NoError(t, err)
	err = rival.Run(t.Context())
	require.ErrorIs(t, err, spool.ErrLocked)
	require.Equal(t, fault.ClassTransient, fault.ClassOf(err), "which ends the process with 3")

	back()
	second.direct()
	require.Equal(t, http.StatusOK, second.track("u", 4))
	second.direct()
	require.Equal(t, sequence("u", 5), firsts(second.came()["u"]))

	// A run, which does not wait for what lay here, can say how much it was.
	said := second.told(1)
	require.EqualValues(t, 4, said[0].Records, "before any of it is drained")
	require.Positive(t, said[0].Bytes)
	require.WithinDuration(t, time.Now(), *said[0].OldestAt, kafkatest.Patience)
	last := said[len(said)-1]
	require.Equal(t, []any{int64(0), (*time.Time)(nil), said[0].Spool}, []any{last.Records, last.OldestAt, last.Spool})

	// It is said again at each start: the last process may have been killed before it could. A spool
	// that was never used has nothing to say.
	second.stop()
	third := startIntakeOn(t, k, configure)
	said = third.told(len(said) + 1)
	unused := startIntakeOn(t, k, nil).started()
	unused.stop()
	require.Len(t, unused.told(1), len(said))
}

func TestAFullSpoolOrADiskThatFailsIsAnsweredWith503(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.AckTimeout, c.Spool.MaxMiB = 50*time.Millisecond, 1 }).started()
	gone := away(s.Kafka)
	gone.Store(true)
	kept := 0
	batch := func() reply {
		var b strings.Builder
		for i := range 20 {
			fmt.Fprintf(&b, `,{"type":"track","userId":"u","event":"x","messageId":"%d-%d","properties":{"x":"%s"}}`, kept, i, strings.Repeat("x", 10<<10))
		}
		return s.do("POST", "/v1/batch", strings.NewReader(`{"batch":[`+b.String()[1:]+`]}`), withKey)
	}
	got := batch()
	for ; got.StatusCode == http.StatusOK; got = batch() {
		kept++
	}
	require.Equal(t, http.StatusServiceUnavailable, got.StatusCode)
	require.NotEmpty(t, got.Header.Get("Retry-After"))
	require.False(t, read(t, got).Success)
	require.Positive(t, kept)
	gone.Store(false)
	s.direct()
	require.Len(t, firsts(s.came()["u"]), 20*kept, "what was refused is not there, what was taken is")

	gone.Store(true)
	require.NoError(t, os.RemoveAll(s.spoolDir))
	require.Equal(t, http.StatusServiceUnavailable, s.track("v", 0))
	unsubscribe := s.do("POST", "/u/"+s.token(token.Unsubscribe, ""), strings.NewReader("List-Unsubscribe=One-Click"), nil)
	require.Equal(t, http.StatusServiceUnavailable, unsubscribe.StatusCode)
	require.NotEmpty(t, unsubscribe.Header.Get("Retry-After"))

	// A person gets to their page all the same, and it is counted.
	click := s.do("GET", "/c/"+s.token(token.Click, target), nil, nil)
	require.Equal(t, http.StatusFound, click.StatusCode)
	require.EqualValues(t, 1, metric(t, s.tel, "tracking_hits_lost_total", "clicked"))
	gone.Store(false)
	kafkatest.Eventually(t, func() bool { return s.track("v", 0) == http.StatusOK }, "the intake does not recover")
}

func TestEventsAreTakenBeforeKafkaIsFound(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Kafka.Brokers = []string{"127.0.0.1:1"} })
	require.Equal(t, http.StatusOK, s.do("GET", "/healthz", nil, nil).StatusCode)
	require.Equal(t, http.StatusFound, s.do("GET", "/c/"+s.token(token.Click, target), nil, nil).StatusCode)
	require.Equal(t, http.StatusOK, s.track("u", 0))
	kafkatest.Eventually(t, func() bool { return s.status("topics").Reason != "" }, "nobody says that Kafka is away")
	require.Empty(t, s.tel.Health.NotReady())
}

// Inside an older file damage is found only when it is drained.
func TestDamageThatIsFoundLateIsNamedAndKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	k, dir := kafkatest.Start(t), t.TempDir()
	full, err := spool.Open(spool.Options{Dir: dir, Label: k.Config().Namespace, MaxBytes: 1 << 20, SegmentBytes: 300})
	require.NoError(t, err)
	for n := range 5 {
		require.NoError(t, full.Append(t.Context(), spool.Entry{Topic: topic.Events, Key: "u", Record: &event.Event{EventID: fmt.Sprint(n), UserID: "u", Name: "x", OccurredAt: time.Now(), ReceivedAt: time.Now()}}))
	}
	require.NoError(t, full.Close())
	files, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	require.NoError(t, err)
	require.Greater(t, len(files), 1)
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	b[40] ^= 4
	require.NoError(t, os.WriteFile(files[0], b, 0o600))

	s := startIntakeOn(t, k, func(c *Config) { c.Spool.Dir = dir })
	kafkatest.Eventually(t, func() bool { return strings.Contains(s.status("spool").Reason, files[0]+" is damaged") }, "nobody says what is damaged")
	require.Equal(t, http.StatusOK, s.track("u", 6))
	require.Empty(t, s.came(), "nobody overtakes what cannot be read")
	require.EqualValues(t, 6, metric(t, s.tel, "intake_spool_records", ""))
	require.Empty(t, s.tel.Health.NotReady())
}
