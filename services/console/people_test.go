package console

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

func TestAudienceCountsAndListsItsMembers(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.visitor("u3", "Cem", 50)
	s.visitor("u1", "Ann", 30)
	s.visitor("u2", "Bob", 17)
	s.insert("profile_rows", row{"user_id": "u4", "revision": int64(1), "attr_int": map[string]int64{"age": 40}})
	s.insert("event_rows", row{"user_id": "u4", "event_id": "v", "name": "visit", "occurred_at": time.Now().Add(-time.Hour)})

	require.Equal(t, "adults: 3 people\n", s.ok("audience", "adults").out)
	size := s.ok("audience", "adults", "--json").one(t)
	require.Equal(t, 3.0, size["members"])
	require.Equal(t, "adults", size["audience_id"])
	require.Equal(t, "USER_ID  ADDRESS\nu1       u1@example.test\nu3       u3@example.test\nu4       \n", s.ok("audience", "adults", "--members").out)
	require.Equal(t, []map[string]any{{"user_id": "u1", "address": "u1@example.test"}, {"user_id": "u3", "address": "u3@example.test"}, {"user_id": "u4", "address": ""}},
		s.ok("audience", "adults", "--members", "--json").lines(t))
	require.Len(t, s.ok("audience", "adults", "--limit", "2", "--json").lines(t), 2)
	require.Contains(t, s.ok("audience", "adults", "--sql").err, "SELECT count() FROM profiles WHERE")

	require.Equal(t, exitUsage, s.hikyaku("audience", "adults", "--limit", "0").code)
	wrong := s.hikyaku("audience", "adult")
	require.Equal(t, exitUsage, wrong.code)
	require.Contains(t, wrong.err, `did you mean "adults"?`)
}

// inSegment puts people into a list and the list in force.
func (s *stage) inSegment(segment string, importID identity.ID, attributes string, users ...string) {
	s.t.Helper()
	for _, u := range users {
		s.insert("segment_member_rows", row{"segment_id": segment, "import_id": importID, "user_id": u, "attributes": attributes})
	}
	s.point(segment, definitions.Segment{Imports: []identity.ID{importID}})
}

// point puts in force what a segment that no import has filled is made up of.
func (s *stage) point(segment string, to definitions.Segment) {
	s.t.Helper()
	body, err := to.Encode()
	require.NoError(s.t, err)
	_, err = definitions.Write(s.t.Context(), s.cluster, "test", []definitions.Change{{Kind: definitions.KindSegment, ID: segment, Body: body}})
	require.NoError(s.t, err)
}

const tasters = `kind: ImportSpec
id: tasters
source: {prefix: imports/tasters/, format: csv}
user_id: {column: id}
segment: {id: tasters, attributes: {coupon: {column: coupon}, percent: {column: percent, type: int}}}
---
kind: Audience
id: tasters
filter: {segment: tasters}
---
kind: Template
id: coupon
channel: email
subject: "{{ name }}: {{ segment.tasters.percent | plus: 1 }} %"
html: "<p>{{ segment.tasters.coupon }} {{ since }} {{ weight }} <a href='https://example.test/'>shop</a></p>"
text: "Born {{ born }}"
strict: true
---
kind: Campaign
id: coupons
audience: tasters
template: coupon
from: {name: Shop, address: shop@example.test}
policy: at_least_once
consent: subscribed
`

