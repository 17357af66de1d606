package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/console"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// bench is a stack whose services are started one by one, so that what lies between
// two of them can be tampered with.
type bench struct {
	*stack
	cluster *kafka.Cluster
	adm     *kadm.Client
	plain   *kgo.Client
	running map[string]func()
}

func newBench(t *testing.T) *bench {
	s := startStack(t)
	s.provision()
	type settings struct{ Kafka kafka.Config }
	cfg, err := config.Load[settings](t.Context(), envconfig.MapLookuper(s.env))
	require.NoError(t, err)
	b := &bench{stack: s, running: map[string]func(){}}
	b.cluster, err = kafka.New(cfg.Kafka, topic.Console, telemetry.New(topic.Console, telemetry.Config{}, testLog{t}))
	require.NoError(t, err)
	require.NoError(t, b.cluster.Start(t.Context()))
	t.Cleanup(b.cluster.Close)
	b.plain, err = kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(b.plain.Close)
	b.adm = kadm.NewClient(b.plain)
	return b
}

// up starts services, one instance of each.
func (b *bench) up(names ...string) {
	t := b.t
	t.Helper()
	for _, name := range names {
		svc := b.service(name)
		ctx, stop := context.WithCancel(lifecycle.WithDrain(context.Background(), lifecycle.DefaultDrain))
		ended := make(chan error, 1)
		go func() { ended <- svc.Run(ctx) }()
		b.running[name] = func() {
			stop()
			require.NoError(t, <-ended, name)
		}
		t.Cleanup(func() { b.down(name) })
	}
}

func (b *bench) down(names ...string) {
	for _, name := range names {
		if stop := b.running[name]; stop != nil {
			delete(b.running, name)
			stop()
		}
	}
}

// lying are the committed records of a topic from some offset of each partition on.
func (b *bench) lying(name topic.Name, from map[int32]int64) (records []*kgo.Record) {
	b.t.Helper()
	ends, err := b.cluster.HighWatermarks(b.t.Context(), name)
	require.NoError(b.t, err)
	var ranges []kafka.Range
	for p, end := range ends[name] {
		ranges = append(ranges, kafka.Range{Topic: name, Partition: p, From: from[p], To: end})
	}
	require.NoError(b.t, b.cluster.Read(b.t.Context(), ranges, kgo.ReadCommitted(), func(r *kgo.Record) error {
		records = append(records, r)
		return nil
	}))
	return records
}

// tamper is what becomes of one record between its writer and its readers.
type tamper func(r *kgo.Record)

// tampered lets the groups, whose services are down, read everything that they
// have not read yet as tamper leaves it: the records are written once more, and
// the groups' offsets pass those that were there.
func (b *bench) tampered(name topic.Name, change tamper, groups ...topic.Group) {
	t := b.t
	t.Helper()
	var committed map[int32]int64
	for _, g := range groups {
		offsets, err := b.adm.FetchOffsets(t.Context(), g.In(b.namespace))
		require.NoError(t, err)
		at := map[int32]int64{}
		for p, o := range offsets[name.In(b.namespace)] {
			at[p] = o.At
		}
		if committed == nil {
			committed = at
		}
		for p := range committed { // what one has read twice is harmless; what one would miss is not
			committed[p] = min(committed[p], at[p])
		}
	}
	records := b.lying(name, committed)
	ends, err := b.adm.ListEndOffsets(t.Context(), name.In(b.namespace))
	require.NoError(t, err)
	for _, g := range groups {
		b.eventually(fmt.Sprintf("group %s has no member", g), func() bool {
			return b.adm.CommitAllOffsets(t.Context(), g.In(b.namespace), ends.Offsets()) == nil
		})
	}
	for _, r := range records {
		again := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
		change(again)
		require.NoError(t, b.plain.ProduceSync(t.Context(), again).FirstErr())
	}
}

// of applies changes to the records of some people.
func of(changes map[string]tamper) tamper {
	return func(r *kgo.Record) {
		if change := changes[string(r.Key)]; change != nil {
			change(r)
		}
	}
}

func unreadable(r *kgo.Record) { r.Value = []byte("not Avro") }

// elsewhere is a partition on which the person does not live.
func elsewhere(r *kgo.Record) { r.Partition = (r.Partition + 1) % 4 }

// another is a value that was written with the schema of another record.
func (b *bench) another(r *kgo.Record) {
	other, err := b.cluster.RecordAt(topic.Ticks, 0, "0", &event.Tick{At: time.Now()})
	require.NoError(b.t, err)
	r.Value = other.Value
}

// poison writes a record that nobody can read, about nobody that is known.
func (b *bench) poison(name topic.Name, key string) {
	b.t.Helper()
	require.NoError(b.t, b.plain.ProduceSync(b.t.Context(), &kgo.Record{Topic: name.In(b.namespace), Key: []byte(key), Value: []byte("not Avro")}).FirstErr())
}

