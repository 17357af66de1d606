package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/profile"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/resolve"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
	"github.com/hikyaku/hikyaku/services/internal/admit"
	"github.com/hikyaku/hikyaku/services/internal/audience"
)

// rememberMessages is how long the id of a message is known, so that a repeat
// is recognised.
const rememberMessages = 90 * 24 * time.Hour

// rememberImports is how many imports of one segment a person's state keeps, the one
// in force among them: an undo brings back what an older list said, so those that
// came last must still be there.
const rememberImports = 16

// rememberAtMost bounds them: a record that grew beyond what Kafka takes could
// never be written again. Messages that wait are never forgotten.
const rememberAtMost = 2000

// rateWindow is the span over which the rate of endings is measured.
const rateWindow = 60

// personLoop handles everything about people, in one transactional session: no
// two records of one person are ever handled at once, anywhere.
type personLoop struct {
	cluster *kafka.Cluster
	store   *state.Store
	defs    *definitions.Store
	view    *runs.View
	caught  func(ctx context.Context) error // the view has read the topic runs to its present end
	driver  *schedule.Driver
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	// now is the time per partition: the maximum of the ticks committed. Time
	// enters here and nowhere else.
	now       map[int32]time.Time
	counters  map[counterKey]*event.RunCounters // as committed, of runs that have not ended
	driven    map[identity.ID]*event.Run        // latest state of runs that this instance drives
	rates     map[int32]*rate
	schedules map[string]*scheduledAt // by campaign, decoded once per version
	segments  map[string]*segmentLog  // by segment
	batch     *batch                  // of the transaction in flight
	scratch   []byte                  // for a record that is only measured

	mu    sync.Mutex
	owned []int32 // for the ticker, which runs beside the loop
}

type scheduledAt struct {
	version int64
	at      definition.At
	since   int64 // of one at a segment: the place of the version since which it has been
	settled int   // likewise: how many uploads, from the first, need not be looked at again
}

// rate counts endings per second of the last minute on one partition.
type rate struct {
	perSecond [rateWindow]int64
	at        int64 // unix second of the latest slot
	since     int64 // first second measured
}

func newPersonLoop(c *kafka.Cluster, cfg Config, log *slog.Logger, m *metrics) *personLoop {
	return &personLoop{cluster: c, cfg: cfg, log: log, metrics: m,
		now: map[int32]time.Time{}, counters: map[counterKey]*event.RunCounters{}, driven: map[identity.ID]*event.Run{},
		rates: map[int32]*rate{}, schedules: map[string]*scheduledAt{}, segments: map[string]*segmentLog{}}
}

// decode reads a value of one of our own changelogs. What cannot be read is one
// person's: what is about her is parked, because no decision may be made without
// her consent or the memory of what she was sent, and everybody else goes on.
func (l *personLoop) decode(name topic.Name, value []byte, into event.Record) error {
	err := l.cluster.Decode(&kgo.Record{Topic: name.In(l.cluster.Namespace()), Value: value}, into)
	if err != nil {
		return fmt.Errorf("what is kept of the person in %s cannot be read: %w", name, err)
	}
	return nil
}

// Transform decides over one batch.
func (l *personLoop) Transform(ctx context.Context, records []*kgo.Record) ([]*kgo.Record, error) {
	b := l.newBatch()
	l.batch = b
	for _, r := range inOrder(l.cluster.NameOf, records) {
		if r.Timestamp.After(b.produced) {
			b.produced = r.Timestamp
		}
		err := l.handle(ctx, b, r)
		if err == nil {
			continue
		}
		if fault.ClassOf(err) != fault.ClassPoison {
			return nil, fmt.Errorf("handling %s/%d at offset %d: %w", r.Topic, r.Partition, r.Offset, err)
		}
		// I2: parked with its reason, in the transaction that passes it.
		b.out = append(b.out, l.cluster.Park(r, err)...)
		l.metrics.parked.Inc()
	}
	return b.flush(b.latest())
}