// A preview is the message: the renderer, given the request that the resolver
// would write, makes the same bytes.
func TestAPreviewIsTheMessage(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(tasters)
	require.Contains(t, s.ok("audience", "tasters").err, "no import has filled segment tasters yet")
	born := time.Date(1999, 12, 31, 23, 0, 0, 0, time.UTC)
	s.insert("profile_rows", row{"user_id": "u1", "revision": int64(2), "attr_string": map[string]string{"name": "Ann <3"}, "attr_int": map[string]int64{"since": 2011},
		"attr_float": map[string]float64{"weight": 1.5}, "attr_time": map[string]int64{"born": born.UnixMicro()}, "attr_bool": map[string]bool{"vip": true}, "attr_json": map[string]string{"tags": "[1]"},
		"addresses": map[string]string{"email": "ann@example.test"}, "consents": map[string]string{"email": "subscribed"}, "locale": "tr", "time_zone": "Europe/Istanbul"})
	importID := identity.Hash("an import")
	s.inSegment("tasters", importID, `{"coupon":"A&B","percent":9}`, "u1")

	p := s.ok("preview", "coupons", "u1", "--json").one(t)
	require.Equal(t, "Ann <3: 10 %", p["subject"])
	require.Equal(t, true, p["in_audience"])
	require.Equal(t, true, p["admitted"])
	require.Equal(t, identity.Message(s.namespace, "coupons", "preview", "u1", "").String(), p["message_id"])

	docs, err := definition.Load(files(t, map[string]string{"all.yaml": tasters}), definition.Options{})
	require.NoError(t, err)
	var campaign *definition.Campaign
	var template *definition.Template
	for _, d := range docs {
		switch d := d.Definition.(type) {
		case *definition.Campaign:
			campaign = d
		case *definition.Template:
			template = d
		}
	}
	keys, err := render.Config{Secret: "insecure-development-secret", KeyID: "1"}.Keys()
	require.NoError(t, err)
	// When it was made stands in its links.
	link := regexp.MustCompile(`/u/([A-Za-z0-9_-]+)`).FindStringSubmatch(p["source"].(string))
	require.NotNil(t, link)
	unsubscribe, err := keys.Parse(token.Unsubscribe, link[1])
	require.NoError(t, err)
	mail, err := render.New("http://127.0.0.1:8080", keys, 1<<20).Email(t.Context(), &event.MessageRequest{
		MessageID: identity.Message(s.namespace, "coupons", "preview", "u1", ""), CampaignID: "coupons", CampaignVersion: 1, TemplateID: "coupon", TemplateVersion: 1,
		Lane: "bulk", UserID: "u1", Channel: "email", Address: "ann@example.test", RequestedAt: unsubscribe.RequestedAt, KeyID: "1",
		Attributes: event.Sorted([]event.NamedValue{{Name: "name", Value: event.String("Ann <3")}, {Name: "since", Value: event.Int(2011)}, {Name: "weight", Value: event.Float(1.5)},
			{Name: "born", Value: event.Time(born)}, {Name: "vip", Value: event.Bool(true)}, {Name: "tags", Value: event.JSON("[1]")}}),
		Segments: []event.SegmentValues{{SegmentID: "tasters", Attributes: []event.NamedValue{{Name: "coupon", Value: event.String("A&B")}, {Name: "percent", Value: event.Int(9)}}}},
	}, campaign, template)
	require.NoError(t, err)
	require.Equal(t, string(mail.MIME), p["source"])
	require.Equal(t, string(mail.HTML), p["html"])

	// Another preview is made at another moment, which its links say.
	links := regexp.MustCompile(`/[co]/[A-Za-z0-9_-]+`)
	require.Equal(t, links.ReplaceAllString(string(mail.HTML), "")+"\n", links.ReplaceAllString(s.ok("preview", "coupons", "u1", "--html").out, ""))
	require.Equal(t, string(mail.Text)+"\n", s.ok("preview", "coupons", "u1", "--text").out)
	require.Contains(t, s.ok("preview", "coupons", "u1", "--source").out, "List-Unsubscribe-Post:")
	people := s.ok("preview", "coupons", "u1")
	require.Contains(t, people.out, "From:    Shop <shop@example.test>\nTo:      ann@example.test\nSubject: Ann <3: 10 %\n\nBorn ")
	require.Contains(t, people.err, "u1 is in audience tasters and would get it")
	require.Equal(t, exitUsage, s.hikyaku("preview", "coupons", "u1", "--html", "--text").code)
	require.Empty(t, records[event.MessageRequest](s, topic.MessageRequestsBulk), "a preview is no message")
}