// deadLetter is one as hikyaku dead-letters lists it.
type deadLetter struct {
	ID, Service, Topic, Reason, State string
	UserID                            string `json:"user_id"`
	ReplayOf                          string `json:"replay_of"`
}

func (b *bench) deadLetters(flags ...string) []deadLetter {
	b.t.Helper()
	var list struct{ Letters []deadLetter }
	b.hikyaku(&list, append([]string{"dead-letters", "list", "--limit", "1000"}, flags...)...)
	return list.Letters
}

// A record that nobody can read, in every topic, while a campaign runs: the line goes
// on, everybody is accounted for, whoever is parked is listed with the reason in
// words, and whoever can be helped gets the mail by a replay, once.
func TestPoisonInEveryTopicStopsNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.up(topic.Importer, topic.Resolver, topic.Collector)
	b.define("")
	people := population{audience: 40}
	for i := range people.audience {
		people.rows = append(people.rows, []string{fmt.Sprintf("u%02d", i), fmt.Sprintf("u%02d@example.test", i), "", fmt.Sprintf("Name %d", i), "30"})
	}
	const (
		candidate = "u00" // her profile cannot be read when she is to be admitted; it is mended
		request   = "u01" // her request cannot be read
		schema    = "u02" // her request is another record
		template  = "u03" // her request names a version of the template that is not there yet
		message   = "u04" // her message cannot be read
		lost      = "u05" // her message lies where she does not live
		retry     = "u06" // her second attempt cannot be read
		outcome   = "u07" // that her message was accepted cannot be read
	)
	people.rows[6][1] = "u06+451@example.test"
	b.drop(people)

	// Tables: nobody else's business.
	for name, keys := range map[topic.Name][]string{
		topic.Definitions: {"Template/other", "Campaign/other", "Campaign/other@1", "what is this"},
		topic.Imports:     {identity.Hash("import").String(), "what is this"},
		topic.Runs:        {identity.Hash("another run").String(), "what is this"},
		topic.PersonState: {"nobody/messages"},
		topic.Profiles:    {"nobody"},
	} {
		for _, key := range keys {
			b.poison(name, key)
		}
	}
	var known []byte
	for _, r := range b.lying(topic.Profiles, nil) {
		if string(r.Key) == candidate {
			known = r.Value
		}
	}
	require.NotEmpty(t, known)
	profile := &kgo.Record{Topic: topic.Profiles.In(b.namespace), Partition: topic.Partition(candidate, 4), Key: []byte(candidate)}
	b.down(topic.Resolver)
	broken := *profile
	broken.Value = []byte("not Avro")
	require.NoError(t, b.plain.ProduceSync(t.Context(), &broken).FirstErr())
	b.up(topic.Resolver)

	// Facts and all else that goes through groups, about nobody.
	facts := []topic.Name{topic.ProfileUpdates, topic.SegmentMembers, topic.Events, topic.Engagements, topic.RunRequests, topic.RunShards, topic.Ticks, topic.Candidates,
		topic.MessageRequestsBulk, topic.MessagesEmailBulk, topic.RetriesEmail, topic.Outcomes}
	for _, name := range facts {
		b.poison(name, "nobody")
	}

	// The campaign, station by station.
	var started struct {
		RunID string `json:"run_id"`
	}
	b.hikyaku(&started, "start", "greeting", "--timeout", "1m")
	requests := func() int { return len(b.lying(topic.MessageRequestsBulk, nil)) - 1 }
	b.eventually("everybody but one is asked for", func() bool { return requests() == 39 })
	b.tampered(topic.MessageRequestsBulk, of(map[string]tamper{request: unreadable, schema: b.another, template: func(r *kgo.Record) {
		var q event.MessageRequest
		require.NoError(t, b.cluster.Decode(r, &q))
		q.TemplateVersion = 2
		later, err := b.cluster.Record(topic.MessageRequestsBulk, q.UserID, &q)
		require.NoError(t, err)
		r.Value = later.Value
	}, "nobody": unreadable}), topic.GroupRenderer)

	b.up(topic.Renderer)
	b.eventually("messages are rendered", func() bool { return len(b.lying(topic.MessagesEmailBulk, nil)) == 1+36 })
	b.tampered(topic.MessagesEmailBulk, of(map[string]tamper{message: unreadable, lost: elsewhere}), topic.GroupSender)

	b.down(topic.Resolver, topic.Collector)
	b.env["RETRY_BACKOFF"] = "1h"
	b.up(topic.Sender)
	said := func(what string) (n int) {
		for _, r := range b.lying(topic.Outcomes, nil) {
			var o event.Outcome
			if b.cluster.Decode(r, &o) == nil && o.Outcome == what {
				n++
			}
		}
		return n
	}
	b.eventually("mails are sent", func() bool { return said("accepted") == 33 && said("deferred") == 1 && said("parked") == 6 })
	b.down(topic.Sender)
	b.tampered(topic.RetriesEmail, of(map[string]tamper{retry: unreadable}), topic.GroupSender)
	b.tampered(topic.Outcomes, func(r *kgo.Record) {
		var o event.Outcome
		if b.cluster.Decode(r, &o) == nil && o.UserID == outcome && o.Outcome == "accepted" {
			unreadable(r)
		}
	}, topic.GroupPersonLoop, topic.GroupSink)
	b.env["RETRY_BACKOFF"] = "200ms"
	b.up(topic.Resolver, topic.Collector, topic.Sender)

	bal := b.ended(started.RunID)
	require.True(t, bal.Balanced, "%+v", bal)
	require.Equal(t, []int64{40, 40, 32, 8, 0}, []int64{bal.Audience, bal.Requested, bal.Accepted, bal.Parked, bal.Waiting}, "%+v", bal)
	b.requireOneMailEach(33) // one of them was sent, and nobody can read that it was

	// All are listed, with the reason in words; each reader of a topic has its own.
	var letters []deadLetter
	parked := func(what string, is func(deadLetter) bool) {
		t.Helper()
		b.eventually(what, func() bool {
			letters = b.deadLetters()
			return slices.ContainsFunc(letters, is)
		})
	}
	for _, row := range topic.Catalogue() {
		for _, g := range row.Readers {
			service, _, _ := strings.Cut(string(g), ".")
			parked(fmt.Sprintf("%s has parked something of %s", service, row.Name), func(l deadLetter) bool { return l.Service == service && l.Topic == string(row.Name) })
		}
	}
	says := func(service, user, reason string) {
		t.Helper()
		parked(fmt.Sprintf("%s says %q of %s", service, reason, user), func(l deadLetter) bool {
			return l.Service == service && l.UserID == user && strings.Contains(l.Reason, reason) && l.State == "open"
		})
	}
	says(topic.Resolver, candidate, "what is kept of the person in profiles cannot be read")
	says(topic.Renderer, request, "decoding message-requests.bulk/")
	says(topic.Renderer, schema, "decoding message-requests.bulk/")
	says(topic.Renderer, template, "definition Template/hello@2 does not exist")
	says(topic.Sender, message, "decoding messages.email.bulk/")
	says(topic.Sender, lost, "which is not its person's")
	says(topic.Sender, retry, "decoding retries.email/")
	says(topic.Resolver, outcome, "decoding outcomes/")
	says(topic.Collector, outcome, "decoding outcomes/")

	// A campaign that cannot be read is refused with that, and no other was.
	var out, errs bytes.Buffer
	code := console.Main([]string{"start", "other"}, envconfig.MapLookuper(b.env), strings.NewReader(""), &out, &errs)
	require.NotZero(t, code)
	require.Contains(t, errs.String(), "campaign other cannot be read")

	// Mended: what is known of the person, the version of the template.
	b.down(topic.Resolver)
	profile.Value = known
	require.NoError(t, b.plain.ProduceSync(t.Context(), profile).FirstErr())
	b.up(topic.Resolver)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(strings.Replace(definitionsYAML, "subject: Hello {{ name }}", "subject: Hello again {{ name }}", 1)), 0o600))
	b.hikyaku(nil, "apply", "-f", dir)

	b.hikyaku(nil, "dead-letters", "drop", idOf(t, letters, topic.Resolver, outcome), "--because", "the mail server's log has it")
	b.hikyaku(nil, "dead-letters", "replay", "--run", started.RunID, "--yes")
	b.eventually("whoever can be helped has a mail", func() bool { return b.mails() == 36 })
	b.eventually("the run has ended again", func() bool {
		bal = b.balance(started.RunID)
		return bal.State == "finished" && bal.Accepted == 35 && bal.Parked == 5
	})
	require.True(t, bal.Balanced, "%+v", bal)
	b.requireOneMailEach(36)

	// What is still poison is parked again and says so; nothing is replayed twice.
	again := func() map[string]bool {
		of := map[string]bool{}
		for _, l := range b.deadLetters("--run", started.RunID) {
			require.NotEmpty(t, l.ReplayOf, "%+v", l)
			if l.Service != topic.Collector {
				of[l.UserID] = true
			}
		}
		return of
	}
	b.eventually("four are parked again", func() bool { return len(again()) == 4 })
	require.Equal(t, map[string]bool{request: true, schema: true, message: true, retry: true}, again())
	b.hikyaku(nil, "dead-letters", "drop", "--all", "--yes", "--because", "seen")
	require.Empty(t, b.deadLetters())
	bal = b.balance(started.RunID)
	require.True(t, bal.Balanced, "what is given up stays counted: %+v", bal)
	require.EqualValues(t, 5, bal.Parked)
	require.Equal(t, "finished", bal.State)
}

func idOf(t *testing.T, letters []deadLetter, service, user string) string {
	t.Helper()
	for _, l := range letters {
		if l.Service == service && l.UserID == user {
			return l.ID
		}
	}
	require.FailNow(t, "no dead letter of "+user)
	return ""
}
