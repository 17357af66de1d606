package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// everyone is a list of people who are all to get a mail.
func everyone(n int) population {
	p := population{audience: int64(n)}
	for i := range n {
		p.rows = append(p.rows, []string{fmt.Sprintf("u%04d", i), fmt.Sprintf("u%04d@example.test", i), "", fmt.Sprintf("Name %d", i), "30"})
	}
	return p
}

// begin starts a campaign beside the test, since the command waits until
// ClickHouse shows the run; the function it returns waits for the command.
func (s *stack) begin(campaign string, flags ...string) (run func() string) {
	done := make(chan string, 1)
	go func() {
		var started struct {
			RunID string `json:"run_id"`
		}
		s.hikyaku(&started, append([]string{"start", campaign, "--timeout", "3m"}, flags...)...)
		done <- started.RunID
	}()
	return func() string {
		s.t.Helper()
		select {
		case id := <-done:
			return id
		case <-time.After(2 * deadline):
			require.FailNow(s.t, "the campaign does not start")
			return ""
		}
	}
}

// post sends an event to the intake and returns its answer.
func (s *stack) post(id string) int {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	body := fmt.Sprintf(`{"userId": "u0001", "event": "looked", "messageId": %q}`, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.env["TRACKING_URL"]+"/v1/track", strings.NewReader(body))
	require.NoError(s.t, err)
	req.SetBasicAuth("dev", "")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	require.NoError(s.t, resp.Body.Close())
	return resp.StatusCode
}

// requireEvents waits until ClickHouse shows each of these events, once.
func (s *stack) requireEvents(acknowledged []string) {
	s.t.Helper()
	times := map[string]int{}
	s.eventually("every acknowledged event is in ClickHouse", func() bool {
		times = map[string]int{}
		for _, row := range s.rows("SELECT event_id FROM events WHERE name = 'looked'") {
			times[fmt.Sprint(row["event_id"])]++
		}
		for _, id := range acknowledged {
			if times[id] == 0 {
				return false
			}
		}
		return true
	})
	for id, n := range times {
		require.Equal(s.t, 1, n, "event %s", id)
	}
}

// rows asks ClickHouse past the services.
func (s *stack) rows(query string) []map[string]any { return s.lines("sql", query) }

// lines are what a command prints with --json, as JSON Lines.
func (s *stack) lines(args ...string) (rows []map[string]any) {
	s.t.Helper()
	for d := json.NewDecoder(s.printed(args...)); d.More(); {
		var row map[string]any
		require.NoError(s.t, d.Decode(&row))
		rows = append(rows, row)
	}
	return rows
}

const insistentYAML = `
---
kind: Campaign
id: insistent
audience: adults
template: hello
policy: at_least_once
from: {name: Hikyaku, address: hello@example.test}
`