func (l *personLoop) handle(ctx context.Context, b *batch, r *kgo.Record) error {
	switch l.cluster.NameOf(r.Topic) {
	case topic.ProfileUpdates:
		var patch event.ProfilePatch
		if err := l.cluster.Decode(r, &patch); err != nil {
			return err
		}
		if err := l.atHome(patch.UserID, r); err != nil {
			return err
		}
		return l.patch(b, &patch, r.Partition)
	case topic.SegmentMembers:
		var m event.SegmentMember
		if err := l.cluster.Decode(r, &m); err != nil {
			return err
		}
		if err := l.atHome(m.UserID, r); err != nil {
			return err
		}
		return l.join(b, &m, r.Partition)
	case topic.Outcomes:
		var o event.Outcome
		if err := l.cluster.Decode(r, &o); err != nil {
			return err
		}
		if err := l.atHome(o.UserID, r); err != nil {
			return err
		}
		return l.settle(ctx, b, &o, r.Partition)
	case topic.RunRequests:
		var q event.RunRequest
		if err := l.cluster.Decode(r, &q); err != nil {
			return err
		}
		if err := l.atHome(q.CampaignID, r); err != nil {
			return err
		}
		return l.request(ctx, b, &q, r.Partition)
	case topic.Ticks:
		var t event.Tick
		if err := l.cluster.Decode(r, &t); err != nil {
			return err
		}
		return l.tick(ctx, b, &t, r.Partition)
	case topic.Candidates:
		var c event.Candidate
		if err := l.cluster.Decode(r, &c); err != nil {
			return err
		}
		if err := l.atHome(c.UserID, r); err != nil {
			return err
		}
		return l.admit(ctx, b, &c, kafka.Attempt(r), r.Partition)
	}
	return fault.Fatal(fmt.Errorf("the person loop does not read %s", r.Topic))
}

// atHome refuses a record about somebody who lives on another partition: its
// writer had another partitioner, and what came of it would be kept where nobody
// looks for it (I6), or written by a second driver.
func (l *personLoop) atHome(id string, r *kgo.Record) error {
	if home := topic.Partition(id, l.cluster.P()); id == "" || home != r.Partition {
		return fault.Poison(fmt.Errorf("it lies on partition %d and belongs on %d", r.Partition, home))
	}
	return nil
}

func (l *personLoop) patch(b *batch, patch *event.ProfilePatch, partition int32) error {
	c, err := b.profile(patch.UserID, partition)
	if err != nil {
		return err
	}
	if patch.Erases {
		return l.erase(b, c, patch.UserID, partition)
	}
	if patch.Undoes != "" {
		return l.undo(b, c, patch, partition)
	}
	next := cloneProfile(c.rec)
	change := profile.Apply(next, patch)
	var before *cell[event.PersonState]
	var replaced *event.PersonState
	if change.Matters() {
		if before, err = b.state(patch.UserID, kindReplaced, partition); err != nil {
			return err
		}
		if replaced = cloneReplaced(before.rec); !profile.Remember(next, replaced, patch, &change) {
			replaced = nil
		}
	}
	if change.Changed {
		l.scratch = next.AppendAvro(l.scratch[:0])
		if n := len(l.scratch); n > profile.MaxBytes {
			return fault.Poison(errTooLarge(n))
		}
		c.rec, c.dirty = next, true
	}
	if replaced != nil {
		before.rec, before.dirty = replaced, true
	}
	return nil
}

// undo takes back what an import changed of a person.
func (l *personLoop) undo(b *batch, c *cell[event.Profile], patch *event.ProfilePatch, partition int32) error {
	before, err := b.state(patch.UserID, kindReplaced, partition)
	if err != nil {
		return err
	}
	next, replaced := cloneProfile(c.rec), cloneReplaced(before.rec)
	undone := profile.Undo(next, replaced, patch.Undoes)
	if undone.Forgotten {
		l.metrics.undoForgotten.Inc()
	}
	if !undone.Changed {
		return nil
	}
	c.rec, c.dirty = next, true
	before.dirty = before.dirty || !profile.Empty(before.rec)
	before.rec = replaced
	return nil
}

