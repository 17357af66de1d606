package console

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

func (a *app) startCommand() *cobra.Command {
	var again, yes bool
	cmd := &cobra.Command{
		Use: "start CAMPAIGN", Short: "Send a campaign now; prints the run",
		Long: `start asks for a run of the campaign and prints its id. The run waits until ClickHouse holds everything that
was known when it was asked for, then resolves its audience and sends.

A campaign runs once. --again sends it once more to everybody in its audience, those who already got it included; it asks
first, with the number of people, unless --yes is given. A campaign with at: {segment: ID} is sent by itself, once for each upload
of that list; to start it by hand as well, the same holds.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.start(cmd.Context(), args[0], again, yes) },
	}
	cmd.Flags().BoolVar(&again, "again", false, "send it although it has run before")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before sending again")
	return cmd
}

func (a *app) start(ctx context.Context, campaign string, again, yes bool) error {
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	def, _, err := inForce[*definition.Campaign](store, definition.KindCampaign, campaign)
	if err != nil {
		return err
	}
	if again && !yes {
		if err := a.confirm(ctx, store, def); err != nil {
			return err
		}
	}
	request := identity.ID(randomBytes())
	run := identity.Run(a.cluster.Namespace(), campaign, request.String())
	if err := say(ctx, a.cluster, topic.RunRequests, campaign, &event.RunRequest{Action: "start", RequestID: request, CampaignID: campaign, Again: again,
		RequestedAt: now(), RequestedBy: author()}); err != nil {
		return err
	}
	crash.At(crash.StartRequested)
	s, err := a.awaitRun(ctx, run)
	if err != nil {
		return err
	}
	if a.asJSON {
		err = a.printJSON(map[string]any{"run_id": run.String(), "campaign_id": campaign, "state": s.State, "note": s.Note})
	}
	if s.State == "refused" {
		return errors.Join(broken("refused: %s", s.Note), err)
	}
	if a.asJSON || err != nil {
		return err
	}
	fmt.Fprintln(a.out, run)
	fmt.Fprintf(a.err, "follow it: hikyaku status %s\n", run)
	return nil
}

// confirm asks before a campaign is sent once more, with the number of people.
func (a *app) confirm(ctx context.Context, store *definitions.Store, campaign *definition.Campaign) error {
	n, _, err := a.countAudience(ctx, store, campaign.Audience)
	if err != nil {
		return err
	}
	return a.agree(ctx, fmt.Sprintf("Send %s again to about %s people?", campaign.ID, thousands(n)), "not started")
}

func randomBytes() [16]byte {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return b
}

// runState is what status shows, as the sink has stored it.
type runState struct {
	RunID      string     `json:"run_id"`
	CampaignID string     `json:"campaign_id"`
	State      string     `json:"state"`
	Note       string     `json:"note"`
	Expected   int64      `json:"expected"`
	Audience   int64      `json:"audience"`
	Excluded   int64      `json:"excluded"`
	Requested  int64      `json:"requested"`
	Waiting    int64      `json:"waiting"`
	Rejected   int64      `json:"rejected"`
	Accepted   int64      `json:"accepted"`
	Failed     int64      `json:"failed"`
	Uncertain  int64      `json:"uncertain"`
	Expired    int64      `json:"expired"`
	Cancelled  int64      `json:"cancelled"`
	Parked     int64      `json:"parked"`
	Balanced   bool       `json:"balanced"`
	StartedAt  *time.Time `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
	Unread     int64      `json:"unread_spool_events"` // when its audience was read
}

func (s *runState) ended() bool {
	return s.State == "finished" || s.State == "cancelled" || s.State == "failed" || s.State == "refused"
}

// settled is the number of people about whom nothing is open.
func (s *runState) settled() int64 { return s.Excluded + s.Requested - s.Waiting }

// Only what the resolver counted: counting stored messages, too, is what balance
// does, and too much to be asked four times a second.
const runQuery = `SELECT campaign_id, state, note, expected, shards.candidates - counters.repeats AS audience, counters.excluded, counters.requested, counters.waiting, counters.rejected,
  counters.accepted, counters.failed, counters.uncertain, counters.expired, counters.cancelled, counters.parked, balanced, started_at, finished_at, unread_spool_events
FROM runs,
  (SELECT sum(candidates) AS candidates FROM run_shards WHERE run_id = toUUID(?) AND children = 0) AS shards,
  (SELECT sum(repeats) AS repeats, sum(arraySum(mapValues(run_counters.excluded))) AS excluded, sum(requested) AS requested, sum(waiting) AS waiting, sum(rejected) AS rejected,
    sum(accepted) AS accepted, sum(failed) AS failed, sum(uncertain) AS uncertain, sum(expired) AS expired, sum(cancelled) AS cancelled, sum(parked) AS parked
    FROM run_counters WHERE run_id = toUUID(?)) AS counters
WHERE run_id = toUUID(?)`

// errNoRun says that ClickHouse knows no such run (yet).
var errNoRun = errors.New("no such run")

func (a *app) runState(ctx context.Context, run identity.ID) (*runState, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	id := run.UUID()
	a.sql(runQuery, id, id, id)
	s := runState{RunID: run.String()}
	err = conn.QueryRow(ctx, runQuery, id, id, id).Scan(&s.CampaignID, &s.State, &s.Note, &s.Expected, &s.Audience, &s.Excluded, &s.Requested, &s.Waiting, &s.Rejected,
		&s.Accepted, &s.Failed, &s.Uncertain, &s.Expired, &s.Cancelled, &s.Parked, &s.Balanced, &s.StartedAt, &s.FinishedAt, &s.Unread)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNoRun
	}
	if err != nil {
		return nil, fmt.Errorf("reading run %s: %w", run, err)
	}
	return &s, nil
}