func TestPreviewSaysWhoWouldNotGetIt(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.visitor("child", "Bob", 7)
	s.insert("profile_rows", row{"user_id": "mute", "revision": int64(1), "attr_string": map[string]string{"name": "Mia"}})
	s.insert("profile_rows", row{"user_id": "gone", "revision": int64(1), "attr_string": map[string]string{"name": "Gül"}, "addresses": map[string]string{"email": "g@example.test"},
		"consents": map[string]string{"email": "unsubscribed"}})
	s.insert("profile_rows", row{"user_id": "nameless", "revision": int64(1), "addresses": map[string]string{"email": "n@example.test"}})

	s.insert("profile_rows", row{"user_id": "back", "revision": int64(1), "attr_string": map[string]string{"name": "Bea"}, "addresses": map[string]string{"email": "b@example.test"},
		"suppressions": map[string]string{"email": "bounced"}})

	require.Contains(t, s.ok("preview", "hello-all", "child").err, "child is not in audience adults now; hikyaku explain hello-all child says why")
	mute := s.ok("preview", "hello-all", "mute")
	require.Contains(t, mute.err, "would be excluded: no_address")
	require.Contains(t, mute.out, "Hello Mia, look", "what it would be is shown all the same")
	require.Contains(t, s.ok("preview", "hello-all", "gone").err, "would be excluded: unsubscribed")
	require.Equal(t, "unsubscribed", s.ok("preview", "hello-all", "gone", "--json").one(t)["reason"])

	require.Equal(t, "suppressed", s.ok("preview", "hello-all", "back", "--json").one(t)["reason"])
	require.Equal(t, "b@example.test may be written to again by email\n", s.ok("unsuppress", "back").out)
	require.Equal(t, "bounced", s.ok("unsuppress", "back", "--json").one(t)["was"])
	require.Equal(t, exitUsage, s.hikyaku("unsuppress", "gone").code, "nothing is suppressed")
	typo := s.hikyaku("unsuppress", "gone", "--address", "Old@example.test", "--channel", "emial")
	require.Equal(t, exitUsage, typo.code)
	require.Contains(t, typo.err, "emial")
	s.ok("unsuppress", "gone", "--address", "Old@example.test")
	lifted := records[event.ProfilePatch](s, topic.ProfileUpdates)
	require.Len(t, lifted, 3)
	require.ElementsMatch(t, []string{"b@example.test", "b@example.test", "Old@example.test"},
		[]string{lifted[0].Suppressions[0].Address, lifted[1].Suppressions[0].Address, lifted[2].Suppressions[0].Address})
	require.Empty(t, lifted[0].Suppressions[0].Reason)

	rejected := s.hikyaku("preview", "hello-all", "nameless")
	require.Equal(t, exitBroken, rejected.code)
	require.Contains(t, rejected.err, "would be rejected: template_error")
	require.Contains(t, rejected.err, "name")
	require.Empty(t, rejected.out)
	unknown := s.hikyaku("preview", "hello-all", "4711")
	require.Equal(t, exitUsage, unknown.code)
	require.Contains(t, unknown.err, "nobody with the user_id 4711 is known")
}