func (l *personLoop) join(b *batch, m *event.SegmentMember, partition int32) error {
	c, err := b.state(m.UserID, kindMemberships, partition)
	if err != nil {
		return err
	}
	member := event.Membership{SegmentID: m.SegmentID, ImportID: m.ImportID, Attributes: m.Attributes}
	list := slices.Clone(c.rec.Memberships)
	same := func(x event.Membership) bool { return x.SegmentID == m.SegmentID && x.ImportID == m.ImportID }
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = member // the later row of one list wins
	} else {
		list = append(list, member)
		inSegment := func(x event.Membership) bool { return x.SegmentID == m.SegmentID }
		n := 0
		for i := range list {
			if inSegment(list[i]) {
				n++
			}
		}
		if n > rememberImports {
			// Not by the order in which they came alone: lists that count for less, or
			// nothing, may be read after the one in force.
			now := l.segment(m.SegmentID).now
			kept, _ := inForce(&now, list)
			oldest := slices.IndexFunc(list, inSegment)
			if oldest == kept {
				oldest += 1 + slices.IndexFunc(list[oldest+1:], inSegment)
			}
			list = slices.Delete(list, oldest, oldest+1)
		}
	}
	before := c.rec.Memberships
	c.rec.Memberships = list
	if n := len(c.rec.AppendAvro(nil)); n > profile.MaxBytes {
		c.rec.Memberships = before
		return fault.Poison(errTooLarge(n))
	}
	c.dirty = true
	return nil
}

// inForce returns which of a person's memberships says whether she is in the segment,
// -1 if none does, and what it says.
func inForce(pin *event.SegmentPin, list []event.Membership) (at int, member bool) {
	at = -1
	_, member = audience.InForce(pin, func(id identity.ID) bool {
		i := slices.IndexFunc(list, func(m event.Membership) bool { return m.SegmentID == pin.SegmentID && m.ImportID == id })
		if i >= 0 {
			at = i
		}
		return i >= 0
	})
	return at, member
}

// settle moves a message to the class that its outcomes say.
func (l *personLoop) settle(ctx context.Context, b *batch, o *event.Outcome, partition int32) error {
	if !ledger.Ends(o.Outcome) {
		return nil // every message is rendered: reading who was is half of all reading
	}
	c, i, err := l.message(b, o.UserID, o.MessageID, partition)
	if err != nil {
		return err
	}
	ofCandidate := o.Reason == kafka.ReasonCandidate
	switch {
	case i < 0 && ofCandidate && o.Outcome == ledger.Parked:
		if i, err = l.remember(ctx, b, c, o, partition); err != nil || i < 0 {
			return err
		}
	case i < 0:
		return nil // a test message, or one forgotten long ago
	case ofCandidate && c.rec.Messages[i].Ending != ledger.Parked && c.rec.Messages[i].Ending != ledger.Replayed:
		return nil // it was admitted, by another copy of the candidate or by its replay
	}
	return l.apply(b, c, &c.rec.Messages[i], o.Outcome, o.Attempt, partition)
}

// remember makes a message of a candidate that was parked: whoever was to be sent
// to is counted as requested and parked, or her run would wait for her for ever. It
// returns -1 when there is no such run.
func (l *personLoop) remember(ctx context.Context, b *batch, c *cell[event.PersonState], o *event.Outcome, partition int32) (int, error) {
	campaign, run, err := l.runOf(ctx, o.RunID)
	if err != nil {
		if fault.ClassOf(err) == fault.ClassPoison {
			return -1, nil
		}
		return -1, err
	}
	now := b.timeOf(partition, &run)
	m := event.MessageState{MessageID: o.MessageID, RunID: o.RunID, CampaignID: campaign, At: now}
	ledger.Admit(&m)
	books := b.count(o.RunID, campaign, partition)
	books.Requested++
	books.Waiting++
	c.rec.Messages = append(recent(c.rec.Messages, now), m)
	return len(c.rec.Messages) - 1, nil
}

