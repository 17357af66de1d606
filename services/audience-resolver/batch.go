package resolver

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/profile"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// Kinds of person state, as in its keys: user_id/kind.
const (
	kindMemberships = "memberships"
	kindMessages    = "messages"
	kindReplaced    = "replaced"
)

// batch is the overlay over the person store and the run books through which
// one batch reads and writes: the second record of a person sees what the first
// one did, and if the transaction aborts all of it is dropped.
type batch struct {
	l        *personLoop
	profiles map[string]*cell[event.Profile]
	states   map[string]*cell[event.PersonState]
	counters map[counterKey]*event.RunCounters
	campaign map[identity.ID]string // of runs with counters
	runs     map[identity.ID]*event.Run
	out      []*kgo.Record
	now      map[int32]time.Time // the latest tick of this batch, per partition
	produced time.Time           // when its latest record was written
	ended    map[int32]int64     // messages that ended, per partition: for the window's measured rate
}

type cell[T any] struct {
	rec       *T // nil: there is none
	partition int32
	dirty     bool
}

type counterKey struct {
	run       identity.ID
	partition int32
}

func (l *personLoop) newBatch() *batch {
	return &batch{l: l, profiles: map[string]*cell[event.Profile]{}, states: map[string]*cell[event.PersonState]{},
		counters: map[counterKey]*event.RunCounters{}, campaign: map[identity.ID]string{}, runs: map[identity.ID]*event.Run{},
		now: map[int32]time.Time{}, ended: map[int32]int64{}}
}

// time is the time on a partition: the maximum of the ticks seen, zero before
// the first one since the assignment.
func (b *batch) time(partition int32) time.Time {
	if now := b.now[partition]; now.After(b.l.now[partition]) {
		return now
	}
	return b.l.now[partition]
}

// timeOf is the time of a decision: the partition's latest tick, or, before
// the first one since the assignment, the moment the run began.
func (b *batch) timeOf(partition int32, run *event.RunState) time.Time {
	if now := b.time(partition); now.After(run.AsOf) {
		return now
	}
	return run.AsOf
}

// latest is the latest time seen on any partition, for stamps that people read;
// before the first tick, when the batch was written. It is never zero, a year
// that ClickHouse does not have.
func (b *batch) latest() time.Time {
	var t time.Time
	for _, seen := range []map[int32]time.Time{b.l.now, b.now} {
		for _, now := range seen {
			if now.After(t) {
				t = now
			}
		}
	}
	if t.IsZero() {
		return b.produced
	}
	return t
}

// profile returns the cell of a person's profile.
func (b *batch) profile(userID string, partition int32) (*cell[event.Profile], error) {
	if c := b.profiles[userID]; c != nil {
		return c, nil
	}
	c := &cell[event.Profile]{partition: partition}
	value, err := b.l.store.Get(topic.Profiles, partition, []byte(userID))
	if err != nil {
		return nil, err
	}
	if value != nil {
		c.rec = new(event.Profile)
		if err := b.l.decode(topic.Profiles, value, c.rec); err != nil {
			return nil, err
		}
	}
	b.profiles[strings.Clone(userID)] = c
	return c, nil
}

// state returns the cell of one kind of a person's state; its record is never
// nil.
func (b *batch) state(userID, kind string, partition int32) (*cell[event.PersonState], error) {
	c, err := b.known(userID, kind, partition)
	if c == nil && err == nil {
		c = &cell[event.PersonState]{partition: partition, rec: &event.PersonState{UserID: strings.Clone(userID), Kind: kind}}
		b.states[userID+"/"+kind] = c
	}
	return c, err
}

// known is state, nil if there is none.
func (b *batch) known(userID, kind string, partition int32) (*cell[event.PersonState], error) {
	key := userID + "/" + kind
	if c := b.states[key]; c != nil {
		return c, nil
	}
	value, err := b.l.store.Get(topic.PersonState, partition, []byte(key))
	if err != nil || value == nil {
		return nil, err
	}
	c := &cell[event.PersonState]{partition: partition, rec: new(event.PersonState)}
	if err := b.l.decode(topic.PersonState, value, c.rec); err != nil {
		return nil, err
	}
	b.states[key] = c
	return c, nil
}

