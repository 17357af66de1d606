package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	resolver "github.com/hikyaku/hikyaku/services/audience-resolver"
	collector "github.com/hikyaku/hikyaku/services/event-collector"
	"github.com/hikyaku/hikyaku/services/importer"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
	"github.com/hikyaku/hikyaku/services/renderer"
	"github.com/hikyaku/hikyaku/services/sender"
)

// service makes a service from the stack's environment, which logs to the test.
func (s *stack) service(name string) lifecycle.Service {
	s.t.Helper()
	svc, err := construct(name, s.env, telemetry.New(name, telemetry.Config{LogLevel: slog.LevelWarn, LogFormat: "text"}, testLog{s.t}))
	require.NoError(s.t, err, name)
	return svc
}

// construct makes a service from its environment, as its main does.
func construct(service string, env map[string]string, tel *telemetry.Telemetry) (lifecycle.Service, error) {
	switch service {
	case topic.Importer:
		return constructed(env, tel, func(c importer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return importer.New(c, tel)
		})
	case topic.Resolver:
		return constructed(env, tel, func(c resolver.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return resolver.New(c, tel)
		})
	case topic.Renderer:
		return constructed(env, tel, func(c renderer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return renderer.New(c, tel)
		})
	case topic.Sender:
		return constructed(env, tel, func(c sender.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) { return sender.New(c, tel) })
	case topic.Collector:
		return constructed(env, tel, func(c collector.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return collector.New(c, tel)
		})
	}
	return nil, fmt.Errorf("there is no service %q", service)
}

func constructed[C any](env map[string]string, tel *telemetry.Telemetry, wire func(C, *telemetry.Telemetry) (lifecycle.Service, error)) (lifecycle.Service, error) {
	cfg, err := config.Load[C](context.Background(), envconfig.MapLookuper(env))
	if err != nil {
		return nil, err
	}
	return wire(cfg, tel)
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(string(p))
	}
	return len(p), nil
}

var _ io.Writer = testLog{}

func (s *stack) provision() {
	s.t.Helper()
	ctx := context.Background()
	type settings struct {
		Provision  provision.Config
		Kafka      kafka.Config
		ClickHouse clickhouse.Config
	}
	cfg, err := config.Load[settings](ctx, envconfig.MapLookuper(s.env))
	require.NoError(s.t, err)
	conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	require.NoError(s.t, err)
	defer conn.Close()
	_, err = provision.Run(ctx, provision.Options{Config: cfg.Provision, Kafka: cfg.Kafka,
		Migrate: func(ctx context.Context) ([]string, error) { return conn.Migrate(ctx, migrations.FS) }})
	require.NoError(s.t, err)
}

// services runs one instance of each in this process until it is stopped, at the latest
// when the test ends.
func (s *stack) services() (stop func()) {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithCancel(lifecycle.WithDrain(context.Background(), lifecycle.DefaultDrain))
	ended := make(chan error, len(serviceNames))
	for _, name := range serviceNames {
		svc := s.service(name)
		go func() { ended <- svc.Run(ctx) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for range serviceNames {
			require.NoError(t, <-ended)
		}
	})
	t.Cleanup(stop)
	return stop
}

// One file in, one campaign out, and everybody is accounted for: by the
// resolver, by ClickHouse, and by the mail server.
func TestPipelineBalances(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.provision()
	s.services()
	s.define("")
	people := makePopulation(300)
	s.drop(people)

	// What the command reads in Kafka, the sink has stored.
	type imported struct {
		State string
		Rows  int64
	}
	var told []imported
	s.eventually("the import has ended", func() bool { // its report comes a moment before
		s.hikyaku(&told, "imports")
		return len(told) == 1 && told[0] == imported{"done", 300}
	})
	s.eventually("the import is in ClickHouse", func() bool {
		var stored imported
		s.hikyaku(&stored, "sql", "SELECT any(state) AS state, sum(rows) AS rows FROM imports")
		return stored == told[0]
	})

	b := s.run("greeting")
	s.requireBalance(people, b)
	s.requireOneMailEach(people.accepted())
	s.requireAllCommitted()
}

