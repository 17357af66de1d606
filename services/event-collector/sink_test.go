package collector

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/sink"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

var noon = time.Date(2026, 5, 17, 12, 0, 0, 123456000, time.UTC)

// stage is a collector whose sink runs.
type stage struct {
	*kafkatest.Kafka
	t       *testing.T
	writer  *kafka.Cluster // makes records
	conn    *clickhouse.Conn
	service *Service
	tel     *telemetry.Telemetry
	stop    func()

	spoolDir string
}

// startSink runs a sink until the test ends. It writes through into, if given,
// and everything is read through a connection of its own.
func startSink(t *testing.T, away *switchable) *stage {
	k := kafkatest.Start(t)
	s := &stage{Kafka: k, t: t, writer: k.Cluster(t, topic.Importer), conn: clickhousetest.Open(t)}
	at := clickhousetest.Config(t)
	if away != nil {
		at = clickhouse.DefaultConfig(away.start(t))
	}
	into, err := clickhouse.Open(at, s.conn.Database())
	require.NoError(t, err)
	// Not a sink's: an intake may run beside it.
	s.spoolDir = t.TempDir()
	left, err := spool.Open(spool.Options{Dir: s.spoolDir, Label: k.Config().Namespace, Owner: "event-collector-0", MaxBytes: 1 << 20})
	require.NoError(t, err)
	require.NoError(t, left.Append(t.Context(), spool.Entry{Topic: topic.Events, Key: "u", Record: &event.Event{EventID: "e", UserID: "u", Name: "x"}}))
	require.NoError(t, left.Close())
	s.start(at, into)
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *stage) start(at clickhouse.Config, into *clickhouse.Conn) {
	var err error
	s.tel = kafkatest.Telemetry(s.t, topic.Collector)
	s.service, err = New(Config{Kafka: s.Config(), ClickHouse: at, Spool: SpoolConfig{Dir: s.spoolDir, MaxMiB: 1}, Sink: SinkConfig{Linger: 20 * time.Millisecond, BatchRecords: 20000, BatchMiB: 32}}, s.tel)
	require.NoError(s.t, err)
	s.service.sinkInto(into)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.service.Run(ctx) }()
	s.stop = func() {
		cancel()
		require.NoError(s.t, <-ended, "a sink that is told to stop stops in good order")
	}
}

// rewind stops the sink, and starts one that reads everything from the beginning.
func (s *stage) rewind() {
	s.t.Helper()
	s.stop()
	s.stop = func() {}
	group := topic.GroupSink.In(s.Config().Namespace)
	// Its name is kept for it until the session ends.
	left, err := s.Admin().LeaveGroup(s.t.Context(), kadm.LeaveGroup(group).InstanceIDs(topic.Collector+"-0"))
	require.NoError(s.t, err)
	require.NoError(s.t, left.Error())
	offsets := kadm.Offsets{}
	for name, partitions := range s.Committed(s.t, topic.GroupSink) {
		for p := range partitions {
			offsets.AddOffset(name.In(s.Config().Namespace), p, 0, -1)
		}
	}
	require.NoError(s.t, s.Admin().CommitAllOffsets(s.t.Context(), group, offsets))
	into, err := clickhouse.Open(clickhousetest.Config(s.t), s.conn.Database())
	require.NoError(s.t, err)
	s.start(clickhousetest.Config(s.t), into)
}

// switchable stands before ClickHouse and hangs up while it is off.
type switchable struct {
	off atomic.Bool
	// swallow is how many inserts of events ClickHouse does and the sink never hears of.
	swallow atomic.Int32
	// hold, while there is one, is what inserts of events wait for; held is how many do.
	hold atomic.Pointer[chan struct{}]
	held atomic.Int32
}