func (s *stage) outbox() (dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	box, err := outbox.Open(outbox.Options{Dir: dir})
	require.NoError(s.t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(s.t, err)
	served := make(chan error, 1)
	go func() { served <- box.ServeSMTP(l) }()
	s.t.Cleanup(func() { box.Close(); <-served })
	s.env["SMTP_ADDR"] = l.Addr().String()
	return dir
}

func TestSendTestHandsOneMailToTheServer(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	dir := s.outbox()
	s.apply(letters)
	empty := s.hikyaku("send-test", "hello-all", "--to", "me@example.test")
	require.Equal(t, exitUsage, empty.code)
	require.Contains(t, empty.err, "nobody is in audience adults now")
	s.visitor("u2", "Bob", 40)
	s.visitor("u1", "Ann", 30)

	a := s.ok("send-test", "hello-all", "--to", "me@example.test")
	require.Contains(t, a.out, "took the mail of u1 for me@example.test: [Test] Hello Ann")
	require.Contains(t, a.err, "belongs to no run and is counted in none")
	second := s.ok("send-test", "hello-all", "--to", "me@example.test", "--as", "u2", "--json").one(t)
	require.Equal(t, "u2", second["as"])

	index, err := os.ReadFile(filepath.Join(dir, "index.tsv"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(index)), "\n")
	lines = lines[len(lines)-2:]
	for _, l := range lines {
		require.Contains(t, l, "hello@example.test\tme@example.test")
	}
	require.NotEqual(t, strings.Split(lines[0], "\t")[3], strings.Split(lines[1], "\t")[3], "each test has a Message-ID of its own, or servers would drop the second")
	box, err := filepath.Glob(filepath.Join(dir, "*.mbox"))
	require.NoError(t, err)
	mails, err := os.ReadFile(box[0])
	require.NoError(t, err)
	require.Contains(t, string(mails), "To: <me@example.test>")
	require.Contains(t, string(mails), "Hello Ann, look")
	require.Contains(t, string(mails), "Hello Bob, look")
	for _, name := range []topic.Name{topic.Outcomes, topic.MessageRequestsBulk} {
		ends, err := s.cluster.HighWatermarks(t.Context(), name)
		require.NoError(t, err)
		for _, end := range ends[name] {
			require.Zero(t, end, name)
		}
	}

	refused := s.hikyaku("send-test", "hello-all", "--to", "me+550@example.test")
	require.Equal(t, exitBroken, refused.code)
	require.Contains(t, refused.err, "refused: 550")
	hang := s.hikyaku("send-test", "hello-all", "--to", "me+hang@example.test")
	require.Equal(t, exitBroken, hang.code)
	require.Contains(t, hang.err, "uncertain")
	require.Equal(t, exitUsage, s.hikyaku("send-test", "hello-all", "--to", "Me <me@example.test>").code)
	require.Equal(t, exitUsage, s.hikyaku("send-test", "hello-all").code)
	s.env["SMTP_ADDR"] = "127.0.0.1:1"
	away := s.hikyaku("send-test", "hello-all", "--to", "me@example.test")
	require.Equal(t, exitMissing, away.code)
	require.Contains(t, away.err, "SMTP_ADDR names another")
}

func TestExplainTellsEveryStep(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.visitor("u1", "Ann", 30)
	first, second := identity.Run(s.namespace, "hello-all", "1"), identity.Run(s.namespace, "hello-all", "2")
	start := time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC)
	s.run(first, "finished", row{"requested_at": start})
	s.run(second, "finished", row{"requested_at": start.Add(time.Hour)})
	s.requested(first, "u1")
	s.outcome(first, "u1", "rendered", 0, nil)
	s.outcome(first, "u1", "deferred", 1, row{"reason": "4.7.1", "detail": "451 4.7.1 later"})
	s.outcome(first, "u1", "accepted", 2, row{"detail": "250 2.0.0 queued"})
	s.insert("engagement_rows", row{"engagement_id": identity.Hash("e"), "message_id": identity.Message(s.namespace, "hello-all", first.String(), "u1", ""), "run_id": first,
		"campaign_id": "hello-all", "user_id": "u1", "kind": "clicked", "url": "https://example.test/x", "occurred_at": time.Now()})
	s.requested(second, "u1")
	s.outcome(second, "u1", "uncertain", 1, row{"reason": "no_answer"})

	e := s.ok("explain", "hello-all", "u1", "--json").one(t)
	runs := e["runs"].([]any)
	require.Len(t, runs, 2)
	newest, oldest := runs[0].(map[string]any), runs[1].(map[string]any)
	require.Equal(t, second.String(), newest["run_id"], "the newest comes first")
	require.Equal(t, "uncertain", newest["ending"])
	require.Equal(t, "accepted", oldest["ending"])
	var steps []string
	for _, x := range oldest["steps"].([]any) {
		step := x.(map[string]any)
		require.NotEmpty(t, step["at"])
		steps = append(steps, step["step"].(string))
	}
	require.Equal(t, []string{"requested", "rendered", "deferred", "accepted", "clicked"}, steps)

	a := s.ok("explain", "hello-all", "u1")
	for _, want := range []string{"for u1@example.test, with template hello version 1", "attempt 1: 4.7.1: 451 4.7.1 later", "attempt 2: 250 2.0.0 queued", "https://example.test/x",
		"The provider took it.", "Uncertain: no_answer", "uncertain: the provider was asked and never answered"} {
		require.Contains(t, a.out, want)
	}
	require.Contains(t, s.ok("explain", "hello-all", "u1", "--sql").err, "FROM outcomes")
}