// count returns a run's counters on a partition, to be changed.
func (b *batch) count(run identity.ID, campaign string, partition int32) *event.RunCounters {
	k := counterKey{run, partition}
	if c := b.counters[k]; c != nil {
		return c
	}
	var c *event.RunCounters
	if known := b.l.counters[k]; known != nil {
		c = runs.CloneCounters(known)
	} else if c = b.l.view.Counters(run, partition); c == nil {
		// The view was read to the end when the partition was assigned, and
		// nobody else writes these: what it lacks does not exist.
		c = &event.RunCounters{Partition: partition}
	}
	b.counters[k] = c
	b.campaign[run] = campaign
	return c
}

// run returns a run's record, to be changed: this batch's, else this driver's
// latest, else the view's.
func (b *batch) run(id identity.ID) (*event.Run, bool) {
	if r := b.runs[id]; r != nil {
		return r, true
	}
	if r := b.l.driven[id]; r != nil {
		state := *r.State
		return &event.Run{RunID: id, CampaignID: r.CampaignID, State: &state}, true
	}
	campaign, state, ok := b.l.view.State(id)
	if !ok {
		return nil, false
	}
	return &event.Run{RunID: id, CampaignID: campaign, State: &state}, true
}

// write sets a run's state.
func (b *batch) write(id identity.ID, campaign string, s *event.RunState) {
	b.runs[id] = &event.Run{RunID: id, CampaignID: campaign, State: s}
}

// emit adds a record to what the batch produces.
func (b *batch) emit(name topic.Name, key string, rec event.Record) error {
	r, err := b.l.cluster.Record(name, key, rec)
	if err != nil {
		return err
	}
	b.out = append(b.out, r)
	return nil
}

// flush turns everything that changed into records, once per key.
func (b *batch) flush(now time.Time) ([]*kgo.Record, error) {
	for _, userID := range sortedKeys(b.profiles) {
		c := b.profiles[userID]
		switch {
		case !c.dirty:
		case c.rec == nil: // erased
			if err := b.emit(topic.Profiles, userID, &event.Profile{}); err != nil {
				return nil, fmt.Errorf("removing a profile: %w", err)
			}
			b.out[len(b.out)-1].Value = nil
		default:
			c.rec.Revision++
			if err := b.emit(topic.Profiles, userID, c.rec); err != nil {
				return nil, fmt.Errorf("writing a profile: %w", err)
			}
		}
	}
	for _, key := range sortedKeys(b.states) {
		if c := b.states[key]; c.dirty {
			r, err := b.l.cluster.RecordAt(topic.PersonState, c.partition, key, c.rec)
			if err != nil {
				return nil, fmt.Errorf("writing a person's %s: %w", c.rec.Kind, err)
			}
			if len(c.rec.Memberships) == 0 && len(c.rec.Messages) == 0 && profile.Empty(c.rec) {
				r.Value = nil // every import that changed the person was undone, or the person was erased
			}
			b.out = append(b.out, r)
		}
	}
	for k, c := range b.counters {
		c.UpdatedAt = now
		if err := b.emit(topic.Runs, runs.CountersKey(k.run, k.partition), &event.Run{RunID: k.run, CampaignID: b.campaign[k.run], Counters: c}); err != nil {
			return nil, fmt.Errorf("writing the counters of run %s: %w", k.run, err)
		}
	}
	for id, r := range b.runs {
		if err := b.emit(topic.Runs, runs.StateKey(id), r); err != nil {
			return nil, fmt.Errorf("writing the state of run %s: %w", id, err)
		}
	}
	return b.out, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// cloneProfile copies what Apply changes in place, so that a patch can be refused
// after the fact.
func cloneProfile(p *event.Profile) *event.Profile {
	if p == nil {
		return &event.Profile{}
	}
	d := *p
	d.Attributes, d.Addresses, d.Consents = slices.Clone(p.Attributes), slices.Clone(p.Addresses), slices.Clone(p.Consents)
	d.Suppressions = slices.Clone(p.Suppressions)
	return &d
}

// cloneReplaced copies what Remember and Undo change in place.
func cloneReplaced(s *event.PersonState) *event.PersonState {
	d := *s
	d.Imports, d.Replaced = slices.Clone(s.Imports), slices.Clone(s.Replaced)
	return &d
}

// errTooLarge is why a patch or a membership becomes a dead letter.
func errTooLarge(bytes int) error {
	return fmt.Errorf("what is known of the person would become %d bytes large; at most %d are kept", bytes, profile.MaxBytes)
}
