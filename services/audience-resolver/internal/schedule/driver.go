// Package schedule drives runs: when one starts, what it waits for, when it is
// over. The driver of a campaign is whoever owns partition murmur2(campaign_id)
// of the person topics; there is no lock and no leader. Everything the driver
// decides is decided while handling a tick or a request, and is written in the
// transaction that commits that record's offset.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// TargetShard is the number of people a shard is cut for. Shards are cut by
// hash, so their sizes scatter by a few times the square root of it: far below
// MaxShard.
const (
	TargetShard = 15_000
	MaxShard    = 20_000
)

// tooLate is how long after its scheduled time a campaign still starts, for
// instance because all resolvers were down. Later than that it is refused: a
// breakfast offer must not go out at night.
const tooLate = 24 * time.Hour

// Asker answers the driver's questions about ClickHouse.
type Asker interface {
	// Expected counts the people of a run's audience at its as_of.
	Expected(ctx context.Context, run identity.ID, s *event.RunState) (int64, error)
	// Classes counts a run's distinct messages by class, excluded included.
	Classes(ctx context.Context, run identity.ID) (map[string]int64, error)
}

// Waiter waits for other parts of the pipeline.
type Waiter interface {
	// Fresh returns when ClickHouse holds all facts that were in Kafka at the call. It does not
	// wait for what lies in collectors' spools, and returns how many records that were.
	Fresh(ctx context.Context, report func(string)) (unread int64, err error)
	// Sunk returns when ClickHouse holds all requests, outcomes and run records
	// that were in Kafka at the call.
	Sunk(ctx context.Context, report func(string)) error
}

// Driver moves the runs of the campaigns that this instance drives.
type Driver struct {
	view       *runs.View
	ask        Asker
	wait       Waiter
	staleAfter time.Duration
	jobs       *jobs
}

// NewDriver returns a driver whose background work ends with ctx. A run that
// has waited longer than staleAfter for fresh data is shown as blocked.
func NewDriver(ctx context.Context, view *runs.View, ask Asker, wait Waiter, staleAfter time.Duration) *Driver {
	return &Driver{view: view, ask: ask, wait: wait, staleAfter: staleAfter, jobs: newJobs(ctx)}
}

// Wait returns when all background work has ended, which it does with the
// context given to NewDriver.
func (d *Driver) Wait() { d.jobs.wait() }

// Keep gives up background work for runs that are driven elsewhere now.
func (d *Driver) Keep(driven func(run identity.ID) bool) { d.jobs.keep(driven) }

// Drop gives up the background work of one run.
func (d *Driver) Drop(run identity.ID) { d.jobs.drop(run) }

// Versions names the exact definitions of a run.
type Versions struct {
	Campaign        *definition.Campaign
	CampaignVersion int64
	AudienceVersion int64
	TemplateVersion int64
	Channel         string
	Segments        []event.SegmentPin
}

// New is the state of a run that starts now.
func New(v Versions, requestID *identity.ID, requestedAt, now time.Time) *event.RunState {
	s := &event.RunState{
		State:           runs.Preparing,
		CampaignVersion: v.CampaignVersion,
		AudienceID:      v.Campaign.Audience, AudienceVersion: v.AudienceVersion,
		TemplateID: v.Campaign.Template, TemplateVersion: v.TemplateVersion,
		Channel: v.Channel, Lane: "bulk", Policy: v.Campaign.Policy, Consent: v.Campaign.Consent,
		RequestID: requestID, RequestedAt: requestedAt, AsOf: now, Segments: v.Segments,
		ExpiresAt: now.Add(v.Campaign.ExpiresAfter.Duration()), UpdatedAt: now,
	}
	if goal := v.Campaign.Goal; goal != nil {
		s.GoalEvent, s.GoalWithinMs, s.GoalRevenue = goal.Event, goal.Within.Duration().Milliseconds(), goal.Revenue
	}
	return s
}

// Refused is the state of a run that is not started, with the reason in words.
func Refused(requestID *identity.ID, requestedAt, now time.Time, why string) *event.RunState {
	return &event.RunState{State: runs.Refused, Note: why, RequestID: requestID, RequestedAt: requestedAt, AsOf: now, ExpiresAt: now, UpdatedAt: now, FinishedAt: &now}
}

// Due says whether a scheduled campaign starts now, and if it is too late for
// it, why it does not.
func Due(at definition.At, now time.Time) (due bool, why string) {
	if at.Time.IsZero() || now.Before(at.Time) {
		return false, ""
	}
	return true, Late(at.Time, now)
}

// Late says why a campaign whose time has come does not start any more; empty if it
// does.
func Late(at, now time.Time) string {
	if now.Sub(at) <= tooLate {
		return ""
	}
	return fmt.Sprintf("its time, %s, was more than %s ago when a resolver first saw it", at.Format(time.RFC3339), tooLate)
}

// Step is what a tick does to a run: the new state, if it changed, and the
// shards to resolve.
type Step struct {
	State  *event.RunState
	Shards int32 // greater than 0: write as many run-shards
}