// One upload of a list with a coupon per person ends in personalised mails: the
// audience is the segment, the template reads what the list says of the person.
// A second list replaces the first.
func TestSegmentUploadBecomesPersonalMails(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.provision()
	s.services()
	s.define(`
---
kind: ImportSpec
id: tasters
source: {prefix: imports/tasters/, format: csv}
user_id: {column: id}
segment: {id: tasters, attributes: {coupon: {column: coupon}}}
---
kind: Audience
id: invited
filter:
  all: [{segment: tasters}, {attribute: {name: age, gte: 18}}]
---
kind: Template
id: coupon
channel: email
subject: "{{ name }}: {{ segment.tasters.coupon }}"
text: "Your coupon is {{ segment.tasters.coupon }}"
strict: true
---
kind: Campaign
id: tasting
audience: invited
template: coupon
from: {name: Hikyaku, address: hello@example.test}
`)
	people := makePopulation(60)
	s.drop(people)
	s.upload("tasters", "first.csv", "id,coupon\nu0000,A-0\nu0001,A-1\nu0009,A-9\nu9999,A-X\n")
	b := s.run("tasting")
	require.EqualValues(t, 2, b.Audience, "u0009 is 17, u9999 has no profile")
	require.EqualValues(t, 2, b.Accepted)
	require.True(t, b.Balanced)

	s.upload("tasters", "second.csv", "id,coupon\nu0001,B-1\nu0002,B-2\n")
	b = s.run("tasting", "--again", "--yes")
	require.EqualValues(t, 2, b.Accepted)
	subjects := s.subjects()
	require.ElementsMatch(t, []string{"Name 0: A-0", "Name 1: A-1", "Name 1: B-1", "Name 2: B-2"}, subjects)
}

// A file is dropped, and becomes mails: nobody starts anything. The next adds people
// and becomes a run of its own, the one after takes people away and becomes none; and
// what was there before the campaign, or was sent before a restart, is not sent (again).
func TestADroppedFileIsSentOnce(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.provision()
	stop := s.services()
	lists := `
---
kind: Audience
id: invited
filter: {segment: tasters}
---
kind: Template
id: coupon
channel: email
subject: "{{ name }}: {{ segment.tasters.coupon }}"
text: "Your coupon is {{ segment.tasters.coupon }}"
strict: true
`
	for _, mode := range definition.SegmentModes() {
		lists += "---\nkind: ImportSpec\nid: tasters-" + mode + "\nsource: {prefix: imports/tasters-" + mode + "/, format: csv}\nuser_id: {column: id}\nsegment: {id: tasters, mode: " + mode
		if mode != definition.SegmentRemove {
			lists += ", attributes: {coupon: {column: coupon}}"
		}
		lists += "}\n"
	}
	s.define(lists)
	s.drop(makePopulation(60))
	s.upload("tasters-replace", "before.csv", "id,coupon\nu0005,X-5\n")
	s.define(lists + `---
kind: Campaign
id: tasting
audience: invited
template: coupon
from: {name: Hikyaku, address: hello@example.test}
at: {segment: tasters}
`)
	sent := func(n int) {
		t.Helper()
		var all []map[string]any
		s.eventually(fmt.Sprintf("there are %d runs", n), func() bool {
			all = s.rows("SELECT replaceAll(toString(run_id), '-', '') AS run FROM runs WHERE campaign_id = 'tasting' ORDER BY requested_at")
			return len(all) >= n
		})
		require.Len(t, all, n)
		b := s.ended(all[n-1]["run"].(string))
		require.Equal(t, "finished", b.State)
		require.True(t, b.Balanced)
	}
	s.upload("tasters-replace", "first.csv", "id,coupon\nu0000,A-0\nu0001,A-1\n")
	sent(1)
	require.ElementsMatch(t, []string{"Name 0: A-0", "Name 1: A-1"}, s.subjects())

	stop()
	s.services()
	s.upload("tasters-remove", "second.csv", "id\nu0000\n")
	s.upload("tasters-add", "third.csv", "id,coupon\nu0002,B-2\n")
	sent(2)
	require.ElementsMatch(t, []string{"Name 0: A-0", "Name 1: A-1", "Name 1: A-1", "Name 2: B-2"}, s.subjects())
}

// courierSecret signs what a provider of these tests reports.
const courierSecret = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"