func (s *switchable) start(t *testing.T) string {
	engine, err := url.Parse(clickhousetest.Config(t).URL)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(engine)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.off.Load() {
			panic(http.ErrAbortHandler)
		}
		if strings.Contains(r.URL.Query().Get("query"), "INSERT INTO event_rows") {
			if hold := s.hold.Load(); hold != nil {
				s.held.Add(1)
				<-*hold
				s.held.Add(-1)
			}
			if s.swallow.Add(-1) >= 0 {
				answer := httptest.NewRecorder()
				proxy.ServeHTTP(answer, r)
				if answer.Code != http.StatusOK {
					t.Errorf("ClickHouse was to do it: %s", answer.Body)
				}
				panic(http.ErrAbortHandler)
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func (s *stage) record(name topic.Name, key string, rec event.Record) *kgo.Record {
	s.t.Helper()
	r, err := s.writer.Record(name, key, rec)
	require.NoError(s.t, err)
	return r
}

// waitUntilSunk waits until the group has committed all that is in its topics.
func (s *stage) waitUntilSunk() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), kafkatest.Patience)
	defer cancel()
	ends, err := s.writer.HighWatermarks(ctx, topic.ReadBy(topic.GroupSink)...)
	require.NoError(s.t, err)
	kafkatest.Eventually(s.t, func() bool {
		behind, err := s.writer.Passed(ctx, topic.GroupSink, ends)
		return err == nil && len(behind) == 0
	}, "the sink does not pass %v", ends)
	committed := s.Committed(s.t, topic.GroupSink)
	for name, partitions := range ends {
		for p, end := range partitions {
			require.Equal(s.t, end, committed[name][p], "%s/%d", name, p)
		}
	}
}

// lines are the rows of a query of one String column.
func lines(t testing.TB, conn *clickhouse.Conn, query string) []string {
	t.Helper()
	rows, err := conn.Query(context.Background(), query)
	require.NoError(t, err)
	defer rows.Close()
	var out []string
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		out = append(out, line)
	}
	require.NoError(t, rows.Err())
	return out
}

func named(values map[string]event.Value) []event.NamedValue {
	var out []event.NamedValue
	for name, v := range values {
		out = append(out, event.NamedValue{Name: name, Value: v})
	}
	return event.Sorted(out)
}

var (
	runID    = identity.Run("test", "autumn", "once")
	importID = identity.Import("b", "k", "v", "spec", 1)
	anyValue = map[string]event.Value{
		"s": event.String(`a "quoted" 飛脚`), "i": event.Int(9007199254740993), "f": event.Float(1.5), "b": event.Bool(true),
		"t": event.Time(noon), "j": event.JSON(`{"a":[1,2]}`), "n": event.Null(),
	}
)

func messageOf(user string) identity.ID {
	return identity.Message("test", "autumn", runID.String(), user, "")
}

func outcome(user, name, reason string, attempt int32) *event.Outcome {
	id := messageOf(user)
	o := &event.Outcome{OutcomeID: identity.Outcome(id, name, attempt, ""), MessageID: id, RunID: runID, CampaignID: "autumn", Lane: "bulk",
		UserID: user, Channel: "email", Outcome: name, Attempt: attempt, Reason: reason, OccurredAt: noon.Add(time.Duration(attempt) * time.Second)}
	if attempt > 0 {
		o.Source = &event.Source{Topic: "messages.email.bulk", Partition: 2, Offset: 77}
		o.Provider, o.ProviderID = "smtp", "250 queued as 7"
	}
	return o
}

func messageRequest(user string) *event.MessageRequest {
	return &event.MessageRequest{MessageID: messageOf(user), RunID: runID, CampaignID: "autumn", CampaignVersion: 3, TemplateID: "thanks", TemplateVersion: 4,
		Lane: "bulk", UserID: user, Channel: "email", Address: user + "@example.test", Policy: "at_most_once", RequestedAt: noon, ExpiresAt: noon.Add(time.Hour),
		Locale: "ja", TimeZone: "Asia/Tokyo", KeyID: "1", Attributes: named(anyValue),
		Segments: []event.SegmentValues{{SegmentID: "tasters", Attributes: named(map[string]event.Value{"item": event.String("tea")})}}}
}

func engagement(user, kind, url string) *event.Engagement {
	id := messageOf(user)
	return &event.Engagement{EngagementID: identity.Hash(user, kind), MessageID: id, RunID: runID, CampaignID: "autumn", UserID: user, Channel: "email",
		Kind: kind, URL: url, OccurredAt: noon.Add(time.Minute), Method: "GET", UserAgent: "Mail/1.0", Network: "203.0.113.0/24", Referer: "https://mail.example/"}
}