// Tick moves one run on. It starts background work and picks up its results;
// it never blocks.
func (d *Driver) Tick(run identity.ID, s event.RunState, now time.Time) Step {
	before := s.State
	switch s.State {
	case runs.Preparing, runs.Blocked:
		return d.prepare(run, s, now)
	case runs.Resolving, runs.Sending, runs.Balancing, runs.Finished, runs.Cancelled:
		// One that has ended is asked about only when a replay has opened it again.
		s.Balanced, s.FinishedAt = false, nil
		totals := d.view.Totals(run)
		lacks := totals.Balance()
		switch {
		case !totals.Resolved():
			s.State = runs.Resolving
		case lacks != "":
			s.State = runs.Sending
		default:
			return d.balance(run, s, now)
		}
		d.jobs.drop(run)
		note := ""
		if totals.Unreadable != "" {
			note = lacks
		}
		if s.State == before && s.Note == note {
			return Step{}
		}
		s.Note = note
		return changed(s, now)
	}
	return Step{}
}

func changed(s event.RunState, now time.Time) Step {
	s.UpdatedAt = now
	return Step{State: &s}
}

type prepared struct{ expected, unread int64 }

func (d *Driver) prepare(run identity.ID, s event.RunState, now time.Time) Step {
	if s.CancelRequested { // nobody was asked for yet: there is nothing to balance
		d.jobs.drop(run)
		s.State, s.Note, s.Balanced, s.FinishedAt = runs.Cancelled, "", true, &now
		return changed(s, now)
	}
	state := s
	p := d.jobs.run(run, "prepare", now, func(ctx context.Context, report func(string)) (any, error) {
		unread, err := d.wait.Fresh(ctx, report)
		if err != nil {
			return nil, err
		}
		report("counting the audience")
		n, err := d.ask.Expected(ctx, run, &state)
		crash.At(crash.DriverCounted)
		return prepared{expected: n, unread: unread}, err
	})
	switch {
	case !p.done && now.Sub(p.since) < d.staleAfter:
		return Step{}
	case !p.done && (s.State != runs.Blocked || s.Note != p.note):
		s.State, s.Note = runs.Blocked, p.note
		return changed(s, now)
	case !p.done || errors.Is(p.err, context.Canceled):
		return Step{}
	case p.err != nil:
		return d.fail(run, s, p.err, now)
	}
	d.jobs.drop(run)
	found := p.result.(prepared)
	s.Expected, s.UnreadSpoolEvents = found.expected, found.unread
	s.Shards = int32(max(1, (s.Expected+TargetShard-1)/TargetShard))
	s.State, s.Note, s.StartedAt = runs.Resolving, "", &now
	return Step{State: changed(s, now).State, Shards: s.Shards}
}

func (d *Driver) fail(run identity.ID, s event.RunState, err error, now time.Time) Step {
	d.jobs.drop(run)
	s.State, s.Note, s.FinishedAt = runs.Failed, err.Error(), &now
	return changed(s, now)
}

// proof is how ClickHouse's count of a run differs from the resolver's; empty
// if it does not.
type proof struct{ difference string }

// balance asks ClickHouse, once the resolver's own books are closed. A run
// stays here until both agree.
func (d *Driver) balance(run identity.ID, s event.RunState, now time.Time) Step {
	p := d.jobs.run(run, "balance", now, func(ctx context.Context, report func(string)) (any, error) {
		if err := d.wait.Sunk(ctx, report); err != nil {
			return nil, err
		}
		counted, err := d.ask.Classes(ctx, run)
		crash.At(crash.DriverCompared)
		if err != nil {
			return nil, err
		}
		return proof{Difference(d.view.Totals(run), counted)}, nil
	})
	if p.done {
		d.jobs.drop(run)
	}
	// I9: finished when both countings agree, and not before.
	if p.done && p.err == nil && p.result.(proof).difference == "" {
		s.State, s.Note, s.Balanced, s.FinishedAt = runs.Finished, "", true, &now
		if s.CancelRequested {
			s.State = runs.Cancelled
		}
		return changed(s, now)
	}
	note := ""
	if s.State == runs.Balancing {
		note = s.Note // what the last look found stands until the next one has
	}
	switch {
	case p.done && p.err != nil && !errors.Is(p.err, context.Canceled):
		note = p.err.Error()
	case p.done && p.err == nil:
		note = p.result.(proof).difference
	case !p.done && now.Sub(p.since) >= d.staleAfter:
		note = p.note
	}
	if s.State == runs.Balancing && s.Note == note {
		return Step{}
	}
	s.State, s.Note = runs.Balancing, note
	return changed(s, now)
}

// Difference compares the resolver's counters with ClickHouse's distinct
// messages, class by class, and says in words where they differ.
func Difference(t runs.Totals, counted map[string]int64) string {
	var excluded int64
	for i := range t.Excluded {
		excluded += t.Excluded[i].Count
	}
	for _, c := range []struct {
		class string
		want  int64
	}{
		{"excluded", excluded}, {"waiting", t.Waiting}, {"rejected", t.Rejected}, {"accepted", t.Accepted}, {"failed", t.Failed},
		{"uncertain", t.Uncertain}, {"expired", t.Expired}, {"cancelled", t.Cancelled}, {"parked", t.Parked},
	} {
		if got := counted[c.class]; got != c.want {
			return fmt.Sprintf("%s: the resolver counts %d, ClickHouse %d", c.class, c.want, got)
		}
	}
	return ""
}