// report posts a signed webhook about the message of a mail, and says whose it was.
func (s *stack) report(mail, kind, more string) (userID string) {
	s.t.Helper()
	link := regexp.MustCompile(`/u/([A-Za-z0-9_-]+)`).FindStringSubmatch(mail)
	require.NotNil(s.t, link)
	keys, err := render.Config{Secret: render.InsecureSecret, KeyID: "1"}.Keys()
	require.NoError(s.t, err)
	about, err := keys.Parse(token.Unsubscribe, link[1])
	require.NoError(s.t, err)
	about.Purpose = token.Echo // as a sender gives it to its provider
	echo, err := keys.Append(nil, "1", about)
	require.NoError(s.t, err)
	body := fmt.Sprintf(`{"type":%q,"timestamp":%q,"data":{"message":%q%s}}`, kind, time.Now().UTC().Format(time.RFC3339), echo, more)
	secret, err := base64.StdEncoding.DecodeString(courierSecret)
	require.NoError(s.t, err)
	at := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(kind + "." + at + "." + body))
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.env["TRACKING_URL"]+"/w/hooks/courier", strings.NewReader(body))
	require.NoError(s.t, err)
	r.Header.Set("webhook-id", kind)
	r.Header.Set("webhook-timestamp", at)
	r.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	got, err := http.DefaultClient.Do(r)
	require.NoError(s.t, err)
	got.Body.Close()
	require.Equal(s.t, http.StatusOK, got.StatusCode)
	return about.UserID
}

// Opens, clicks and an unsubscription are seen in the funnel, and whoever
// unsubscribed, or whose address bounced, is excluded from the next run. Whoever is erased
// is nowhere any more, not even when everything is read again from the beginning, and every
// number stays.
func TestWhatReadersDoIsCountedAndActedOn(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.env["WEBHOOK_SECRETS"] = "courier:whsec_" + courierSecret
	// What is answered is in Kafka, however busy the machine is, and not in the spool.
	s.env["INTAKE_ACK_TIMEOUT"], s.env["TRACKING_HIT_TIMEOUT"] = "20s", "20s"
	s.provision()
	stop := s.services()
	s.define("")
	people := makePopulation(40)
	s.drop(people)
	s.run("greeting")

	mails := s.mailTexts()
	links := regexp.MustCompile(regexp.QuoteMeta(s.env["TRACKING_URL"]) + `/[cou]/[A-Za-z0-9_-]+`)
	var opened, clicked int
	for i, mail := range mails {
		for _, link := range links.FindAllString(mail, -1) {
			kind := strings.TrimPrefix(link, s.env["TRACKING_URL"])[:3]
			switch {
			case kind == "/o/" && i < 4:
				require.Equal(t, http.StatusOK, request(t, http.MethodGet, link, ""))
				opened++
			case kind == "/c/" && i < 2:
				require.Equal(t, http.StatusFound, request(t, http.MethodGet, link, ""))
				require.Equal(t, http.StatusBadRequest, request(t, http.MethodGet, link[:len(link)-1], ""), "a tampered link leads nowhere")
				clicked++
			case kind == "/u/" && i == 0:
				require.Equal(t, http.StatusOK, request(t, http.MethodGet, link, ""), "looking does not unsubscribe")
				require.Equal(t, http.StatusOK, request(t, http.MethodPost, link, "List-Unsubscribe=One-Click"))
			}
		}
	}
	require.Equal(t, 4, opened)
	require.Equal(t, 2, clicked)
	last := mails[len(mails)-1]
	user := s.report(last, "message.delivered", "")
	address := user
	if user == "u0017" {
		address += "+451"
	}
	s.report(last, "message.bounced", `,"reason":"no_such_user","permanent":true,"address":"`+strings.ToUpper(address)+`@Example.test"`)
	// Readers as quick as these are machines to the classifier, if their mail is younger than a second or two.
	var funnel struct{ Opened, Clicked, Unsubscribed int64 }
	s.eventually("the funnel shows it", func() bool {
		s.hikyaku(&funnel, "sql", "SELECT toInt64(sum(opened + opened_machine)) AS opened, toInt64(sum(clicked + clicked_machine)) AS clicked, toInt64(sum(unsubscribed)) AS unsubscribed FROM funnel WHERE campaign_id = 'greeting'")
		return funnel.Opened == 4 && funnel.Clicked == 2 && funnel.Unsubscribed == 1
	})
	s.requireAllCommitted() // the resolver knows it, too
	b := s.run("greeting", "--again", "--yes")
	require.True(t, b.Balanced)
	require.Equal(t, people.unsubscribed+1, b.Excluded["unsubscribed"])
	require.EqualValues(t, 1, b.Excluded["suppressed"])
	var told struct {
		Runs []struct {
			Ending string
			Steps  []struct{ Step, Reason string }
		}
	}
	s.hikyaku(&told, "explain", "greeting", user)
	require.Equal(t, "suppressed", told.Runs[0].Steps[0].Reason)
	steps := told.Runs[1].Steps
	require.Equal(t, "accepted", told.Runs[1].Ending, "what bounced had been taken")
	require.ElementsMatch(t, []string{"delivered", "bounced"}, []string{steps[len(steps)-2].Step, steps[len(steps)-1].Step})

	reader := s.rows("SELECT user_id FROM engagements WHERE kind = 'unsubscribed'")[0]["user_id"].(string)
	numbers := func() any {
		var all []any
		for _, query := range []string{"SELECT * EXCEPT (complete_until) FROM funnel ORDER BY ALL", "SELECT * EXCEPT (note, complete_until) FROM run_balance ORDER BY ALL",
			"SELECT class, count() AS messages, uniqExact(user_id) AS people FROM messages GROUP BY class ORDER BY class"} {
			all = append(all, s.rows(query))
		}
		return all
	}
	before := numbers()
	require.Subset(t, s.naming(reader), []string{"profile_rows", "outcome_rows", "engagement_rows", "message_input_rows", "message_rows"})
	var erased struct{ Removed, Unlinked, Left map[string]uint64 }
	s.hikyaku(&erased, "erase", reader, "--yes")
	require.NotZero(t, erased.Removed["profile_rows"])
	require.NotZero(t, erased.Unlinked["message_rows"])
	require.Empty(t, erased.Left)
	require.Empty(t, s.naming(reader))
	require.Equal(t, before, numbers())
	s.hikyaku(&erased, "erase", reader, "--yes") // once more: nothing is left to do
	require.Empty(t, s.naming(reader))

	stop()
	s.rewindSink()
	s.services()
	s.eventually("the sink has read everything again", s.sunk)
	require.Empty(t, s.naming(reader))
	require.Equal(t, before, numbers())
	var audience struct{ Members int64 }
	s.hikyaku(&audience, "audience", "adults")
	require.Equal(t, people.audience-1, audience.Members)
}