// awaitRun waits until a run that was asked for is there.
func (a *app) awaitRun(ctx context.Context, run identity.ID) (*runState, error) {
	waiting, cancel := context.WithTimeout(ctx, max(a.patience, 30*time.Second))
	defer cancel()
	for {
		s, err := a.runState(waiting, run)
		if !errors.Is(err, errNoRun) && waiting.Err() == nil {
			return s, err
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, missing("run %s was asked for, but no audience-resolver has taken it up, or the sink does not show it; look at it later with hikyaku status %s", run, run)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func runArg(s string) (identity.ID, error) {
	id, err := identity.Parse(s)
	if err != nil {
		return id, usage("%q is no run; a run is the 32 hex digits that hikyaku start prints", s)
	}
	return id, nil
}

// knownRun is the run that somebody names.
func (a *app) knownRun(ctx context.Context, arg string) (identity.ID, *runState, error) {
	run, err := runArg(arg)
	if err != nil {
		return run, nil, err
	}
	s, err := a.runState(ctx, run)
	if errors.Is(err, errNoRun) {
		err = usage("there is no run %s", run)
	}
	return run, s, err
}

func (a *app) statusCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "status [RUN]", Short: "What is wrong now; or follow a run with a live progress bar",
		Long: `Without a run, status says what is wrong now: which service is not ready, why and since when; which group has how much to
read; what every import and run that has not ended waits for. It asks the instances that STATUS_ADDRS names. Exit code 3 if anything is wrong.

With a run, on a terminal status draws a bar until the run has ended. Otherwise, and with --json, it says once how it stands;
--wait waits for the end in any case.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.overview(cmd.Context())
			}
			return a.status(cmd.Context(), args[0], follow)
		},
	}
	cmd.Flags().BoolVar(&follow, "wait", false, "wait until the run has ended")
	return cmd
}

func (a *app) status(ctx context.Context, arg string, follow bool) error {
	run, s, err := a.knownRun(ctx, arg)
	if err != nil {
		return err
	}
	width, terminal := a.terminal()
	if !s.ended() && (follow || terminal && !a.asJSON) {
		if s, err = a.follow(ctx, run, s, width, terminal && !a.asJSON); err != nil {
			return err
		}
	}
	if a.asJSON {
		return a.printJSON(s)
	}
	fmt.Fprintln(a.out, s.sentence())
	if s.Uncertain > 0 {
		fmt.Fprintln(a.out, aboutUncertain(s.Uncertain, run))
	}
	if s.Unread > 0 {
		fmt.Fprintln(a.out, aboutUnread(s.Unread))
	}
	return nil
}

// aboutUnread says what a run's audience was read without, wherever that is above 0.
func aboutUnread(n int64) string {
	return thousands(n) + " events still lay in collectors' spools when the audience was read, and were not counted in it (hikyaku topic read spools says where)"
}

func (s *runState) sentence() string {
	line := fmt.Sprintf("%s: %s", s.CampaignID, s.State)
	if s.Note != "" {
		line += " (" + s.Note + ")"
	}
	if s.Audience > 0 {
		line += fmt.Sprintf("; %s people: %s excluded, %s requested, of which %s accepted, %s waiting", thousands(s.Audience), thousands(s.Excluded), thousands(s.Requested), thousands(s.Accepted), thousands(s.Waiting))
	}
	return line
}

// follow looks four times a second, and draws if asked to, until the run has
// ended. ClickHouse may be away for as long as the user is patient.
func (a *app) follow(ctx context.Context, run identity.ID, s *runState, width int, draw bool) (*runState, error) {
	show := func(*runState) {}
	if draw {
		var now atomic.Pointer[runState] // the bar reads it from its own goroutine
		now.Store(s)
		p := mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(min(width-2, 100)), mpb.WithAutoRefresh())
		state := func(decor.Statistics) string { s := now.Load(); return s.CampaignID + " " + s.State + " " }
		people := func(d decor.Statistics) string {
			if now.Load().Audience == 0 && now.Load().Expected == 0 {
				return "" // nobody has been counted yet
			}
			return " " + thousands(d.Current) + " / " + thousands(d.Total)
		}
		// Without a total at first: only then it can be set as the run goes on.
		bar := p.AddBar(0, mpb.PrependDecorators(decor.Any(state)),
			mpb.AppendDecorators(decor.Any(people), decor.AverageSpeed(0, " %.0f/s"), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "")))
		defer p.Wait()
		defer bar.Abort(false) // does nothing to a bar that is complete
		show = func(s *runState) {
			now.Store(s)
			bar.SetTotal(max(s.Audience, s.Expected, 1), false)
			bar.SetCurrent(s.settled())
			if s.ended() {
				bar.SetTotal(-1, true)
			}
		}
	}
	for seen := time.Now(); ; {
		show(s)
		if s.ended() {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
		next, err := a.runState(ctx, run)
		switch {
		case err == nil:
			s, seen = next, time.Now()
		case fault.ClassOf(err) != fault.ClassTransient || time.Since(seen) > a.patience:
			return nil, err
		}
	}
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel RUN", Short: "Stop a run: what was not handed to the provider yet is cancelled",
		Long: "People not yet asked for are excluded (run_cancelled), messages not yet claimed by a sender end as cancelled. What a\nprovider already has cannot be taken back. The run then balances like any other.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.cancel(cmd.Context(), args[0]) },
	}
}

func (a *app) cancel(ctx context.Context, arg string) error {
	run, s, err := a.knownRun(ctx, arg)
	if err != nil {
		return err
	}
	if s.ended() {
		fmt.Fprintf(a.err, "run %s has already ended: %s\n", run, s.State)
	} else if err := a.requestCancel(ctx, s.CampaignID, run); err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"run_id": run.String(), "campaign_id": s.CampaignID, "requested": !s.ended()})
	}
	if !s.ended() {
		fmt.Fprintf(a.out, "cancelling %s; hikyaku status %s follows it\n", run, run)
	}
	return nil
}

func (a *app) requestCancel(ctx context.Context, campaign string, run identity.ID) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	return say(ctx, c, topic.RunRequests, campaign, &event.RunRequest{Action: "cancel", RequestID: identity.ID(randomBytes()), CampaignID: campaign, RunID: &run,
		RequestedAt: now(), RequestedBy: author()})
}