// apply takes one outcome of a message into account.
func (l *personLoop) apply(b *batch, c *cell[event.PersonState], m *event.MessageState, outcome string, number, partition int32) error {
	attempt, ending := m.Attempt, m.Ending
	before, moved := ledger.Apply(m, outcome, number)
	if moved {
		// I9: one unit from class to class, in the transaction that remembers it.
		ledger.Move(b.count(m.RunID, m.CampaignID, partition), before, m.Class)
		if before == ledger.Waiting {
			b.ended[partition]++
		}
	}
	if moved || m.Attempt != attempt || m.Ending != ending {
		c.dirty = true
	}
	return nil
}

// admit decides over one candidate. It is the one place that drops a repeated
// message_id (I5): from here to the provider all is transactional. An attempt
// above 0 is that of a replay: the candidate was parked before it was admitted.
func (l *personLoop) admit(ctx context.Context, b *batch, q *event.Candidate, attempt, partition int32) error {
	campaign, run, err := l.runOf(ctx, q.RunID)
	if err != nil {
		return err
	}
	id := identity.Message(l.cluster.Namespace(), campaign, q.RunID.String(), q.UserID, "")
	messages, known, err := l.message(b, q.UserID, id, partition)
	if err != nil {
		return err
	}
	books := b.count(q.RunID, campaign, partition)
	m := event.MessageState{MessageID: id, RunID: q.RunID, CampaignID: campaign}
	switch {
	case known >= 0 && attempt > 0:
		// Counted since it was parked. What says that it was replayed may come later.
		was := &messages.rec.Messages[known]
		if was.Ending == ledger.Parked || was.Ending == ledger.Replayed {
			if err := l.apply(b, messages, was, ledger.Replayed, attempt-1, partition); err != nil {
				return err
			}
		}
		m = *was
		if !ledger.Readmit(&m, attempt) {
			return nil // I5: admitted before; and no candidate of any shard, so no repeat
		}
	case known >= 0:
		// I5: known by what it is, however often and by whatever way it comes.
		books.Repeats++
		l.metrics.admitted.WithLabelValues("repeat").Inc()
		return nil
	}
	person, err := b.profile(q.UserID, partition)
	if err != nil {
		return err
	}
	now := b.timeOf(partition, &run)
	address, consent := admit.Of(person.rec, run.Channel)
	why := admit.Decide(admit.Question{Address: address, Consent: consent, Suppressed: admit.SuppressedFor(person.rec, run.Channel, address),
		Rule: run.Consent, Cancelled: run.CancelRequested})
	if why == "" {
		err = l.requestMessage(b, id, q, campaign, &run, person.rec, address, now, attempt, partition)
	} else {
		err = b.emit(topic.Outcomes, q.UserID, &event.Outcome{OutcomeID: identity.Outcome(id, ledger.Excluded, attempt, ""), MessageID: id, RunID: q.RunID, CampaignID: campaign,
			Lane: run.Lane, UserID: q.UserID, Channel: run.Channel, Outcome: ledger.Excluded, Attempt: attempt, Reason: string(why), OccurredAt: now})
	}
	if err != nil {
		return fmt.Errorf("admitting message %s: %w", id, err)
	}
	// From here nothing fails: a candidate that is parked leaves no trace in the books.
	if known < 0 {
		books.Requested++
		books.Waiting++
		ledger.Admit(&m)
	}
	if why == "" {
		l.metrics.admitted.WithLabelValues("requested").Inc()
	} else {
		l.metrics.admitted.WithLabelValues(string(why)).Inc()
		books.Requested--
		ledger.Move(books, ledger.Waiting, "")
		ledger.CountExclusion(books, string(why))
		ledger.Exclude(&m)
	}
	if known < 0 {
		m.At = now
		messages.rec.Messages = append(recent(messages.rec.Messages, now), m)
	} else {
		messages.rec.Messages[known] = m
	}
	messages.dirty = true
	return nil
}

