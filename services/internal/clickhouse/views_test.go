package clickhouse_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

// What analysts read is computed here a second time, in Go and from the records
// as they would lie in Kafka, by nothing but what the comments of the views say.

type aMessage struct {
	campaign, variant, user string
	run, id                 uuid.UUID
	excluded                bool
	first                   map[string]time.Time // requested, and the earliest outcome of each name
}

// accepted is when a provider took it: any report after that proves it, too.
func (m *aMessage) accepted() (at time.Time, ok bool) {
	if m.excluded {
		return at, false
	}
	for _, name := range []string{"accepted", "delivered", "bounced", "complained"} {
		if t, is := m.first[name]; is && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

type aHit struct {
	id        uuid.UUID
	m         *aMessage
	kind, url string
	label     string // by the classifier in force
	at        time.Time
}

type anEvent struct {
	id, user, name string
	at             time.Time
	price          *float64
}

type aGoal struct {
	event   string
	within  time.Duration
	revenue string
}

// world is everything that happened.
type world struct {
	messages []*aMessage
	hits     []aHit
	events   []anEvent
	goals    map[uuid.UUID]aGoal
	accounts map[string]string // of people
	rows     []tableRow
}

// Moments are few, so that many things happen at one, and at the end of a window.
func aMoment(rng *rand.Rand) time.Time { return day0.Add(time.Duration(rng.IntN(60)) * time.Hour) }

func aWorld(rng *rand.Rand, name string) *world {
	w := &world{goals: map[uuid.UUID]aGoal{}, accounts: map[string]string{}}
	offset := int64(0)
	add := func(table string, r row) {
		for range 1 + rng.IntN(2) { // copies
			c := row{"ingested_at": day0, "kafka_offset": offset}
			for k, v := range r {
				c[k] = v
			}
			w.rows = append(w.rows, tableRow{table, c})
			offset++
		}
	}
	people := []string{name + "u0", name + "u1", name + "u2", name + "u3", name + "u4", name + "u5", name + "u6"}
	goals := []aGoal{{"purchase", 5 * time.Hour, "price"}, {"purchase", 20 * time.Hour, ""}, {"signup", 10 * time.Hour, "price"}, {}}
	for r := range goals {
		run, goal, campaign := id("run", name, r), goals[r], name+[]string{"autumn", "winter"}[rng.IntN(2)]
		w.goals[run] = goal
		w.rows = append(w.rows, tableRow{"run_rows", row{"run_id": run, "campaign_id": campaign, "channel": "email", "as_of": day0, "finished_at": day0.Add(60 * time.Hour), "goal_event": goal.event, "goal_within_ms": goal.within.Milliseconds(),
			"goal_revenue": goal.revenue, "ingested_at": day0, "kafka_offset": int64(r)}})
		for _, user := range people {
			m := &aMessage{campaign: campaign, variant: []string{"a", "b"}[rng.IntN(2)], user: user, run: run, id: id(run, user), first: map[string]time.Time{}}
			w.messages = append(w.messages, m)
			about := func(r row) row {
				r["message_id"], r["run_id"], r["campaign_id"], r["variant"], r["user_id"], r["channel"] = m.id, m.run, m.campaign, m.variant, m.user, "email"
				return r
			}
			outcomes := []string{"rendered", "accepted", "accepted", "delivered", "delivered", "bounced", "complained", "failed", "deferred"}
			if rng.IntN(8) == 0 {
				m.excluded, outcomes = true, []string{"excluded"}
			} else {
				at := aMoment(rng)
				m.first["requested"] = at
				add("message_input_rows", about(row{"requested_at": at, "attributes": "{}", "segments": "{}"}))
			}
			for i, outcome := range outcomes {
				if !m.excluded && rng.IntN(2) == 0 {
					continue
				}
				at := aMoment(rng)
				if first, ok := m.first[outcome]; !ok || at.Before(first) {
					m.first[outcome] = at
				}
				add("outcome_rows", about(row{"outcome_id": id(m.id, i), "outcome": outcome, "attempt": int32(1 + rng.IntN(2)), "occurred_at": at}))
			}
			for i := range rng.IntN(5) {
				h := aHit{id: id(m.id, "hit", i), m: m, kind: []string{"opened", "clicked", "unsubscribed"}[rng.IntN(3)], at: aMoment(rng)}
				if h.kind == "clicked" {
					h.url = fmt.Sprint("https://example.test/", rng.IntN(2))
				}
				add("engagement_rows", about(row{"engagement_id": h.id, "kind": h.kind, "url": h.url, "occurred_at": h.at}))
				for version := range uint32(2) {
					h.label = []string{"human", "human", "machine", "unknown"}[rng.IntN(4)]
					add("engagement_label_rows", row{"classifier_version": version + 1, "run_id": run, "message_id": m.id, "engagement_id": h.id, "kind": h.kind, "label": h.label, "occurred_at": h.at})
				}
				w.hits = append(w.hits, h)
			}
		}
	}
	for i := range 60 {
		w.event(rng, name, i, people[rng.IntN(len(people))], add)
	}
	// Of some there is no profile, and one was deleted.
	for i, account := range []string{"acme", "acme", "zeta", "", "acme"} {
		profile := row{"user_id": people[i], "revision": int64(1), "account_id": account, "deleted": i == 4, "attr_string": map[string]string{}}
		add("profile_rows", profile)
		if i < 4 {
			w.accounts[people[i]] = account
		}
	}
	return w
}

func (w *world) event(rng *rand.Rand, name string, i int, user string, add func(string, row)) {
	e := anEvent{id: fmt.Sprint(name, "e", i), user: user, name: []string{"view", "cart", "purchase", "signup"}[rng.IntN(4)], at: aMoment(rng)}
	r := row{"event_id": e.id, "user_id": e.user, "name": e.name, "occurred_at": e.at, "prop_float": map[string]float64{"": 99}, "prop_int": map[string]int64{}}
	if i >= 40 { // some weeks later
		e.at = e.at.AddDate(0, 0, 7*(1+rng.IntN(3)))
		r["occurred_at"] = e.at
	}
	price := float64(rng.IntN(100)) / 4
	switch rng.IntN(3) {
	case 0:
		e.price, r["prop_float"] = &price, map[string]float64{"": 99, "price": price}
	case 1:
		price = float64(int(price))
		e.price, r["prop_int"] = &price, map[string]int64{"price": int64(price)}
	}
	w.events = append(w.events, e)
	add("event_rows", r)
}

func (m *aMessage) hits(w *world, kind, label string) (at []time.Time) {
	for _, h := range w.hits {
		if h.m == m && h.kind == kind && (label == "" || h.label == label) {
			at = append(at, h.at)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

func (m *aMessage) group() string {
	return strings.Join([]string{m.campaign, m.run.String(), m.variant, "email"}, "|")
}

type touch struct {
	m    *aMessage
	e    anEvent
	sent time.Time
}

func (w *world) touches() (touches []touch) {
	for _, m := range w.messages {
		sent, ok := m.accepted()
		goal := w.goals[m.run]
		if !ok || goal.event == "" {
			continue
		}
		for _, e := range w.events {
			if e.user == m.user && e.name == goal.event && !e.at.Before(sent) && e.at.Sub(sent) <= goal.within {
				touches = append(touches, touch{m, e, sent})
			}
		}
	}
	return touches
}

func lines(m map[string][]uint64) (lines []string) {
	for k, v := range m {
		lines = append(lines, k+"|"+strings.Trim(strings.ReplaceAll(fmt.Sprint(v), " ", "|"), "[]"))
	}
	slices.Sort(lines)
	return lines
}

func (w *world) funnel() []string {
	groups := map[string][]uint64{}
	for _, m := range w.messages {
		if m.excluded {
			continue
		}
		has := func(name string) bool { _, ok := m.first[name]; return ok }
		_, accepted := m.accepted()
		converted := slices.ContainsFunc(w.touches(), func(t touch) bool { return t.m == m })
		counts := groups[m.group()]
		if counts == nil {
			counts = make([]uint64, 14)
			groups[m.group()] = counts
		}
		for i, yes := range []bool{has("requested"), has("rendered"), accepted, has("delivered"), len(m.hits(w, "opened", "human")) > 0, len(m.hits(w, "clicked", "human")) > 0, converted,
			len(m.hits(w, "unsubscribed", "")) > 0, has("bounced"), has("complained"), len(m.hits(w, "opened", "machine")) > 0, len(m.hits(w, "clicked", "machine")) > 0,
			len(m.hits(w, "opened", "unknown")) > 0, len(m.hits(w, "clicked", "unknown")) > 0} {
			if yes {
				counts[i]++
			}
		}
	}
	return lines(groups)
}

const funnelLines = `concatWithSeparator('|', campaign_id, toString(run_id), variant, channel, requested, rendered, accepted, delivered, opened, clicked, converted, unsubscribed,
bounced, complained, opened_machine, clicked_machine, opened_unknown, clicked_unknown) FROM funnel`

func (w *world) conversions() (all []string) {
	touches := w.touches()
	for _, t := range touches {
		last := true
		for _, o := range touches {
			if o.e.id == t.e.id && o.e.user == t.e.user && cmp.Or(o.sent.Compare(t.sent), laterUUID(o.m.id, t.m.id)) > 0 {
				last = false
			}
		}
		revenue := "NULL"
		if w.goals[t.m.run].revenue == "price" && t.e.price != nil {
			revenue = fmt.Sprint(*t.e.price)
		}
		all = append(all, fmt.Sprintf("%s|%s|%s|%d|%s|%d|%s|%v", t.m.group(), t.m.id, t.m.user, t.sent.UnixMicro(), t.e.id, t.e.at.UnixMicro(), revenue, last))
	}
	slices.Sort(all)
	return all
}

// laterUUID compares as ClickHouse does: by the two halves as numbers.
func laterUUID(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }

const conversionLines = `concatWithSeparator('|', campaign_id, toString(run_id), variant, channel, toString(message_id), user_id, toUnixTimestamp64Micro(sent_at), event_id,
toUnixTimestamp64Micro(occurred_at), ifNull(toString(revenue), 'NULL'), is_last) FROM conversions`

func (w *world) links() []string {
	groups := map[string][]uint64{}
	seen := map[string]bool{}
	for _, h := range w.hits {
		if h.kind != "clicked" {
			continue
		}
		key := h.m.group() + "|" + h.url
		counts := groups[key]
		if counts == nil {
			counts = make([]uint64, 4)
			groups[key] = counts
		}
		counts[map[string]int{"human": 1, "machine": 2, "unknown": 3}[h.label]]++
		if first := key + h.m.id.String(); h.label == "human" && !seen[first] {
			seen[first] = true
			counts[0]++
		}
	}
	return lines(groups)
}

const linkLines = `concatWithSeparator('|', campaign_id, toString(run_id), variant, channel, url, messages, clicks, clicks_machine, clicks_unknown) FROM links`

func (w *world) timeToOpen() (all []string) {
	taken := map[string][]int64{}
	for _, m := range w.messages {
		sent, ok := m.accepted()
		if opens := m.hits(w, "opened", "human"); ok && len(opens) > 0 {
			taken[m.group()] = append(taken[m.group()], max(0, opens[0].Sub(sent).Microseconds()))
		}
	}
	for k, v := range taken {
		slices.Sort(v)
		within := func(d time.Duration) (n int) {
			for _, t := range v {
				if t <= d.Microseconds() {
					n++
				}
			}
			return n
		}
		all = append(all, fmt.Sprintf("%s|%d|%v|%v|%d|%d|%d", k, len(v), float64(v[(len(v)-1)/2])/1e6, float64(v[len(v)*9/10])/1e6, within(time.Hour), within(24*time.Hour), within(168*time.Hour)))
	}
	slices.Sort(all)
	return all
}

const openLines = `concatWithSeparator('|', campaign_id, toString(run_id), variant, channel, opened, toString(seconds_p50), toString(seconds_p90), within_1h, within_24h, within_7d) FROM time_to_open`

func (w *world) daily() []string {
	groups := map[string][]uint64{}
	count := func(m *aMessage, column int, at time.Time) {
		key := at.Format(time.DateOnly) + "|" + m.campaign
		if groups[key] == nil {
			groups[key] = make([]uint64, 11)
		}
		groups[key][column]++
	}
	for _, m := range w.messages {
		if m.excluded {
			continue
		}
		for column, name := range map[int]string{0: "requested", 2: "delivered", 7: "bounced", 8: "complained"} {
			if at, ok := m.first[name]; ok {
				count(m, column, at)
			}
		}
		if at, ok := m.accepted(); ok {
			count(m, 1, at)
		}
		for column, hits := range map[int][]time.Time{3: m.hits(w, "opened", "human"), 4: m.hits(w, "clicked", "human"), 6: m.hits(w, "unsubscribed", ""),
			9: m.hits(w, "opened", "machine"), 10: m.hits(w, "clicked", "machine")} {
			if len(hits) > 0 {
				count(m, column, hits[0])
			}
		}
		var goals []time.Time
		for _, t := range w.touches() {
			if t.m == m {
				goals = append(goals, t.e.at)
			}
		}
		if len(goals) > 0 {
			count(m, 5, slices.MinFunc(goals, time.Time.Compare))
		}
	}
	return lines(groups)
}

const dailyLines = `concatWithSeparator('|', toString(day), campaign_id, requested, accepted, delivered, opened, clicked, converted, unsubscribed, bounced, complained, opened_machine,
clicked_machine) FROM campaign_daily`

// did is something that a person did, or a message that a provider took.
type did struct {
	user, what string
	at         time.Time
}

func (w *world) activity() (all []did) {
	for _, e := range w.events {
		all = append(all, did{e.user, "event", e.at})
	}
	for _, h := range w.hits {
		if h.label == "human" && h.kind != "unsubscribed" {
			all = append(all, did{h.m.user, h.kind, h.at})
		}
	}
	return all
}

func (w *world) sent() (all []did) {
	for _, m := range w.messages {
		if at, ok := m.accepted(); ok {
			all = append(all, did{m.user, "accepted", at})
		}
	}
	return all
}

func (w *world) cohorts() (all []string) {
	first := map[string]time.Time{}
	for _, m := range w.sent() {
		if at, ok := first[m.user]; !ok || m.at.Before(at) {
			first[m.user] = m.at
		}
	}
	people := map[string]int{}
	monday := func(user string) string {
		at := first[user]
		return at.AddDate(0, 0, -(int(at.Weekday())+6)%7).Format(time.DateOnly)
	}
	for user := range first {
		people[monday(user)]++
	}
	active := map[string]map[string]bool{}
	for _, d := range w.activity() {
		if since, ok := first[d.user]; ok && !d.at.Before(since) {
			key := fmt.Sprintf("%s|%d|%d", monday(d.user), d.at.Sub(since)/(7*24*time.Hour), people[monday(d.user)])
			if active[key] == nil {
				active[key] = map[string]bool{}
			}
			active[key][d.user] = true
		}
	}
	for key, who := range active {
		all = append(all, fmt.Sprintf("%s|%d", key, len(who)))
	}
	return all
}

const cohortLines = `concatWithSeparator('|', toString(cohort_week), week, cohort_people, active_people) FROM cohorts`

func (w *world) accountActivity() []string {
	groups, seen := map[string][]uint64{}, map[string]bool{}
	for _, d := range append(w.activity(), w.sent()...) {
		key := w.accounts[d.user] + "|" + d.at.Format(time.DateOnly)
		if groups[key] == nil {
			groups[key] = make([]uint64, 5)
		}
		if who := key + d.user; d.what != "accepted" && !seen[who] {
			seen[who] = true
			groups[key][0]++
		}
		groups[key][map[string]int{"event": 1, "accepted": 2, "opened": 3, "clicked": 4}[d.what]]++
	}
	return lines(groups)
}

const accountLines = `concatWithSeparator('|', account_id, toString(day), people, events, accepted, opens, clicks) FROM account_activity`

// thing is what may reach a step of a funnel.
type thing struct {
	at   int64
	id   string
	name string
}

// reached is how many of the steps were gone in order, at best.
func reached(things []thing, steps []string, within time.Duration) (most int) {
	slices.SortFunc(things, func(a, b thing) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.id, b.id), cmp.Compare(a.name, b.name))
	})
	for first := range things {
		if things[first].name != steps[0] {
			continue
		}
		used, now, n := map[int]bool{first: true}, things[first].at, 1
		for ; n < len(steps); n++ {
			next := -1
			for i, t := range things {
				if t.name == steps[n] && t.at >= now && t.at-things[first].at <= within.Microseconds() && !used[i] {
					next = i
					break
				}
			}
			if next < 0 {
				break
			}
			used[next], now = true, things[next].at
		}
		most = max(most, n)
	}
	return most
}

var stepsOfMessages = []string{"requested", "accepted", "delivered", "opened", "clicked"}

func (w *world) messageFunnel(steps []string, within time.Duration) []string {
	wanted, events := make([]string, len(steps)), false
	for i, s := range steps {
		events = events || !slices.Contains(stepsOfMessages, s)
		wanted[i] = fmt.Sprint(events, s)
	}
	groups := map[string][]uint64{}
	for _, m := range w.messages {
		if m.excluded {
			continue
		}
		var things []thing
		add := func(isEvent bool, at time.Time, id, name string) {
			things = append(things, thing{at.UnixMicro(), id, fmt.Sprint(isEvent, name)})
		}
		for _, name := range []string{"requested", "delivered"} {
			if at, ok := m.first[name]; ok {
				add(false, at, "", name)
			}
		}
		if at, ok := m.accepted(); ok {
			add(false, at, "", "accepted")
		}
		for _, h := range w.hits {
			if h.m == m && h.label == "human" {
				add(false, h.at, h.id.String(), h.kind)
			}
		}
		for _, e := range w.events {
			if e.user == m.user {
				add(true, e.at, e.id, e.name)
			}
		}
		n := reached(things, wanted, within)
		for i, s := range steps {
			key := fmt.Sprintf("%s|%d|%s", m.group(), i+1, s)
			if groups[key] == nil {
				groups[key] = []uint64{0}
			}
			if n > i {
				groups[key][0]++
			}
		}
	}
	return lines(groups)
}

func (w *world) eventFunnel(steps []string, within time.Duration) (all []string) {
	things := map[string][]thing{}
	for _, e := range w.events {
		if slices.Contains(steps, e.name) {
			things[e.user] = append(things[e.user], thing{e.at.UnixMicro(), e.id, e.name})
		}
	}
	counts := make([]int, len(steps))
	for _, t := range things {
		for i := range reached(t, steps, within) {
			counts[i]++
		}
	}
	for i, s := range steps {
		all = append(all, fmt.Sprintf("%d|%s|%d", i+1, s, counts[i]))
	}
	return all
}

func TestWhatAnalystsReadIsWhatTheRecordsSay(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	insert(t, c, []tableRow{{"classifier_rows", row{"version": uint32(1), "put_at": day0}}, {"classifier_rows", row{"version": uint32(2), "put_at": day0.Add(time.Hour)}}})
	var all world
	all.goals, all.accounts = map[uuid.UUID]aGoal{}, map[string]string{}
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 5))
		w := aWorld(rng, fmt.Sprint("w", seed))
		rng.Shuffle(len(w.rows), func(i, j int) { w.rows[i], w.rows[j] = w.rows[j], w.rows[i] })
		slices.SortStableFunc(w.rows, func(a, b tableRow) int { return cmp.Compare(a.table, b.table) })
		insert(t, c, w.rows)
		all.messages, all.hits, all.events = append(all.messages, w.messages...), append(all.hits, w.hits...), append(all.events, w.events...)
		maps.Copy(all.goals, w.goals)
		maps.Copy(all.accounts, w.accounts)
	}
	check := func(when string) {
		t.Helper()
		same := func(what, query string, want []string, args ...any) {
			t.Helper()
			got := one[[]string](t, c, "SELECT arraySort(groupArray(line)) FROM (SELECT "+query+")", args...)
			slices.Sort(want)
			if len(want) < 3 || !slices.Equal(got, want) {
				t.Errorf("%s, %s: %s", when, what, firstDifference(want, got))
			}
		}
		named := func(lines string) string { return strings.Replace(lines, ") FROM", ") AS line FROM", 1) }
		same("funnel", named(funnelLines), all.funnel())
		if when != "counted" && when != "with late goals" {
			return
		}
		same("conversions", named(conversionLines), all.conversions())
		same("links", named(linkLines), all.links())
		same("time_to_open", named(openLines), all.timeToOpen())
		same("campaign_daily", named(dailyLines), all.daily())
		same("cohorts", named(cohortLines), all.cohorts())
		same("account_activity", named(accountLines), all.accountActivity())
		for _, steps := range [][]string{{"delivered", "clicked", "cart", "purchase"}, {"opened", "clicked", "clicked"}, {"accepted", "purchase", "purchase", "view"}, {"opened", "opened", "opened"}} {
			same(fmt.Sprint("message_funnel of ", steps), "concatWithSeparator('|', campaign_id, toString(run_id), variant, channel, position, step, messages) AS line FROM message_funnel(steps = {steps:Array(String)}, within_ms = {within:Int64}, campaign = '')",
				all.messageFunnel(steps, 12*time.Hour), ch.Named("steps", steps), ch.Named("within", (12*time.Hour).Milliseconds()))
		}
		for _, steps := range [][]string{{"view", "cart", "purchase"}, {"purchase", "purchase", "purchase"}} {
			same(fmt.Sprint("event_funnel of ", steps), "concatWithSeparator('|', position, step, people) AS line FROM event_funnel(steps = {steps:Array(String)}, within_ms = {within:Int64})",
				all.eventFunnel(steps, 12*time.Hour), ch.Named("steps", steps), ch.Named("within", (12*time.Hour).Milliseconds()))
		}
	}
	check("counted")

	// Kept, the funnel is the same.
	complete := func(until time.Time) {
		t.Helper()
		insert(t, c, []tableRow{{"sink_progress_rows", row{"topic": "t", "complete_until": until}}})
	}
	keep := func() {
		t.Helper()
		for _, statement := range []string{"SYSTEM REFRESH VIEW funnel_rows_from_messages", "SYSTEM WAIT VIEW funnel_rows_from_messages"} {
			if err := c.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	stale := func() uint64 { return one[uint64](t, c, "SELECT count() FROM funnel_stale") }
	if n := stale(); n != 12 {
		t.Fatalf("%d of 12 runs are to be counted", n)
	}
	complete(day0.Add(time.Hour))
	keep()
	if n, kept := stale(), one[uint64](t, c, "SELECT count() FROM funnel_kept"); n != 0 || kept != 13 {
		t.Fatalf("%d runs are not kept, %d rows are", n, kept)
	}
	check("kept")
	// One thing changes of a run, late: that run is counted again, the others are not.
	late := all.messages[0]
	for _, m := range all.messages {
		if !m.excluded {
			late = m
		}
	}
	hit := aHit{id: id("late"), m: late, kind: "opened", label: "human", at: day0}
	all.hits = append(all.hits, hit)
	later := day0.Add(2 * time.Hour)
	insert(t, c, []tableRow{
		{"engagement_rows", row{"engagement_id": hit.id, "message_id": late.id, "run_id": late.run, "campaign_id": late.campaign, "variant": late.variant, "user_id": late.user,
			"channel": "email", "kind": "opened", "occurred_at": hit.at, "ingested_at": later}},
		{"engagement_label_rows", row{"classifier_version": uint32(2), "engagement_id": hit.id, "message_id": late.id, "run_id": late.run, "kind": "opened", "label": "human", "occurred_at": hit.at, "ingested_at": later}}})
	if n := stale(); n != 1 {
		t.Errorf("%d runs changed, not one", n)
	}
	check("with a late open")
	// A late goal event, which is of no run.
	rng := rand.New(rand.NewPCG(9, 9))
	var goals []tableRow
	for i := range 20 {
		all.event(rng, "late", i, late.user, func(table string, r row) {
			r["ingested_at"] = later
			goals = append(goals, tableRow{table, r})
		})
	}
	insert(t, c, goals)
	check("with late goals")
	complete(later.Add(time.Hour))
	keep()
	if n := stale(); n != 0 {
		t.Errorf("%d runs are not kept", n)
	}
	check("kept again")
	if got := one[time.Time](t, c, "SELECT max(complete_until) FROM funnel"); !got.Equal(later.Add(time.Hour)) {
		t.Errorf("complete until %s", got)
	}
	// Long after its run had ended a message turns out to have been delivered, and then its goal is reached.
	like := all.messages[slices.IndexFunc(all.messages, func(m *aMessage) bool { return all.goals[m.run].event != "" })]
	at := day0.AddDate(0, 0, 10)
	m, goal := &aMessage{campaign: like.campaign, variant: like.variant, user: "at last", run: like.run, id: id("at last"), first: map[string]time.Time{"delivered": at}}, all.goals[like.run]
	all.messages = append(all.messages, m)
	insert(t, c, []tableRow{{"outcome_rows", row{"outcome_id": id(m.id, "delivered"), "message_id": m.id, "run_id": m.run, "campaign_id": m.campaign, "variant": m.variant, "user_id": m.user,
		"channel": "email", "outcome": "delivered", "attempt": int32(1), "occurred_at": at, "ingested_at": at}}})
	complete(at.Add(10 * time.Minute))
	keep()
	reached := anEvent{id: "at last", user: m.user, name: goal.event, at: at.Add(goal.within)}
	all.events = append(all.events, reached)
	insert(t, c, []tableRow{{"event_rows", row{"event_id": reached.id, "user_id": reached.user, "name": reached.name, "occurred_at": reached.at, "ingested_at": reached.at}}})
	check("with a late delivery and its goal")
	// Another version of the classifier is put in force: nothing that was kept holds.
	insert(t, c, []tableRow{{"classifier_rows", row{"version": uint32(3), "put_at": day0.Add(2 * time.Hour)}}})
	for i := range all.hits {
		all.hits[i].label = ""
	}
	got := one[uint64](t, c, "SELECT sum(opened + clicked + opened_machine + clicked_machine + opened_unknown + clicked_unknown) FROM funnel")
	if got != 0 {
		t.Errorf("%d opens and clicks by a classifier that has judged nothing", got)
	}
}