func TestEveryKindOfRecordArrivesWithAllItsColumns(t *testing.T) {
	t.Parallel()
	s := startSink(t, nil)
	started := noon.Add(time.Second)
	request := identity.Hash("request")
	input := s.record(topic.MessageRequestsBulk, "u1", messageRequest("u1"))
	hit := engagement("u1", "clicked", "https://shop.example/?a=b&c=d")
	hit.Purpose, hit.LatencyMs = "preview", 61000
	s.Produce(t,
		s.record(topic.Events, "u1", &event.Event{EventID: "e1", UserID: "u1", AnonymousID: "anon", Name: "purchase", OccurredAt: noon, ReceivedAt: noon.Add(time.Second),
			Source: "api:web", Properties: named(anyValue)}),
		s.record(topic.Profiles, "u1", &event.Profile{UserID: "u1", Revision: 7,
			Attributes:   []event.Attribute{{Name: "age", Value: event.Int(41), SetAt: noon, SetBy: "x"}, {Name: "plan", Value: event.String("gold"), SetAt: noon, SetBy: "x"}},
			Addresses:    []event.Address{{Channel: "email", Address: "u1@example.test", OccurredAt: noon}, {Channel: "sms", OccurredAt: noon}},
			Consents:     []event.Consent{{Channel: "email", Consent: "unsubscribed", OccurredAt: noon}},
			Suppressions: []event.Suppression{{Channel: "email", Address: "old@example.test", Reason: "complained", OccurredAt: noon}, {Channel: "email", Address: "u1@example.test", Reason: "bounced", OccurredAt: noon}},
			Locale:       "ja", TimeZone: "Asia/Tokyo", AccountID: "acme", CreatedAt: noon, UpdatedAt: noon.Add(time.Hour)}),
		s.record(topic.SegmentMembers, "u1", &event.SegmentMember{SegmentID: "tasters", ImportID: importID, UserID: "u1", OccurredAt: noon, Line: 12, Attributes: named(anyValue)}),
		input,
		s.record(topic.Outcomes, "u1", outcome("u1", "accepted", "", 1)),
		s.record(topic.Engagements, "u1", hit),
		s.record(topic.Runs, runID.String(), &event.Run{RunID: runID, CampaignID: "autumn", State: &event.RunState{State: "sending", Note: "n", CampaignVersion: 3,
			AudienceID: "loyal", AudienceVersion: 2, TemplateID: "thanks", TemplateVersion: 4, Channel: "email", Lane: "bulk", Policy: "at_most_once", Consent: "not_unsubscribed",
			RequestID: &request, RequestedAt: noon, AsOf: noon, Segments: []event.SegmentPin{
				{SegmentID: "tasters", ImportIDs: []identity.ID{importID, runID}, Removes: []identity.ID{runID}}, {SegmentID: "whole", ImportIDs: []identity.ID{importID}}},
			ExpiresAt: noon.Add(time.Hour), Shards: 1, Expected: 1, StartedAt: &started, UpdatedAt: noon}}),
		s.record(topic.Runs, runID.String()+"/0", &event.Run{RunID: runID, CampaignID: "autumn", Shard: &event.ShardDone{Shard: 0, Of: 1, Candidates: 1, DoneAt: noon}}),
		s.record(topic.Imports, importID.String(), anImport("announced", 0)),
		s.record(topic.Imports, importID.String(), anImport("reading", 100)),
		s.record(topic.Runs, runID.String()+"/2", &event.Run{RunID: runID, CampaignID: "autumn", Counters: &event.RunCounters{Partition: 2, Requested: 1, Accepted: 1,
			Excluded: []event.ReasonCount{{Reason: "no_address", Count: 5}}, UpdatedAt: noon}}),
		s.record(topic.Profiles, "gone", nil),
		s.record(topic.Profiles, "undone", &event.Profile{UserID: "undone", Revision: 1, CreatedAt: noon, UpdatedAt: noon}),
		s.record(topic.Profiles, "undone", &event.Profile{UserID: "undone", Revision: 2, CreatedAt: noon, UpdatedAt: noon, Deleted: true}),
	)
	s.waitUntilSunk()
	_, rest, err := spool.Look(s.spoolDir)
	require.NoError(t, err)
	require.EqualValues(t, 1, rest.Records)
	require.Empty(t, s.All(t, topic.Spools), "a sink has no spool to tell of")

	const typed = "(map('s','a \"quoted\" 飛脚'),map('i',9007199254740993),map('f',1.5),map('b',true),map('t',toUnixTimestamp64Micro(toDateTime64('2026-05-17 12:00:00.123456',6,'UTC'))),map('j','{\"a\":[1,2]}'))"
	at := func(column, moment string) string {
		return column + " = toDateTime64('2026-05-17 " + moment + "', 6, 'UTC')"
	}
	run, msg, imp := "toUUID('"+runID.UUID()+"')", "toUUID('"+messageOf("u1").UUID()+"')", "toUUID('"+importID.UUID()+"')"
	origin := func(name topic.Name) string {
		return fmt.Sprintf("kafka_topic = '%s' AND kafka_offset >= 0 AND kafka_partition >= 0 AND ingested_at > '2026-01-01'", name)
	}
	for table, conditions := range map[string][]string{
		"events": {"event_id = 'e1'", "user_id = 'u1'", "anonymous_id = 'anon'", "name = 'purchase'", at("occurred_at", "12:00:00.123456"), at("received_at", "12:00:01.123456"),
			"source = 'api:web'", "(prop_string, prop_int, prop_float, prop_bool, prop_time, prop_json) = " + typed, origin(topic.Events), "properties.j.a[2] = 2"},
		"profiles": {"user_id = 'u1'", "revision = 7", "attr_string = map('plan','gold')", "attr_int = map('age',41)", "empty(attr_json)", "addresses = map('email','u1@example.test')",
			"consents = map('email','unsubscribed')", "suppressions = map('email','bounced')", "locale = 'ja'", "time_zone = 'Asia/Tokyo'", "account_id = 'acme'", at("created_at", "12:00:00.123456"), at("updated_at", "13:00:00.123456"), origin(topic.Profiles)},
		"segment_members": {"segment_id = 'tasters'", "import_id = " + imp, "user_id = 'u1'", "line = 12", at("occurred_at", "12:00:00.123456"), origin(topic.SegmentMembers),
			`toString(attributes.s) = 'a "quoted" 飛脚'`, "toInt64(attributes.i) = 9007199254740993"},
		"message_inputs": {"message_id = " + msg, "run_id = " + run, "campaign_id = 'autumn'", "campaign_version = 3", "template_id = 'thanks'", "template_version = 4", "lane = 'bulk'", "user_id = 'u1'",
			"channel = 'email'", "address = 'u1@example.test'", "policy = 'at_most_once'", at("requested_at", "12:00:00.123456"), at("expires_at", "13:00:00.123456"), "locale = 'ja'", "time_zone = 'Asia/Tokyo'",
			"key_id = '1'", "toFloat64(attributes.f) = 1.5", "toString(segments.tasters.item) = 'tea'", "hex(record) = '" + fmt.Sprintf("%X", input.Value) + "'", origin(topic.MessageRequestsBulk)},
		"outcomes": {"outcome_id = toUUID('" + identity.Outcome(messageOf("u1"), "accepted", 1, "").UUID() + "')", "message_id = " + msg, "run_id = " + run, "campaign_id = 'autumn'", "lane = 'bulk'", "user_id = 'u1'",
			"channel = 'email'", "outcome = 'accepted'", "attempt = 1", at("occurred_at", "12:00:01.123456"), "source_topic = 'messages.email.bulk'", "source_partition = 2", "source_offset = 77",
			"provider = 'smtp'", "provider_id = '250 queued as 7'", origin(topic.Outcomes)},
		"engagements": {"engagement_id = toUUID('" + identity.Hash("u1", "clicked").UUID() + "')", "message_id = " + msg, "run_id = " + run, "campaign_id = 'autumn'", "user_id = 'u1'", "channel = 'email'",
			"kind = 'clicked'", "url = 'https://shop.example/?a=b&c=d'", at("occurred_at", "12:01:00.123456"), "method = 'GET'", "user_agent = 'Mail/1.0'", "network = '203.0.113.0/24'", "referer = 'https://mail.example/'", origin(topic.Engagements),
			"purpose = 'preview'", "latency_ms = 61000", "label = 'machine'", "rule = 'prefetch'"},
		"message_engagement": {"message_id = " + msg, "run_id = " + run, "classifier_version = (SELECT max(version) FROM classifiers WHERE in_force)", at("assumeNotNull(clicked_machine_at)", "12:01:00.123456"),
			"clicked_at IS NULL", "clicked_unknown_at IS NULL", "opened_at IS NULL"},
		"runs": {"run_id = " + run, "campaign_id = 'autumn'", "state = 'sending'", "note = 'n'", "campaign_version = 3", "audience_id = 'loyal'", "audience_version = 2", "template_id = 'thanks'", "template_version = 4",
			"channel = 'email'", "lane = 'bulk'", "policy = 'at_most_once'", "consent = 'not_unsubscribed'", "request_id = toUUID('" + request.UUID() + "')", at("as_of", "12:00:00.123456"), at("requested_at", "12:00:00.123456"),
			"mapSort(segments) = map('tasters', [" + imp + ", " + run + "], 'whole', [" + imp + "])", "segment_removals = map('tasters', [" + run + "])", at("expires_at", "13:00:00.123456"), "shards = 1", "expected = 1", "NOT cancel_requested", "NOT balanced", at("assumeNotNull(started_at)", "12:00:01.123456"),
			"finished_at IS NULL", at("updated_at", "12:00:00.123456"), origin(topic.Runs)},
		"imports": {"import_id = " + imp, "spec_id = 'people'", "spec_version = 3", "bucket = 'b'", "key = 'people/飛脚.csv'", "version_id = 'v'", "etag = 'e'", "size_bytes = 4000",
			at("last_modified", "12:00:00.123456"), at("announced_at", "12:00:00.123456"), at("started_at", "12:00:01.123456"), at("updated_at", "12:00:03.123456"), "state = 'reading'", "error = 'none'",
			"offset_bytes = 1000", "line = 101", "rows = 100", "rejected = 4", "profile_updates = 96", "segment_members = 95", "events = 94", "segment_id = 'tasters'",
			"segment_mode = 'replace'", "undoes = 'ffff'", "again = 2", "seconds = 2", "rows_per_second = 50", "seconds_left = 6", origin(topic.Imports)},
		"run_shards":   {"run_id = " + run, "campaign_id = 'autumn'", "shard = 0", "shard_count = 1", "candidates = 1", "children = 0", at("done_at", "12:00:00.123456")},
		"run_counters": {"run_id = " + run, "campaign_id = 'autumn'", "partition = 2", "excluded = map('no_address', 5)", "requested = 1", "accepted = 1", "waiting = 0", at("updated_at", "12:00:00.123456")},
		"messages":     {"message_id = " + msg, "class = 'accepted'", "attempts = 1", at("assumeNotNull(clicked_machine_at)", "12:01:00.123456"), "clicked_at IS NULL"},
	} {
		var n uint64
		require.NoError(t, s.conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n))
		require.Equal(t, uint64(1), n, table)
		for _, condition := range conditions {
			var holds bool
			err := s.conn.QueryRow(t.Context(), "SELECT toBool("+condition+") FROM "+table).Scan(&holds)
			require.NoError(t, err, "%s: %s", table, condition)
			require.True(t, holds, "%s: %s\n%s", table, condition, lines(t, s.conn, "SELECT formatRow('JSONEachRow', *) FROM "+table))
		}
	}
}