// A server that refuses connections or says 421 is waited for: nobody's attempt
// is used up. A 451 and a connection that ends before the last line are tried
// again. Silence after the last line is uncertain, and only that; whoever prefers
// two copies to none gets them.
func TestAMailServerInEveryMoodIsToldOfEverybodyOnce(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	p := newProvider(t)
	s.env["SMTP_ADDR"], s.env["SMTP_CONNECTIONS"], s.env["SMTP_DATA_TIMEOUT"] = p.addr, "8", "3s"
	s.provision()
	all := s.members()
	s.define(insistentYAML)
	const n, moodPeople = 600, 6
	moods := map[string]int{moodRecipient: 20, moodPipeline: 20, moodSilent: moodPeople, moodDownbroken: moodPeople}
	s.drop(everyone(n))
	mail := all[topic.Sender]
	for round, campaign := range []string{"greeting", "insistent"} {
		p.be(nil)
		outcomes := mail.metric("sender_outcomes_total")
		run := s.begin(campaign)
		s.saysSoon([]string{"sender-0, smtp, since", "connection refused"}, mail)
		s.whileAway(outage(t, time.Second), func() {
			require.Zero(t, mail.metric("component_ready", "component=smtp"))
		})
		for _, mood := range []string{moodGreeting, moodSession} {
			before := p.seen(mood)
			p.be(map[string]int{mood: -1})
			if mood == moodGreeting {
				p.open()
			}
			s.eventually("the server has shown "+mood, func() bool { return p.seen(mood) > before })
			s.saysSoon([]string{"sender-0, smtp, since", "421"}, mail)
		}
		require.Equal(t, outcomes, mail.metric("sender_outcomes_total"), "an attempt was used up")
		require.Zero(t, p.people())
		p.be(moods)
		b := s.ended(run())
		for mood, times := range moods {
			require.Equal(t, times*(round+1), p.seen(mood), mood)
		}
		require.True(t, b.Balanced, "%+v", b)
		require.Zero(t, b.Failed)
		copies, silent := p.count()
		require.Len(t, copies, n, "everybody was asked for")
		unanswered := 0
		for _, times := range silent { // who is asked again may meet silence again
			unanswered += times
		}
		require.Equal(t, 2*moodPeople, unanswered)
		if campaign == "greeting" {
			require.EqualValues(t, 2*moodPeople, b.Uncertain)
			require.EqualValues(t, n-2*moodPeople, b.Accepted)
			for who, times := range copies {
				require.Equal(t, 1, times, who)
			}
		} else {
			require.EqualValues(t, n, b.Accepted)
			again := 0
			for _, times := range copies {
				again += times - 1
			}
			require.LessOrEqual(t, again, 2*moodPeople, "whoever was not answered, and nobody else")
		}
		mail.requireOutages("smtp", round+1)
		require.EqualValues(t, round+1, mail.metric("component_outages_total", "component=smtp"))
		p.forget()
	}
	require.NotZero(t, mail.metric("sender_outcomes_total", "outcome=deferred"))
	require.NotZero(t, mail.metric("sender_outcomes_total", "outcome=uncertain"))
	s.saysWell(everybody(all)...)
	require.Empty(t, mail.ended())
}

// ClickHouse may be away, and slow when it is back: the run waits and says for
// whom, what was acknowledged meanwhile is there afterwards, and the books agree.
func TestClickHouseAwayAndThenSlow(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	address, err := url.Parse(s.env["CLICKHOUSE_URL"])
	require.NoError(t, err)
	database := newLink(t, address.Host)
	s.provision()
	all := s.members("CLICKHOUSE_URL=http://"+database.addr(), "STALE_AFTER=1s")
	s.define("")
	people := makePopulation(400)
	s.drop(people)

	database.refuse()
	var events []string
	post := func() {
		id := fmt.Sprintf("event-%d", len(events))
		require.Equal(t, http.StatusOK, s.post(id), "the intake needs no ClickHouse")
		events = append(events, id)
	}
	post()
	run := s.begin("greeting")
	s.saysSoon([]string{"event-collector-0, clickhouse, since", "is blocked: group event-collector lacks"}, everybody(all)...)
	s.whileAway(outage(t, 2*time.Second), func() {
		post()
		require.Zero(t, all[topic.Collector].metric("component_ready", "component=clickhouse"))
	})
	require.Zero(t, s.mails(), "the audience is not known yet")
	database.slow(outage(t, 3*time.Second) / 20)
	database.accept()
	s.whileAway(outage(t, 3*time.Second), post)
	database.heal()
	b := s.ended(run())
	s.requireBalance(people, b)
	s.requireOneMailEach(people.accepted())
	s.requireEvents(events)
	s.saysWell(everybody(all)...)
	all[topic.Collector].requireOutages("clickhouse", 1)
	for _, m := range all {
		require.Empty(t, m.ended(), m.name)
	}
}

