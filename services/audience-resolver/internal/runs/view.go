// Package runs is the picture of all runs that every instance builds from the
// topic runs: states (written by drivers), done marks of shards, and each
// partition's counters.
package runs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/ledger"
)

// States of a run, in the order in which they follow each other.
const (
	Preparing = "preparing" // waiting for the freshness barrier, counting
	Blocked   = "blocked"   // preparing for longer than stale_after; goes on by itself
	Resolving = "resolving" // shards are being read
	Sending   = "sending"
	Balancing = "balancing" // nothing waits; ClickHouse is being asked for its counts
	Finished  = "finished"
	Cancelled = "cancelled" // as finished, after a cancel
	Failed    = "failed"    // could not be resolved; nobody was messaged
	Refused   = "refused"
)

// Ended reports whether a state is final, unless a replay opens the run again. The
// counters of an ended run may still move units between classes when evidence
// arrives; the sum stays.
func Ended(state string) bool {
	return state == Finished || state == Cancelled || state == Failed || state == Refused
}

// Keys in the topic runs.

// StateKey is the key of a run's state.
func StateKey(run identity.ID) string { return run.String() }

// ShardKey is the key of a shard's done mark. Both numbers are in it because a
// split shard's children are shards of twice as many.
func ShardKey(run identity.ID, shard, of int32) string {
	return fmt.Sprintf("%s/shard/%d-%d", run, shard, of)
}

// ParseShardKey reads a key made by ShardKey.
func ParseShardKey(key string) (run identity.ID, shard, of int32, ok bool) {
	text, rest, _ := strings.Cut(key, "/shard/")
	run, err := identity.Parse(text)
	if err != nil {
		return run, 0, 0, false
	}
	if n, err := fmt.Sscanf(rest, "%d-%d", &shard, &of); n != 2 || err != nil || shard < 0 || shard >= of || ShardKey(run, shard, of) != key {
		return run, 0, 0, false
	}
	return run, shard, of, true
}

// CountersKey is the key of one partition's counters.
func CountersKey(run identity.ID, partition int32) string {
	return fmt.Sprintf("%s/partition/%d", run, partition)
}

type run struct {
	campaign string
	state    *event.RunState
	shards   map[string]*event.ShardDone
	counters map[int32]*event.RunCounters
	waiting  int64             // over all counters
	spoilt   map[string]string // why what is kept under a key cannot be read, and has not been written anew
}

// View is filled by one goroutine (a table reader) and read by any.
type View struct {
	mu         sync.RWMutex
	runs       map[identity.ID]*run
	byCampaign map[string][]identity.ID
}

// NewView returns an empty view.
func NewView() *View {
	return &View{runs: map[identity.ID]*run{}, byCampaign: map[string][]identity.ID{}}
}

// Apply takes one record of the topic runs.
func (v *View) Apply(key string, rec *event.Run) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.of(rec.RunID)
	if r.campaign == "" && rec.CampaignID != "" {
		r.campaign = strings.Clone(rec.CampaignID)
		v.byCampaign[r.campaign] = append(v.byCampaign[r.campaign], rec.RunID)
	}
	delete(r.spoilt, key)
	switch {
	case rec.State != nil:
		r.state = rec.State
	case rec.Shard != nil:
		r.shards[key] = rec.Shard
	case rec.Counters != nil:
		if before := r.counters[rec.Counters.Partition]; before != nil {
			r.waiting -= before.Waiting
		}
		r.counters[rec.Counters.Partition] = rec.Counters
		r.waiting += rec.Counters.Waiting
	}
}

func (v *View) of(id identity.ID) *run {
	r := v.runs[id]
	if r == nil {
		r = &run{shards: map[string]*event.ShardDone{}, counters: map[int32]*event.RunCounters{}, spoilt: map[string]string{}}
		v.runs[id] = r
	}
	return r
}

// Spoil notes that what the topic holds under a key cannot be read. The run
// does not balance until it has been written anew; other runs go on.
func (v *View) Spoil(key, why string) {
	text, _, _ := strings.Cut(key, "/")
	id, err := identity.Parse(text)
	if err != nil {
		return // no run's
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of(id).spoilt[key] = why
}

// State returns a copy of a run's state and its campaign.
func (v *View) State(id identity.ID) (campaign string, state event.RunState, ok bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := v.runs[id]
	if r == nil || r.state == nil {
		return "", event.RunState{}, false
	}
	return r.campaign, *r.state, true
}

// Counters returns a copy of one partition's counters, nil if it has none.
func (v *View) Counters(id identity.ID, partition int32) *event.RunCounters {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := v.runs[id]
	if r == nil || r.counters[partition] == nil {
		return nil
	}
	return CloneCounters(r.counters[partition])
}

// Done reports whether a shard has been read: it has a done mark.
func (v *View) Done(id identity.ID, shard, of int32) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := v.runs[id]
	return r != nil && r.shards[ShardKey(id, shard, of)] != nil
}