// anImport is what an importer says of an import two seconds after it began.
func anImport(state string, rows int64) *event.Import {
	return &event.Import{ImportID: importID, SpecID: "people", SpecVersion: 3, Bucket: "b", Key: "people/飛脚.csv", VersionID: "v", ETag: "e", SizeBytes: 4000, LastModified: noon,
		AnnouncedAt: noon, StartedAt: noon.Add(time.Second), UpdatedAt: noon.Add(3 * time.Second), State: state, Error: "none", OffsetBytes: 10 * rows, Line: rows + 1, Header: []string{"id"},
		Rows: rows, Rejected: 4, ProfileUpdates: rows - 4, SegmentMembers: rows - 5, Events: rows - 6, SegmentID: "tasters", SegmentMode: "replace", Undoes: "ffff", Again: 2, Published: []event.Written{{Topic: "events", Partition: 1, Offset: 7}}}
}

// history is a small run, everything in it at least once, spread over months.
func history(s *stage) []*kgo.Record {
	var recs []*kgo.Record
	now, months := time.Now(), 24
	add := func(r *kgo.Record) {
		// Over two years of record time, and within every table's retention.
		r.Timestamp = now.AddDate(0, -len(recs)%months, 0)
		recs = append(recs, r)
	}
	for i := range 40 {
		user := fmt.Sprintf("user-%d", i)
		add(s.record(topic.Events, user, &event.Event{EventID: fmt.Sprint("e", i), UserID: user, Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: "api:web", Properties: named(anyValue)}))
		// The same event once more, as its sender could not know that it had arrived.
		add(s.record(topic.Events, user, &event.Event{EventID: fmt.Sprint("e", i), UserID: user, Name: "visit", OccurredAt: noon.Add(time.Second), ReceivedAt: noon.Add(time.Second), Source: "api:web"}))
		for revision := range int64(3) {
			add(s.record(topic.Profiles, user, &event.Profile{UserID: user, Revision: revision + 1, Attributes: []event.Attribute{{Name: "n", Value: event.Int(revision)}}, CreatedAt: noon, UpdatedAt: noon}))
		}
		months = 5
		add(s.record(topic.MessageRequestsBulk, user, messageRequest(user)))
		months = 24
		add(s.record(topic.Outcomes, user, outcome(user, "rendered", "", 0)))
		add(s.record(topic.Outcomes, user, outcome(user, "deferred", "4.2.2", 1)))
		add(s.record(topic.Outcomes, user, outcome(user, []string{"accepted", "failed", "uncertain", "expired"}[i%4], "", 2)))
		add(s.record(topic.Engagements, user, engagement(user, "opened", "")))
	}
	add(s.record(topic.Runs, runID.String()+"/0", &event.Run{RunID: runID, CampaignID: "autumn", Shard: &event.ShardDone{Of: 1, Candidates: 40, DoneAt: noon}}))
	for i := range int64(3) {
		add(s.record(topic.Imports, importID.String(), anImport("reading", 100*i)))
		add(s.record(topic.Runs, runID.String()+"/1", &event.Run{RunID: runID, CampaignID: "autumn", Counters: &event.RunCounters{Partition: 1, Requested: 40, Waiting: 40 - 20*i, Accepted: 20 * i, UpdatedAt: noon}}))
		add(s.record(topic.Runs, runID.String(), &event.Run{RunID: runID, CampaignID: "autumn", State: &event.RunState{State: []string{"preparing", "resolving", "sending"}[i], UpdatedAt: noon}}))
	}
	return recs
}