// stoppableKafka starts a stack whose broker can be stopped and started again:
// the embedded one, or, where KAFKA_BROKERS names another, the way to it.
func stoppableKafka(t *testing.T) (s *stack, stop, start func()) {
	t.Helper()
	if real := os.Getenv("KAFKA_BROKERS"); real != "" {
		way := kafkaLink(t, real)
		s = startStack(t)
		s.env["KAFKA_BROKERS"] = way.addr()
		return s, way.refuse, way.accept
	}
	o := kafka.Options{Dir: t.TempDir(), Addr: freeAddr(t)}
	broker, err := kafka.Open(context.Background(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	return startStackOn(t, broker.Addr()), func() { require.NoError(t, broker.Close()) }, func() {
		broker, err = kafka.Open(context.Background(), o)
		require.NoError(t, err)
	}
}

// write puts a file into the bucket; imported waits for its report.
func (s *stack) write(name string, rows [][]string) {
	s.t.Helper()
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	require.NoError(s.t, w.Write([]string{"id", "email", "consent", "name", "age"}))
	require.NoError(s.t, w.WriteAll(rows))
	require.NoError(s.t, os.WriteFile(filepath.Join(s.folder, "imports", "people", name), b.Bytes(), 0o644))
}

func (s *stack) imported(name string, rows int) {
	s.t.Helper()
	var report struct {
		State string
		Rows  int
	}
	s.eventually("the import of "+name+" is done", func() bool {
		text, err := os.ReadFile(filepath.Join(s.folder, "imports", "people", name+".report.json"))
		return err == nil && json.Unmarshal(text, &report) == nil
	})
	require.Equal(s.t, "done", report.State)
	require.Equal(s.t, rows, report.Rows)
}

// children are people of whom no campaign of these tests speaks.
func children(n int) (rows [][]string) {
	for i := range n {
		rows = append(rows, []string{fmt.Sprintf("c%05d", i), fmt.Sprintf("c%05d@example.test", i), "", fmt.Sprintf("Child %d", i), "7"})
	}
	return rows
}

// Kafka may be stopped for longer than sessions and transactions last, in the
// middle of a run and of an import: nobody ends, nobody is called twice, what was
// acknowledged is there, and everybody is at work again when it is back.
func TestKafkaStoppedBeyondEveryTimeout(t *testing.T) {
	t.Parallel()
	s, stop, start := stoppableKafka(t)
	s.env["SMTP_CONNECTIONS"], s.env["TRANSACTION_BYTES"] = "1", "65536"
	s.provision()
	all := s.members()
	s.define("")
	people := everyone(3000)
	s.drop(people)
	run := s.begin("greeting")()
	s.eventually("mails go out", func() bool { return s.mails() > 100 })
	const kids = 10_000
	s.write("children.csv", children(kids))
	before := all[topic.Importer].metric("importer_rows_total")
	s.eventually("rows are imported", func() bool { return all[topic.Importer].metric("importer_rows_total") > before })

	stop()
	var acknowledged []string
	away, posts := outage(t, 17*time.Second), 0
	began := time.Now()
	s.saysSoon([]string{"Kafka at", "sender-0, kafka, since", "event-collector-0, kafka, since"}, everybody(all)...)
	quiet := 0
	s.whileAway(away-time.Since(began), func() {
		id := fmt.Sprintf("event-%d", posts)
		posts++
		require.Equal(t, http.StatusOK, s.post(id), "intake goes on, into its spool")
		acknowledged = append(acknowledged, id)
		quiet = s.mails()
	})
	require.NotEmpty(t, acknowledged)
	start()
	back := time.Now()
	s.eventually("mails go out again", func() bool { return s.mails() > quiet || quiet == len(people.rows) })
	t.Logf("at work %s after Kafka came back", time.Since(back).Round(100*time.Millisecond))
	s.eventually("the intake acknowledges", func() bool { return s.post("after") == http.StatusOK })

	s.imported("children.csv", kids)
	t.Logf("imported %s after Kafka came back", time.Since(back).Round(100*time.Millisecond))
	b := s.ended(run)
	require.True(t, b.Balanced, "%+v", b)
	require.EqualValues(t, people.audience, b.Accepted+b.Uncertain)
	require.Zero(t, b.Uncertain, "every call was answered, and every answer could be written in the end")
	s.requireOneMailEach(b.Accepted)
	s.requireEvents(append(acknowledged, "after"))
	told := s.lines("topic", "read", "spools")
	require.NotEmpty(t, told, "the collector says what its spool held")
	last := told[len(told)-1]
	require.Contains(t, last["key"], "event-collector-0-")
	require.Zero(t, last["value"].(map[string]any)["records"], "and that nothing is left")
	s.saysWell(everybody(all)...)
	for _, m := range all {
		require.Empty(t, m.ended(), m.name)
		m.requireOutages("kafka", 1)
	}
}

// The network between one instance of everything and the broker swallows all that
// is sent, until the others have taken over; then it is mended. Whoever was cut off
// finds itself fenced, has called nobody twice, and is at work again.
func TestCutOffUntilFencedAndHealed(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.env["SMTP_CONNECTIONS"], s.env["KAFKA_SESSION_TIMEOUT"] = "2", "6s" // the least that a broker allows by default
	way := kafkaLink(t, s.brokers[0])
	s.provision()
	cut := s.members("KAFKA_BROKERS=" + way.addr())
	s.define("")
	people := everyone(4000)
	s.drop(people)
	others := map[string]*member{}
	for _, service := range serviceNames {
		others[service] = s.member(service, 1)
	}
	of := func(members int) bool {
		groups := s.status(everybody(cut, others)...).Groups
		for _, g := range groups {
			if len(g.Members) != members {
				return false
			}
		}
		return len(groups) == 5 // those that could be asked in time
	}
	s.eventually("the work is shared", func() bool { return of(2) })
	run := s.begin("greeting")()
	s.eventually("mails go out", func() bool { return s.mails() > 100 })

	way.swallow()
	began := time.Now()
	s.eventually("the others have everything", func() bool { return of(1) })
	s.saysSoon([]string{"sender-0, kafka, since", "renderer-0, kafka, since", "no answer from broker"}, everybody(cut, others)...)
	there := s.mails()
	s.eventually("mails go out from the others", func() bool { return s.mails() > there+50 || s.mails() == len(people.rows) })
	s.whileAway(outage(t, time.Second)-min(time.Since(began), outage(t, time.Second)-1), func() {})
	way.heal()
	healed := time.Now()
	s.eventually("the work is shared again", func() bool { return of(2) })
	t.Logf("cut for %s, shared again after %s", healed.Sub(began).Round(100*time.Millisecond), time.Since(healed).Round(100*time.Millisecond))
	b := s.ended(run)
	require.True(t, b.Balanced, "%+v", b)
	require.EqualValues(t, people.audience, b.Accepted+b.Uncertain)
	require.LessOrEqual(t, b.Uncertain, int64(2*2), "the claims of one sender")
	s.requireNobodyTwice(b.Accepted, b.Accepted+b.Uncertain)
	s.saysWell(everybody(cut, others)...)
	s.requireAllCommitted()
	cut[topic.Sender].requireOutages("kafka", 1)
}

// A registry that is away holds up whoever starts, and whoever meets a schema that
// he does not know: both wait and say so, and nothing is taken for poison.
func TestARegistryThatIsAwayIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	address, err := url.Parse(s.env["SCHEMA_REGISTRY_URL"])
	require.NoError(t, err)
	registry := newLink(t, address.Host)
	s.provision()
	registry.refuse()
	all := s.members("SCHEMA_REGISTRY_URL=http://" + registry.addr())
	waiting := []string{"connection refused"}
	for _, service := range serviceNames {
		waiting = append(waiting, service+"-0, schema registry, since")
	}
	s.saysSoon(waiting, everybody(all)...)
	s.whileAway(outage(t, time.Second), func() {})
	registry.accept()
	s.saysWell(everybody(all)...)
	s.define("")
	people := everyone(50)
	s.drop(people)

	// A newer program writes about a person with a schema of its own.
	registry.refuse()
	id := s.registerNewer(topic.ProfileUpdates, "ProfilePatch")
	at := time.Now().UTC().Truncate(time.Microsecond)
	name := "From a newer program"
	patch := &event.ProfilePatch{UserID: "u0007", OccurredAt: at, SetAt: at, SetBy: "api:test", Set: []event.NamedValue{{Name: "name", Value: event.String(name)}}}
	s.produce(topic.ProfileUpdates, "u0007", append(patch.AppendAvro(event.AppendHeader(nil, id)), 0))
	s.saysSoon([]string{"audience-resolver-0, loop audience-resolver, since", "resolving schema id"}, everybody(all)...)
	require.Zero(t, all[topic.Resolver].metric("component_ready", "component=loop audience-resolver"))
	registry.accept()
	b := s.run("greeting")
	require.True(t, b.Balanced, "%+v", b)
	require.EqualValues(t, people.audience, b.Accepted)
	s.requireOneMailEach(b.Accepted)
	require.Contains(t, s.subjects(), "Hello "+name)
	s.saysWell(everybody(all)...)
	require.Empty(t, s.status(everybody(all)...).DeadLetters)
	for _, m := range all {
		require.Empty(t, m.ended(), m.name)
		m.requireOutages("schema registry", 1)
	}
}

// registerNewer registers a topic's schema with a field more and returns its id.
func (s *stack) registerNewer(name topic.Name, record string) int {
	s.t.Helper()
	rec, ok := event.New(record)
	require.True(s.t, ok)
	var schema map[string]any
	require.NoError(s.t, json.Unmarshal([]byte(rec.Schema()), &schema))
	schema["fields"] = append(schema["fields"].([]any), map[string]any{"name": "from_a_newer_program", "type": []string{"null", "string"}, "default": nil})
	text, err := json.Marshal(schema)
	require.NoError(s.t, err)
	registry, err := sr.NewClient(sr.URLs(s.env["SCHEMA_REGISTRY_URL"]))
	require.NoError(s.t, err)
	registered, err := registry.CreateSchema(s.t.Context(), name.Subject(s.namespace), sr.Schema{Schema: string(text), Type: sr.TypeAvro})
	require.NoError(s.t, err)
	return registered.ID
}

// produce writes a value as it is, to where its key lives.
func (s *stack) produce(name topic.Name, key string, value []byte) {
	s.t.Helper()
	partitions, err := strconv.Atoi(s.env["PARTITIONS"])
	require.NoError(s.t, err)
	s.produceTo(name, topic.Partition(key, partitions), key, value)
}

func (s *stack) produceTo(name topic.Name, partition int32, key string, value []byte) {
	s.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(s.t, err)
	defer cl.Close()
	require.NoError(s.t, cl.ProduceSync(s.t.Context(), &kgo.Record{Topic: name.In(s.namespace), Partition: partition, Key: []byte(key), Value: value}).FirstErr())
}

// A clock that jumps an hour ahead and back, while a run is on its way, stops
// nothing: time never goes back, and runs go on while it stands still.
func TestAClockThatJumpsStopsNoRun(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.env["SMTP_CONNECTIONS"] = "1"
	s.provision()
	all := s.members()
	s.define("")
	people := makePopulation(500)
	s.drop(people)
	run := s.begin("greeting")()
	s.eventually("mails go out", func() bool { return s.mails() > 20 })
	id := s.tickSchema()
	for partition := range int32(4) {
		for _, jump := range []time.Duration{time.Hour, -time.Hour, -24 * time.Hour} {
			tick := &event.Tick{Partition: partition, At: time.Now().Add(jump).UTC().Truncate(time.Microsecond)}
			s.produceTo(topic.Ticks, partition, strconv.Itoa(int(partition)), tick.AppendAvro(event.AppendHeader(nil, id)))
		}
	}
	b := s.ended(run)
	s.requireBalance(people, b)
	s.requireOneMailEach(people.accepted())
	b = s.run("greeting", "--again", "--yes")
	require.True(t, b.Balanced, "%+v", b)
	require.EqualValues(t, people.accepted(), b.Accepted)
	s.saysWell(everybody(all)...)
	for _, m := range all {
		require.Empty(t, m.ended(), m.name)
	}
}

// tickSchema is the id under which ticks are written.
func (s *stack) tickSchema() int {
	s.t.Helper()
	registry, err := sr.NewClient(sr.URLs(s.env["SCHEMA_REGISTRY_URL"]))
	require.NoError(s.t, err)
	known, err := registry.SchemaByVersion(s.t.Context(), topic.Ticks.Subject(s.namespace), -1)
	require.NoError(s.t, err)
	return known.ID
}