func (l *personLoop) requestMessage(b *batch, id identity.ID, q *event.Candidate, campaign string, run *event.RunState, p *event.Profile, address string, now time.Time, attempt, partition int32) error {
	req := &event.MessageRequest{MessageID: id, RunID: q.RunID, CampaignID: campaign, CampaignVersion: run.CampaignVersion, TemplateID: run.TemplateID, TemplateVersion: run.TemplateVersion,
		Lane: run.Lane, UserID: q.UserID, Channel: run.Channel, Address: address, Policy: run.Policy, RequestedAt: now, ExpiresAt: run.ExpiresAt,
		Locale: p.Locale, TimeZone: p.TimeZone, KeyID: l.cfg.TrackingKeyID}
	req.Attributes = make([]event.NamedValue, 0, len(p.Attributes))
	for i := range p.Attributes {
		if !p.Attributes[i].Value.IsNull() {
			req.Attributes = append(req.Attributes, event.NamedValue{Name: p.Attributes[i].Name, Value: p.Attributes[i].Value})
		}
	}
	if len(run.Segments) > 0 {
		memberships, err := b.state(q.UserID, kindMemberships, partition)
		if err != nil {
			return err
		}
		for i := range run.Segments {
			if m, member := inForce(&run.Segments[i], memberships.rec.Memberships); member {
				req.Segments = append(req.Segments, event.SegmentValues{SegmentID: memberships.rec.Memberships[m].SegmentID, Attributes: memberships.rec.Memberships[m].Attributes})
			}
		}
	}
	if err := b.emit(topic.MessageRequestsBulk, q.UserID, req); err != nil {
		return err
	}
	kafka.WithAttempt(b.out[len(b.out)-1], attempt)
	return nil
}

// recent drops what waits for nothing and is too old to be remembered, or the
// oldest of too many.
func recent(messages []event.MessageState, now time.Time) []event.MessageState {
	messages = slices.DeleteFunc(messages, func(m event.MessageState) bool {
		return m.Class != ledger.Waiting && now.Sub(m.At) > rememberMessages
	})
	extra := len(messages) - rememberAtMost
	return slices.DeleteFunc(messages, func(m event.MessageState) bool {
		if extra <= 0 || m.Class == ledger.Waiting {
			return false
		}
		extra--
		return true
	})
}

// runOf returns a run that some driver, here or elsewhere, has written. What is
// asked for was committed after the run's state, so reading to the end finds it.
func (l *personLoop) runOf(ctx context.Context, id identity.ID) (string, event.RunState, error) {
	if campaign, s, ok := l.view.State(id); ok {
		return campaign, s, nil
	}
	if err := l.caught(ctx); err != nil {
		return "", event.RunState{}, fault.Transient(fmt.Errorf("reading the topic runs: %w", err))
	}
	campaign, s, ok := l.view.State(id)
	if !ok {
		if why := l.view.Unreadable(id); why != "" {
			return "", event.RunState{}, fault.Poison(fmt.Errorf("the state of run %s cannot be read: %s", id, why))
		}
		return "", event.RunState{}, fault.Poison(fmt.Errorf("run %s does not exist", id))
	}
	return campaign, s, nil
}