func TestTheEventsOfAnUndoneImportAreGoneAndMayComeAgain(t *testing.T) {
	t.Parallel()
	s := startSink(t, nil)
	other := identity.Import("b", "k", "v2", "spec", 1)
	seen := func(user, id string, by identity.ID) *kgo.Record {
		return s.record(topic.Events, user, &event.Event{EventID: id, UserID: user, Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: "import:" + by.String()})
	}
	stored := func() []string {
		return lines(t, s.conn, "SELECT concat(user_id, ' ', event_id, ' ', source) AS line FROM events ORDER BY line")
	}
	s.Produce(t, seen("u1", "e1", importID), seen("u2", "e1", importID), seen("u1", "e2", other),
		s.record(topic.Events, "u1", &event.Event{EventID: "e3", UserID: "u1", Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: "api:web"}),
		s.record(topic.Imports, importID.String(), anImport("done", 100)))
	s.waitUntilSunk()
	require.Len(t, stored(), 4)

	s.Produce(t, s.record(topic.Imports, importID.String(), anImport("undone", 100)))
	s.waitUntilSunk()
	require.Equal(t, []string{"u1 e2 import:" + other.String(), "u1 e3 api:web"}, stored())

	// The mended file names the same event. Of two copies the first would be kept.
	s.Produce(t, seen("u1", "e1", other))
	s.waitUntilSunk()
	require.NoError(t, s.conn.Exec(t.Context(), "OPTIMIZE TABLE event_rows FINAL"))
	mended := []string{"u1 e1 import:" + other.String(), "u1 e2 import:" + other.String(), "u1 e3 api:web"}
	require.Equal(t, mended, stored())

	// Whoever reads everything again meets the events behind the word that they are undone.
	s.rewind()
	s.waitUntilSunk()
	s.Produce(t, seen("u3", "e1", importID))
	s.waitUntilSunk()
	require.Equal(t, mended, stored())
}