// naming are the tables with a row that a pattern is found in.
func (s *stack) naming(pattern string) (found []string) {
	s.t.Helper()
	for _, table := range s.rows("SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE '%\\_rows'") {
		for _, n := range s.rows(fmt.Sprintf("SELECT count() AS n FROM %s AS t WHERE match(toString(tuple(t.*)), '%s')", table["name"], pattern)) {
			if n["n"] != 0.0 {
				found = append(found, table["name"].(string))
			}
		}
	}
	return found
}

// rewindSink lets the sink, which does not run, begin everything again.
func (s *stack) rewindSink() {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
	require.NoError(s.t, err)
	defer client.Close()
	adm := kadm.NewClient(client)
	group := topic.GroupSink.In(s.namespace)
	// Its name is kept for it until the session ends.
	left, err := adm.LeaveGroup(s.t.Context(), kadm.LeaveGroup(group).InstanceIDs(topic.Collector+"-0"))
	require.NoError(s.t, err)
	require.NoError(s.t, left.Error())
	names := make([]string, 0, 8)
	for _, name := range topic.ReadBy(topic.GroupSink) {
		names = append(names, name.In(s.namespace))
	}
	starts, err := adm.ListStartOffsets(s.t.Context(), names...)
	require.NoError(s.t, err)
	require.NoError(s.t, starts.Error())
	require.NoError(s.t, adm.CommitAllOffsets(s.t.Context(), group, starts.Offsets()))
}

// sunk reports whether the sink has passed all there is.
func (s *stack) sunk() bool {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
	require.NoError(s.t, err)
	defer client.Close()
	lag, err := kadm.NewClient(client).Lag(s.t.Context(), topic.GroupSink.In(s.namespace))
	require.NoError(s.t, err)
	group := lag[topic.GroupSink.In(s.namespace)]
	return group.Error() == nil && group.Lag.Total() == 0
}

// A cancelled run ends and balances: what was not sent is accounted for.
func TestCancelledRunBalances(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.env["WINDOW"], s.env["SMTP_CONNECTIONS"] = "40", "1"
	s.provision()
	s.services()
	s.define("")
	people := makePopulation(8000)
	s.drop(people)
	var started struct {
		RunID string `json:"run_id"`
	}
	s.hikyaku(&started, "start", "greeting")
	s.eventually("mails go out", func() bool { return s.mails() > 20 })
	s.hikyaku(nil, "cancel", started.RunID)
	b := s.ended(started.RunID)
	require.Equal(t, "cancelled", b.State)
	require.True(t, b.Balanced, "%+v", b)
	require.Equal(t, people.audience, b.Audience)
	require.NotZero(t, b.Excluded["run_cancelled"])
	require.Less(t, b.Accepted, people.accepted())
	s.requireOneMailEach(b.Accepted)
}