// request starts or cancels a run.
func (l *personLoop) request(ctx context.Context, b *batch, q *event.RunRequest, partition int32) error {
	now := b.time(partition)
	if q.RequestedAt.After(now) {
		now = q.RequestedAt
	}
	switch q.Action {
	case "cancel":
		if q.RunID == nil {
			return fault.Poison(errors.New("a cancel names no run"))
		}
		// The run may have been started in this very batch: nobody has read it yet.
		r, ok := b.run(*q.RunID)
		if !ok {
			if _, _, err := l.runOf(ctx, *q.RunID); err != nil {
				return err
			}
			r, _ = b.run(*q.RunID)
		}
		if r.CampaignID != q.CampaignID {
			// Its driver is another, and only a driver writes the state.
			return fault.Poison(fmt.Errorf("run %s is not of campaign %s", *q.RunID, q.CampaignID))
		}
		if runs.Ended(r.State.State) || r.State.CancelRequested {
			return nil
		}
		r.State.CancelRequested, r.State.UpdatedAt = true, now
		b.write(r.RunID, r.CampaignID, r.State)
		return nil
	case "start":
		id := identity.Run(l.cluster.Namespace(), q.CampaignID, q.RequestID.String())
		if _, known := b.run(id); known {
			return nil
		}
		// The definitions that the request means were written before it.
		if err := l.defs.CaughtUp(ctx); err != nil {
			return fault.Transient(fmt.Errorf("reading the definitions: %w", err))
		}
		l.begin(b, id, q.CampaignID, nil, q.Again, &q.RequestID, q.RequestedAt, now)
		return nil
	}
	return fault.Poison(fmt.Errorf("unknown action %q", q.Action))
}

// begin writes the first state of a run: preparing, or refused with the reason. One
// that an upload starts sees the segment as the upload left it.
func (l *personLoop) begin(b *batch, id identity.ID, campaignID string, uploaded *event.SegmentPin, again bool, requestID *identity.ID, requestedAt, now time.Time) {
	v, why := l.versions(campaignID)
	if uploaded != nil {
		for i := range v.Segments {
			if v.Segments[i].SegmentID == uploaded.SegmentID {
				v.Segments[i] = *uploaded
			}
		}
	}
	if why == "" && !again {
		for _, other := range l.runsOf(b, campaignID) {
			if r, ok := b.run(other); ok && other != id && r.State.State != runs.Refused && r.State.State != runs.Failed {
				why = fmt.Sprintf("campaign %s has run before, as run %s; start it with --again to send it once more", campaignID, other)
				break
			}
		}
	}
	if why != "" {
		b.write(id, campaignID, schedule.Refused(requestID, requestedAt, now, why))
		return
	}
	b.write(id, campaignID, schedule.New(v, requestID, requestedAt, now))
}

// runsOf returns the runs of a campaign, those of this batch included.
func (l *personLoop) runsOf(b *batch, campaignID string) []identity.ID {
	out := l.view.OfCampaign(campaignID)
	for _, m := range []map[identity.ID]*event.Run{l.driven, b.runs} {
		for id, r := range m {
			if r.CampaignID == campaignID {
				out = append(out, id)
			}
		}
	}
	return out
}

// versions pins the definitions in force, or says in words what is missing. One
// that this version of the service cannot read is missing, too: its campaign is
// refused, and nobody else stops.
func (l *personLoop) versions(campaignID string) (v schedule.Versions, missing string) {
	var err error
	campaign, ok := l.defs.Head(definition.KindCampaign, campaignID)
	if !ok {
		return v, l.notApplied(definition.KindCampaign, campaignID)
	}
	v.CampaignVersion = campaign.Number
	if v.Campaign, err = definitions.Decode[*definition.Campaign](campaign); err != nil {
		return v, err.Error()
	}
	head, ok := l.defs.Head(definition.KindAudience, v.Campaign.Audience)
	if !ok {
		return v, l.notApplied(definition.KindAudience, v.Campaign.Audience)
	}
	v.AudienceVersion = head.Number
	audience, err := definitions.Decode[*definition.Audience](head)
	if err != nil {
		return v, err.Error()
	}
	if head, ok = l.defs.Head(definition.KindTemplate, v.Campaign.Template); !ok {
		return v, l.notApplied(definition.KindTemplate, v.Campaign.Template)
	}
	template, err := definitions.Decode[*definition.Template](head)
	if err != nil {
		return v, err.Error()
	}
	v.TemplateVersion, v.Channel = head.Number, template.Channel
	if v.Segments, err = l.defs.Pins(audience.Filter.Segments()); err != nil {
		return v, err.Error()
	}
	return v, ""
}