var views = []string{"imports", "events", "profiles", "segment_members", "outcomes", "engagements", "message_inputs", "messages", "runs", "run_shards", "run_counters", "run_balance", "run_counts", "funnel",
	"message_engagement", "classifiers"}

// snapshot is all that the views say, but for the moment up to which they do.
func snapshot(t testing.TB, conn *clickhouse.Conn) map[string]string {
	out := map[string]string{}
	for _, view := range views {
		out[view] = strings.Join(lines(t, conn, "SELECT formatRow('JSONEachRow', * EXCEPT (complete_until)) AS line FROM "+view+" ORDER BY line"), "")
	}
	return out
}

func TestTheSameRecordsAgainInAnotherCutChangeNoView(t *testing.T) {
	t.Parallel()
	s := startSink(t, nil)
	s.Produce(t, history(s)...)
	s.waitUntilSunk()
	before := snapshot(t, s.conn)
	for _, view := range []string{"imports", "events", "profiles", "outcomes", "message_inputs", "messages", "run_balance", "funnel", "message_engagement"} {
		require.NotEmpty(t, before[view], view)
	}
	require.Equal(t, 40, strings.Count(before["events"], "\n"), "one row per event, the copy that came first")

	// What a crash between insert and commit does, at three different places.
	var recs []*kgo.Record
	for _, name := range topic.ReadBy(topic.GroupSink) {
		recs = append(recs, s.All(t, name)...)
	}
	again := sink.New(s.writer, s.conn, telemetry.New("again", telemetry.Config{}, nil).Registry, s.service.classifiers...)
	for _, size := range []int{len(recs), 7, 61} {
		for from := 0; from < len(recs); from += size {
			part := recs[from:min(from+size, len(recs))]
			n, err := again.Handle(t.Context(), part)
			require.NoError(t, err)
			require.Equal(t, len(part), n)
		}
	}
	require.Equal(t, before, snapshot(t, s.conn))
	require.NoError(t, s.conn.Exec(t.Context(), "OPTIMIZE TABLE event_rows FINAL"))
	require.NoError(t, s.conn.Exec(t.Context(), "OPTIMIZE TABLE message_rows FINAL"))
	require.Equal(t, before, snapshot(t, s.conn), "merging changes nothing")
}