// SameCounters reports whether two counters are the same to the last field.
func SameCounters(a, b *event.RunCounters) bool {
	return bytes.Equal((&event.Run{Counters: a}).AppendAvro(nil), (&event.Run{Counters: b}).AppendAvro(nil))
}

// SameState reports whether two states are the same to the last field.
func SameState(a, b *event.RunState) bool {
	return bytes.Equal((&event.Run{State: a}).AppendAvro(nil), (&event.Run{State: b}).AppendAvro(nil))
}

// Unreadable returns why a run's state cannot be read, or "".
func (v *View) Unreadable(id identity.ID) string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if r := v.runs[id]; r != nil {
		return r.spoilt[StateKey(id)]
	}
	return ""
}

// CloneCounters copies counters deeply.
func CloneCounters(c *event.RunCounters) *event.RunCounters {
	d := *c
	d.Excluded = slices.Clone(c.Excluded)
	return &d
}

// Open returns the runs of campaigns that keep selects which have not ended, and
// those that are open again: a message that was parked waits, because it was
// replayed.
func (v *View) Open(keep func(campaign string) bool) []identity.ID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []identity.ID
	for id, r := range v.runs {
		if r.state != nil && (!Ended(r.state.State) || r.waiting > 0) && keep(r.campaign) {
			out = append(out, id)
		}
	}
	return out
}

// OfCampaign returns all runs of a campaign.
func (v *View) OfCampaign(campaign string) []identity.ID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Clone(v.byCampaign[campaign])
}

// Totals is a run as counted over shards and partitions.
type Totals struct {
	ShardsDone int32
	ShardsCut  int32 // first cut, plus the children of those that were split
	Candidates int64
	Unreadable string // what of it cannot be read, in words; empty when all can
	event.RunCounters
}

// Totals adds up what shards and partitions have reported so far.
func (v *View) Totals(id identity.ID) Totals {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var t Totals
	r := v.runs[id]
	if r == nil || r.state == nil {
		return t
	}
	for key, why := range r.spoilt {
		if t.Unreadable == "" || key+": "+why < t.Unreadable { // one is enough, and always the same
			t.Unreadable = key + ": " + why
		}
	}
	t.ShardsCut = r.state.Shards
	for _, s := range r.shards {
		t.ShardsDone++
		t.ShardsCut += s.Children
		t.Candidates += s.Candidates
	}
	reasons := map[string]int64{}
	for _, c := range r.counters {
		t.Repeats += c.Repeats
		t.Requested += c.Requested
		for _, p := range classes(&t.RunCounters, c) {
			*p.to += p.n
		}
		for i := range c.Excluded {
			reasons[c.Excluded[i].Reason] += c.Excluded[i].Count
		}
	}
	for reason, n := range reasons {
		t.Excluded = append(t.Excluded, event.ReasonCount{Reason: reason, Count: n})
	}
	slices.SortFunc(t.Excluded, func(a, b event.ReasonCount) int { return strings.Compare(a.Reason, b.Reason) })
	return t
}

type add struct {
	to *int64
	n  int64
}

func classes(to, from *event.RunCounters) [8]add {
	return [...]add{
		{&to.Waiting, from.Waiting}, {&to.Rejected, from.Rejected}, {&to.Accepted, from.Accepted}, {&to.Failed, from.Failed},
		{&to.Uncertain, from.Uncertain}, {&to.Expired, from.Expired}, {&to.Cancelled, from.Cancelled}, {&to.Parked, from.Parked},
	}
}

// Resolved reports whether every shard, children included, is done.
func (t *Totals) Resolved() bool { return t.ShardsCut > 0 && t.ShardsDone == t.ShardsCut }

// Balance says what does not add up in the resolver's own books, or "".
// I9: this is half of the proof; ClickHouse's count of the same is the other.
func (t *Totals) Balance() string {
	if t.Unreadable != "" {
		return "a record of the topic runs cannot be read, " + t.Unreadable
	}
	if !t.Resolved() {
		return fmt.Sprintf("%d of %d shards are done", t.ShardsDone, t.ShardsCut)
	}
	accounted := t.Repeats + ledger.ExcludedTotal(&t.RunCounters) + t.Requested
	if accounted != t.Candidates {
		return fmt.Sprintf("%d of %d candidates are accounted for", accounted, t.Candidates)
	}
	if t.Waiting != 0 {
		return fmt.Sprintf("%d messages are waiting", t.Waiting)
	}
	if sum := t.Rejected + t.Accepted + t.Failed + t.Uncertain + t.Expired + t.Cancelled + t.Parked; sum != t.Requested {
		return fmt.Sprintf("the classes add up to %d of %d requested", sum, t.Requested)
	}
	return ""
}