func (l *personLoop) notApplied(kind, id string) string {
	if why := l.defs.Unreadable(kind, id, 0); why != "" {
		return fmt.Sprintf("%s %s cannot be read; apply it again (%s)", strings.ToLower(kind), id, why)
	}
	return fmt.Sprintf("there is no %s %s; apply it first", strings.ToLower(kind), id)
}

// tick moves time on, and with it the schedules and runs driven from here.
func (l *personLoop) tick(ctx context.Context, b *batch, t *event.Tick, partition int32) error {
	// Time is the maximum seen. A late or repeated tick is harmless; and after a
	// clock has jumped ahead and back, time stands still until it has caught up,
	// but runs go on.
	now := b.time(partition)
	if t.At.After(now) {
		now = t.At
		b.now[partition] = now
	}
	drives := func(campaign string) bool { return topic.Partition(campaign, l.cluster.P()) == partition }

	for _, def := range l.defs.All(definition.KindCampaign) {
		id := def.ID
		if !drives(id) {
			continue
		}
		s := l.scheduled(ctx, def)
		if s.at.Segment != "" {
			l.startUploads(ctx, b, id, s, now)
			continue
		}
		at := s.at
		due, late := schedule.Due(at, now)
		if !due {
			continue
		}
		run := identity.Run(l.cluster.Namespace(), id, at.Time.UTC().Format(time.RFC3339Nano))
		if _, known := b.run(run); known {
			continue
		}
		if late != "" {
			b.write(run, id, schedule.Refused(nil, at.Time, now, late))
		} else {
			l.begin(b, run, id, nil, false, nil, at.Time, now)
		}
	}

	for _, id := range l.view.Open(drives) {
		r, _ := b.run(id)
		if _, read, _ := l.view.State(id); runs.Ended(r.State.State) && !runs.Ended(read.State) {
			continue // the view has not read the end of it yet
		}
		step := l.driver.Tick(id, *r.State, now)
		if step.State == nil {
			continue
		}
		b.write(id, r.CampaignID, step.State)
		for shard := range step.Shards {
			rec, err := resolve.ShardRecord(l.cluster, &event.RunShard{RunID: id, CampaignID: r.CampaignID, Shard: shard, Of: step.Shards})
			if err != nil {
				return err
			}
			b.out = append(b.out, rec)
		}
		l.log.InfoContext(ctx, "run moved on", "run_id", id.String(), "campaign_id", r.CampaignID, "from", r.State.State, "to", step.State.State, "note", step.State.Note)
	}
	return nil
}

// scheduled returns when a campaign is to start, decoded once per version.
func (l *personLoop) scheduled(ctx context.Context, v definitions.Version) *scheduledAt {
	if known := l.schedules[v.ID]; known != nil && known.version == v.Number {
		return known
	}
	s := &scheduledAt{version: v.Number}
	if campaign, err := definitions.Decode[*definition.Campaign](v); err != nil {
		l.log.ErrorContext(ctx, "a campaign cannot be read and is never started", "campaign_id", v.ID, "version", v.Number, "error", err)
	} else {
		s.at, s.since = campaign.At, l.sinceWhen(v, campaign.At)
	}
	l.schedules[v.ID] = s
	return s
}