func TestPoisonIsParkedAndOnlyThat(t *testing.T) {
	t.Parallel()
	s := startSink(t, nil)
	ev := func(id string, at time.Time) *kgo.Record {
		return s.record(topic.Events, "u1", &event.Event{EventID: id, UserID: "u1", Name: "visit", OccurredAt: at, ReceivedAt: noon, Source: "api:web"})
	}
	garbage := ev("x", noon)
	garbage.Value = append(garbage.Value[:event.HeaderBytes:event.HeaderBytes], 0xff, 0xff)
	short := ev("x", noon)
	short.Value = []byte("hi")
	s.Produce(t, ev("a", noon), garbage, ev("b", noon), ev("far", time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC)), short, ev("c", noon),
		s.record(topic.Outcomes, "u1", outcome("u1", "accepted", "", 1)))
	s.waitUntilSunk()
	require.Equal(t, []string{"a", "b", "c"}, lines(t, s.conn, "SELECT event_id FROM events ORDER BY event_id"))
	require.Equal(t, []string{"accepted"}, lines(t, s.conn, "SELECT outcome FROM outcomes"))
	letters := kafkatest.Consume[event.DeadLetter](t, s.Kafka, topic.DeadLettersCollector, 3)
	require.Len(t, s.All(t, topic.DeadLettersCollector), 3)
	require.Equal(t, garbage.Value, letters[0].Value)
	require.Equal(t, garbage.Offset, letters[0].Offset)
	require.Contains(t, letters[1].Reason, "occurred_at lies outside the years 1900 to 2262")
	require.Equal(t, []byte("hi"), letters[2].Value)
}

func TestClickHouseAwayIsWaitedForAndSaid(t *testing.T) {
	t.Parallel()
	away := &switchable{}
	s := startSink(t, away)
	ev := func(id string) *kgo.Record {
		return s.record(topic.Events, "u1", &event.Event{EventID: id, UserID: "u1", Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: "api:web"})
	}
	s.Produce(t, ev("before"))
	s.waitUntilSunk()

	away.off.Store(true)
	r := ev("during")
	s.Produce(t, r)
	kafkatest.Eventually(t, func() bool {
		said := strings.Join(s.tel.Health.NotReady(), "\n")
		return strings.Contains(said, "loop event-collector") && strings.Contains(said, "clickhouse:")
	}, "nobody says that ClickHouse is away")
	require.Equal(t, r.Offset, s.Committed(t, topic.GroupSink)[topic.Events][r.Partition], "the offset waits for the row")
	require.Empty(t, s.All(t, topic.DeadLettersCollector), "an outage is nobody's fault")
	require.True(t, s.completeUntil().Before(r.Timestamp), "the freshness mark waits for the row")

	away.off.Store(false)
	s.waitUntilSunk()
	require.Equal(t, []string{"before", "during"}, lines(t, s.conn, "SELECT event_id FROM events ORDER BY event_id"))
	kafkatest.Eventually(t, func() bool { return len(s.tel.Health.NotReady()) == 0 }, "still not ready: %v", s.tel.Health.NotReady())
}