func TestExplainTellsWhyNot(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(letters)
	s.visitor("child", "Bob", 7)
	s.visitor("adult", "Ann", 30)
	s.insert("profile_rows", row{"user_id": "absent", "revision": int64(1), "attr_int": map[string]int64{"age": 40}})
	s.insert("profile_rows", row{"user_id": "late", "revision": int64(1), "attr_int": map[string]int64{"age": 40}})
	s.insert("event_rows", row{"user_id": "ghost", "event_id": "v", "name": "visit", "occurred_at": time.Now()})

	// Before the campaign has run: as of now.
	out := s.ok("explain", "hello-all", "child").out
	require.Contains(t, out, "The campaign has not run. Now this person is not in the audience.")
	require.Contains(t, out, "audience adults version 1 asks for: attribute age >= 18\n  it saw: age is 7 (int)")
	require.Contains(t, s.ok("explain", "hello-all", "adult").out, "is in the audience and would get it")
	require.Contains(t, s.ok("explain", "hello-all", "absent").out, "it saw: 0 events visit that count")
	now := s.ok("explain", "hello-all", "absent", "--json").one(t)["now"].(map[string]any)
	require.Equal(t, false, now["in_audience"])
	require.Equal(t, "no_address", now["reason"])
	require.Equal(t, "event visit at least once within 30d", now["outside"].(map[string]any)["condition"])

	// As of the run: what came after it does not count.
	run := identity.Run(s.namespace, "hello-all", "1")
	s.run(run, "finished", row{"as_of": time.Now().Add(time.Second)})
	excluded := identity.Run(s.namespace, "hello-all", "2")
	s.run(excluded, "sending", row{"as_of": time.Now().Add(time.Second)})
	s.outcome(excluded, "adult", "excluded", 0, row{"reason": "unsubscribed"})
	s.insert("event_rows", row{"user_id": "late", "event_id": "v", "name": "visit", "occurred_at": time.Now().Add(-time.Hour), "ingested_at": time.Now().Add(time.Minute)})
	late := s.ok("explain", "hello-all", "late").out
	require.Contains(t, late, "Not in the audience.\n  audience adults version 1 asks for: event visit")
	require.Contains(t, late, "it saw: 0 events visit that count\n  (attributes as they are today; events and lists as of the run)")
	both := s.ok("explain", "hello-all", "adult").out
	require.Contains(t, both, "Excluded: unsubscribed (unsubscribed from this channel).")
	require.Contains(t, both, "no condition fails today")
	require.NotContains(t, both, "has not run")

	refused := identity.Run(s.namespace, "hello-all", "3")
	s.run(refused, "refused", row{"note": "it has run before"})
	require.Contains(t, s.ok("explain", "hello-all", "child").out, "The run was refused: it has run before.")

	ghost := s.hikyaku("explain", "hello-all", "ghost")
	require.Equal(t, exitUsage, ghost.code)
	require.Contains(t, ghost.err, "ghost has 1 events and no profile")
	nobody := s.hikyaku("explain", "hello-all", "4711")
	require.Equal(t, exitUsage, nobody.code)
	require.Contains(t, nobody.err, "nobody with the user_id 4711 is known")
	require.Contains(t, s.hikyaku("explain", "helo-all", "4711").err, `did you mean "hello-all"?`)
}