// Committed books what the batch changed. The Kafka transaction has committed;
// the store follows, with the changelog's offsets in the same store batch.
func (l *personLoop) Committed(out []*kgo.Record) {
	b := l.batch
	l.batch = nil
	if b == nil {
		return
	}
	var changes []state.Change
	for _, r := range out {
		if name := l.cluster.NameOf(r.Topic); name == topic.Profiles || name == topic.PersonState {
			changes = append(changes, state.Change{Topic: name, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
		}
	}
	if len(changes) > 0 {
		if err := l.store.Apply(changes, time.Now()); err != nil {
			// The changelog has it, the store does not: going on would decide from
			// an old state. A restart replays.
			panic(fmt.Errorf("following the changelog: %w", err))
		}
		crash.At(crash.PersonStored)
	}
	for k, c := range b.counters {
		l.counters[k] = c
	}
	maps.Copy(l.now, b.now)
	for id, r := range b.runs {
		l.driven[id] = r
	}
	l.forgetEnded()
	for partition, n := range b.ended {
		l.rateOf(partition).add(l.now[partition].Unix(), n)
	}
}

// forgetEnded drops runs from this instance's own books once the view, which
// trails them, has read the same. Before that the view would show them open, and
// they would be ended twice, or their counters would lose what the view lacks.
func (l *personLoop) forgetEnded() {
	for k, c := range l.counters {
		if _, s, ok := l.view.State(k.run); !ok || !runs.Ended(s.State) {
			continue
		}
		if read := l.view.Counters(k.run, k.partition); read != nil && runs.SameCounters(read, c) {
			delete(l.counters, k)
		}
	}
	for id, r := range l.driven {
		if _, s, ok := l.view.State(id); ok && runs.Ended(s.State) && runs.SameState(&s, r.State) {
			delete(l.driven, id)
			l.driver.Drop(id)
		}
	}
}

// Aborted drops the overlay, and with it all that the batch changed; it will be
// read again.
func (l *personLoop) Aborted() { l.batch = nil }

// Pause names the candidates that must wait: those of partitions where a run
// has as many people waiting as its share of the window. Whatever is beyond the
// provider's pace stays a candidate, so that cancel and unsubscribe act on it. A
// cancelled run holds nobody up: its candidates are told so, and wait no more.
func (l *personLoop) Pause() map[topic.Name][]int32 {
	waiting := map[int32]int64{}
	for k, c := range l.counters {
		if c.Waiting == 0 {
			continue
		}
		if _, s, _ := l.view.State(k.run); s.CancelRequested {
			continue
		}
		waiting[k.partition] = max(waiting[k.partition], c.Waiting)
	}
	var paused []int32
	for partition, n := range waiting {
		if n >= l.share(partition) {
			paused = append(paused, partition)
		}
	}
	return map[topic.Name][]int32{topic.Candidates: paused}
}

// share is a partition's part of the window: never above a minute of the
// measured rate, once a minute has been measured.
func (l *personLoop) share(partition int32) int64 {
	share := max(1, int64(l.cfg.Window)/int64(l.cluster.P()))
	r := l.rateOf(partition)
	if measured, ok := r.lastMinute(l.now[partition].Unix()); ok {
		share = min(share, max(minShare, measured))
	}
	return share
}

// minShare keeps a run going, at any rate.
const minShare = 16

func (l *personLoop) rateOf(partition int32) *rate {
	r := l.rates[partition]
	if r == nil {
		r = &rate{}
		l.rates[partition] = r
	}
	return r
}

func (r *rate) turn(now int64) {
	if now-r.at >= rateWindow {
		r.perSecond = [rateWindow]int64{}
		r.since = now // idle for the whole window: measure anew
	} else {
		for s := r.at + 1; s <= now; s++ {
			r.perSecond[s%rateWindow] = 0
		}
	}
	r.at = max(r.at, now)
}

func (r *rate) add(now, n int64) {
	r.turn(now)
	r.perSecond[r.at%rateWindow] += n
}

// lastMinute is the number of endings in the last minute, if one was measured.
func (r *rate) lastMinute(now int64) (int64, bool) {
	r.turn(now)
	if now-r.since < rateWindow {
		return 0, false
	}
	var n int64
	for _, c := range r.perSecond {
		n += c
	}
	return n, true
}