func TestAnAnswerThatIsLostAndADatabaseThatIsSlowLoseNothingAndDoubleNothing(t *testing.T) {
	t.Parallel()
	between := &switchable{}
	s := startSink(t, between)
	produced := 0
	visits := func(n int) (recs []*kgo.Record) {
		for range n {
			user := fmt.Sprint("u", produced%97)
			recs = append(recs, s.record(topic.Events, user, &event.Event{EventID: fmt.Sprint("e", produced), UserID: user, Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: "api:web"}))
			produced++
		}
		return recs
	}
	counted := func() string {
		return lines(t, s.conn, "SELECT toString(count()) || ' of ' || toString(uniqExact(event_id)) FROM events")[0]
	}
	between.swallow.Store(2)
	s.Produce(t, visits(300)...)
	s.waitUntilSunk()
	require.Negative(t, between.swallow.Load(), "two inserts were done and not heard of")
	require.Equal(t, "300 of 300", counted())

	few, many := visits(500), visits(20_000) // before anything is held: the sink waits for an insert no longer than 45 s
	hold := make(chan struct{})
	between.hold.Store(&hold)
	s.Produce(t, few...)
	kafkatest.Eventually(t, func() bool { return between.held.Load() > 0 }, "no insert comes")
	s.Produce(t, many...)
	kafkatest.Eventually(t, func() bool { return metric(t, s.tel, "sink_lag_records", "events") == 20_500 }, "the lag is not said")
	require.EqualValues(t, 1, between.held.Load(), "what comes meanwhile waits in Kafka")
	require.Equal(t, "300 of 300", counted())
	between.hold.Store(nil)
	close(hold)
	s.waitUntilSunk()
	require.Equal(t, "20800 of 20800", counted())
	kafkatest.Eventually(t, func() bool {
		return metric(t, s.tel, "sink_lag_records", "events") == 0 && metric(t, s.tel, "sink_complete_until_seconds", "") > 0
	}, "the lag is still said")
	require.Empty(t, s.All(t, topic.DeadLettersCollector))
}

func TestTheCommittedOffsetPassesMarkersAndAbortedTransactions(t *testing.T) {
	t.Parallel()
	s := startSink(t, nil)
	producer, err := s.writer.TransactionalProducer("test")
	require.NoError(t, err)
	defer producer.Close()
	for _, how := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		require.NoError(t, producer.BeginTransaction())
		user := fmt.Sprint("user-", how)
		require.NoError(t, kafka.ProduceSync(t.Context(), producer, s.record(topic.Profiles, user, &event.Profile{UserID: user, Revision: 1, CreatedAt: noon, UpdatedAt: noon})))
		require.NoError(t, producer.EndTransaction(t.Context(), how))
	}
	s.waitUntilSunk()
	require.Equal(t, []string{fmt.Sprint("user-", kgo.TryCommit)}, lines(t, s.conn, "SELECT user_id FROM profiles"))

	written := time.Now()
	kafkatest.Eventually(t, func() bool { return s.completeUntil().After(written) }, "the freshness mark does not pass what is stored, or idle partitions")
	require.False(t, s.completeUntil().After(time.Now()))
	require.Equal(t, []string{"{\"lag\":0}\n"}, lines(t, s.conn, "SELECT formatRow('JSONEachRow', lag) FROM freshness"))
	of := "SELECT toString(passed_offset) || ' of ' || toString(end_offset) FROM sink_progress WHERE topic = 'profiles' ORDER BY partition"
	var want []string
	ends, err := s.writer.HighWatermarks(t.Context(), topic.Profiles)
	require.NoError(t, err)
	for p := range int32(len(ends[topic.Profiles])) {
		want = append(want, fmt.Sprintf("%d of %[1]d", ends[topic.Profiles][p]))
	}
	require.Equal(t, want, lines(t, s.conn, of))
	require.Equal(t, len(topic.ReadBy(topic.GroupSink)), len(lines(t, s.conn, "SELECT toString(topic) FROM topic_freshness")))
}

// completeUntil is what the view freshness says.
func (s *stage) completeUntil() (at time.Time) {
	s.t.Helper()
	require.NoError(s.t, s.conn.QueryRow(s.t.Context(), "SELECT complete_until FROM freshness").Scan(&at))
	return at
}

func TestATableThatIsMissingStopsTheLine(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	cluster := k.Cluster(t, topic.Collector)
	conn := clickhousetest.Open(t)
	require.NoError(t, conn.Exec(t.Context(), "DROP TABLE event_rows"))
	r, err := cluster.Record(topic.Events, "u1", &event.Event{EventID: "a", UserID: "u1", OccurredAt: noon, ReceivedAt: noon})
	require.NoError(t, err)
	n, err := sink.New(cluster, conn, telemetry.New("x", telemetry.Config{}, nil).Registry).Handle(t.Context(), []*kgo.Record{r})
	require.Zero(t, n)
	require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
	require.ErrorContains(t, err, "has provision run?")
}