// Whoever was removed from a list is no member, today and in the run that saw it so;
// her values come from the list that made her one.
func TestExplainAndPreviewKnowWhoWasRemovedFromAList(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(tasters)
	whole, removed, back := identity.Hash("whole"), identity.Hash("removed"), identity.Hash("back")
	for user, lists := range map[string]map[identity.ID]string{
		"stays": {whole: `{"coupon":"A","percent":1}`}, "gone": {whole: `{"coupon":"A","percent":1}`, removed: "{}"}, "back": {whole: `{"coupon":"A","percent":1}`, removed: "{}", back: `{"coupon":"B","percent":2}`},
	} {
		s.insert("profile_rows", row{"user_id": user, "revision": int64(1), "attr_string": map[string]string{"name": user}, "attr_int": map[string]int64{"since": 2011}, "attr_float": map[string]float64{"weight": 1},
			"attr_time": map[string]int64{"born": 1}, "addresses": map[string]string{"email": user + "@example.test"}, "consents": map[string]string{"email": "subscribed"}})
		for id, attributes := range lists {
			s.insert("segment_member_rows", row{"segment_id": "tasters", "import_id": id, "user_id": user, "attributes": attributes})
		}
	}
	s.point("tasters", definitions.Segment{Imports: []identity.ID{whole, removed, back}, Removes: []identity.ID{removed}})
	require.EqualValues(t, 2, s.ok("audience", "tasters", "--json").one(t)["members"])
	require.Contains(t, s.ok("explain", "coupons", "gone").out, "not a member of tasters")
	require.Equal(t, "stays: 2 %", s.ok("preview", "coupons", "stays", "--json").one(t)["subject"])
	require.Equal(t, "back: 3 %", s.ok("preview", "coupons", "back", "--json").one(t)["subject"])

	s.insert("run_rows", row{"run_id": identity.Hash("run"), "campaign_id": "coupons", "state": "finished", "audience_id": "tasters", "audience_version": int64(1), "requested_at": time.Now(), "as_of": time.Now(),
		"segments": map[string][]uuid.UUID{"tasters": {uuid.UUID(whole), uuid.UUID(removed)}}, "segment_removals": map[string][]uuid.UUID{"tasters": {uuid.UUID(removed)}}})
	require.Contains(t, s.ok("explain", "coupons", "back").out, "it saw: not a member of tasters")
	require.NotContains(t, s.ok("explain", "coupons", "stays").out, "not a member of tasters")
}

// A list that a run saw is another one today.
func TestExplainLooksAtTheListsThatTheRunSaw(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.apply(tasters)
	old, current := identity.Hash("old"), identity.Hash("current")
	s.insert("profile_rows", row{"user_id": "new", "revision": int64(1)})
	s.insert("segment_member_rows", row{"segment_id": "tasters", "import_id": old, "user_id": "old", "attributes": "{}"})
	s.inSegment("tasters", current, "{}", "new")
	require.Contains(t, s.ok("explain", "coupons", "new").out, "is in the audience and would be excluded: not_subscribed")
	s.insert("run_rows", row{"run_id": identity.Hash("run"), "campaign_id": "coupons", "state": "finished", "audience_id": "tasters", "audience_version": int64(1),
		"requested_at": time.Now(), "as_of": time.Now(), "segments": map[string][]uuid.UUID{"tasters": {uuid.UUID(old)}}})
	s.insert("profile_rows", row{"user_id": "old", "revision": int64(1)})
	require.Contains(t, s.ok("explain", "coupons", "old").out, "no condition fails today", "the list that the run saw had this person")
	out := s.ok("explain", "coupons", "new").out
	require.Contains(t, out, "asks for: segment tasters\n  it saw: not a member of tasters")
}
