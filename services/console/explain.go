package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/admit"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain CAMPAIGN USER_ID", Short: "Why one person did, or did not, get a campaign",
		Long: `explain tells, from stored facts and for each run of the campaign (the newest first), every step of the person's message with its
time: requested, rendered, each attempt with the mail server's answer, the ending, opens and clicks; or the reason for which
the person was excluded. For somebody outside the audience it names the first condition that failed and the values it saw:
as of that run (only attributes are today's), or as of now if the campaign has not run.`,
		Example: "  hikyaku explain thanks-2011 12347", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.explain(cmd.Context(), args[0], args[1]) },
	}
}

// explanation is all there is to say about one person and campaign.
type explanation struct {
	CampaignID string         `json:"campaign_id"`
	UserID     string         `json:"user_id"`
	Known      bool           `json:"known"` // there is a profile
	Runs       []runOfPerson  `json:"runs"`
	Now        *nowForPerson  `json:"now,omitempty"` // if the campaign has not run
	Meanings   []wordsMeaning `json:"meanings,omitempty"`
}

// runOfPerson is what one run did about the person.
type runOfPerson struct {
	RunID     string        `json:"run_id"`
	State     string        `json:"state"`
	AsOf      time.Time     `json:"as_of"`
	MessageID string        `json:"message_id"`
	Ending    string        `json:"ending"` // class of the message, outside, or not_yet
	Words     string        `json:"words"`
	Steps     []step        `json:"steps"`
	Outside   *failedFilter `json:"outside,omitempty"`
}

// step is one fact about the message.
type step struct {
	At      time.Time `json:"at"`
	Step    string    `json:"step"`
	Attempt int32     `json:"attempt,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// failedFilter is the condition that keeps a person out.
type failedFilter struct {
	AudienceID string `json:"audience_id"`
	Version    int64  `json:"version"`
	Condition  string `json:"condition"`
	Saw        string `json:"saw"`
}

type nowForPerson struct {
	InAudience bool          `json:"in_audience"`
	Admitted   bool          `json:"admitted"`
	Reason     string        `json:"reason"`
	Words      string        `json:"words"`
	Outside    *failedFilter `json:"outside,omitempty"`
}

type wordsMeaning struct {
	Word    string `json:"word"`
	Meaning string `json:"meaning"`
}

// storedRun is a run as the sink has stored it, newest first.
type storedRun struct {
	id              identity.ID
	state, note     string
	audienceID      string
	audienceVersion int64
	asOf            time.Time
	segments        []event.SegmentPin
}

const (
	runsQuery = `SELECT run_id, state, note, audience_id, audience_version, as_of, segments, segment_removals FROM runs WHERE campaign_id = ? ORDER BY requested_at DESC, run_id`
	// A message's id derives from run and person, so that each query finds it by
	// the tables' key.
	inputQuery   = `SELECT requested_at, address, template_id, template_version FROM message_inputs WHERE run_id = toUUID(?) AND message_id = toUUID(?)`
	outcomeQuery = `SELECT outcome, attempt, reason, detail, occurred_at FROM outcomes WHERE run_id = toUUID(?) AND message_id = toUUID(?)
ORDER BY outcome IN ('delivered', 'delayed', 'bounced', 'complained'), attempt, occurred_at, outcome` // what a provider reports later belongs to no attempt
	engagementQuery = `SELECT kind, url, occurred_at FROM engagements WHERE run_id = toUUID(?) AND message_id = toUUID(?) ORDER BY occurred_at`
	classQuery      = `SELECT class, reason FROM messages WHERE run_id = toUUID(?) AND message_id = toUUID(?)`
	traceQuery      = `SELECT count() FROM events WHERE user_id = ?`
)

func (a *app) explain(ctx context.Context, campaign, userID string) error {
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	def, _, err := inForce[*definition.Campaign](store, definition.KindCampaign, campaign)
	if err != nil {
		return err
	}
	p, err := a.person(ctx, userID)
	if err != nil && !errors.Is(err, errNobody) {
		return err
	}
	e := explanation{CampaignID: campaign, UserID: userID, Known: p != nil, Runs: []runOfPerson{}}
	runs, err := a.runsOf(ctx, campaign)
	if err != nil {
		return err
	}
	touched := false
	for _, run := range runs {
		r, err := a.explainRun(ctx, store, campaign, userID, p, run)
		if err != nil {
			return err
		}
		touched = touched || len(r.Steps) > 0
		e.Runs = append(e.Runs, *r)
	}
	if p == nil && !touched {
		return a.stranger(ctx, userID)
	}
	if len(runs) == 0 {
		if e.Now, err = a.explainNow(ctx, store, def, p); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(e.Runs, func(r runOfPerson) bool { return r.Ending == "uncertain" }) {
		e.Meanings = []wordsMeaning{{"uncertain", meaningOfUncertain}}
	}
	if a.asJSON {
		return a.printJSON(e)
	}
	a.printExplanation(&e)
	return nil
}

// stranger tells nobody at all from somebody who only did things.
func (a *app) stranger(ctx context.Context, userID string) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	a.sql(traceQuery, userID)
	var events uint64
	if err := conn.QueryRow(ctx, traceQuery, userID).Scan(&events); err != nil {
		return fmt.Errorf("looking for a person's events: %w", err)
	}
	if events > 0 {
		return usage("%s has %s events and no profile; an audience is made of profiles, so nothing is sent to somebody without one", userID, thousands(int64(events)))
	}
	return nobody(userID)
}

func (a *app) runsOf(ctx context.Context, campaign string) ([]storedRun, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	a.sql(runsQuery, campaign)
	rows, err := conn.Query(ctx, runsQuery, campaign)
	if err != nil {
		return nil, fmt.Errorf("reading the runs of %s: %w", campaign, err)
	}
	defer rows.Close()
	var runs []storedRun
	for rows.Next() {
		var r storedRun
		var id uuid.UUID
		var segments, removals map[string][]uuid.UUID
		if err := rows.Scan(&id, &r.state, &r.note, &r.audienceID, &r.audienceVersion, &r.asOf, &segments, &removals); err != nil {
			return nil, fmt.Errorf("reading the runs of %s: %w", campaign, err)
		}
		r.id = identity.ID(id)
		for segment, imports := range segments {
			pin := event.SegmentPin{SegmentID: segment}
			for _, i := range imports {
				pin.ImportIDs = append(pin.ImportIDs, identity.ID(i))
			}
			for _, i := range removals[segment] {
				pin.Removes = append(pin.Removes, identity.ID(i))
			}
			r.segments = append(r.segments, pin)
		}
		slices.SortFunc(r.segments, func(a, b event.SegmentPin) int { return strings.Compare(a.SegmentID, b.SegmentID) })
		runs = append(runs, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the runs of %s: %w", campaign, err)
	}
	return runs, nil
}

func (a *app) explainRun(ctx context.Context, store *definitions.Store, campaign, userID string, p *person, run storedRun) (*runOfPerson, error) {
	message := identity.Message(a.cfg.Kafka.Namespace, campaign, run.id.String(), userID, "")
	r := &runOfPerson{RunID: run.id.String(), State: run.state, AsOf: run.asOf, MessageID: message.String(), Steps: []step{}}
	class, reason, err := a.steps(ctx, run.id, message, r)
	if err != nil {
		return nil, fmt.Errorf("reading the steps of message %s: %w", message, err)
	}
	switch {
	case class != "" && class != "unknown":
		r.Ending, r.Words = class, endingInWords(class, reason)
		return r, nil
	case len(r.Steps) > 0:
		r.Ending, r.Words = "waiting", endingInWords("waiting", "")
		return r, nil
	case run.state == "refused" || run.state == "failed":
		r.Ending, r.Words = "outside", fmt.Sprintf("The run was %s: %s.", run.state, strings.TrimSuffix(run.note, "."))
		return r, nil
	case run.state == "preparing" || run.state == "blocked":
		r.Ending, r.Words = "not_yet", fmt.Sprintf("The run is %s; who is in it is not decided yet.", run.state)
		return r, nil
	}
	r.Ending = "outside"
	if p == nil {
		r.Words = "There is no profile, and an audience is made of profiles."
		return r, nil
	}
	v, ok := store.Get(definition.KindAudience, run.audienceID, run.audienceVersion)
	if !ok {
		return nil, fmt.Errorf("audience %s version %d, which run %s names, is not among the definitions", run.audienceID, run.audienceVersion, run.id)
	}
	def, err := definitions.Decode[*definition.Audience](v)
	if err != nil {
		return nil, err
	}
	if r.Outside, err = a.why(ctx, p, def, v.Number, audience.Moment{AsOf: run.asOf, Segments: run.segments}); err != nil {
		return nil, err
	}
	switch {
	case r.Outside != nil:
		r.Words = "Not in the audience."
	case run.state == "resolving" || run.state == "sending":
		r.Ending, r.Words = "not_yet", fmt.Sprintf("In the audience; the run is %s and has not come to this person yet.", run.state)
	case run.state == "cancelled":
		r.Words = "The run was cancelled before it came to this person."
	default:
		r.Words = "Not in the audience then, but no condition fails today: attributes have changed since, or became known after the run."
	}
	return r, nil
}

// why finds the first condition that keeps the person out, if one does.
func (a *app) why(ctx context.Context, p *person, def *definition.Audience, version int64, at audience.Moment) (*failedFilter, error) {
	facts, err := a.facts(ctx, p, def.Filter, at)
	if err != nil {
		return nil, err
	}
	reason, out := audience.Why(def.Filter, facts, at)
	if !out {
		return nil, nil
	}
	return &failedFilter{def.ID, version, reason.Condition, reason.Saw}, nil
}

// explainNow says what a run would do that started now.
func (a *app) explainNow(ctx context.Context, store *definitions.Store, campaign *definition.Campaign, p *person) (*nowForPerson, error) {
	def, at, err := audienceNow(store, campaign.Audience)
	if err != nil {
		return nil, err
	}
	template, _, err := inForce[*definition.Template](store, definition.KindTemplate, campaign.Template)
	if err != nil {
		return nil, err
	}
	head, _ := store.Head(definition.KindAudience, campaign.Audience)
	n := &nowForPerson{Reason: p.admission(template.Channel, campaign)}
	if n.Outside, err = a.why(ctx, p, def, head.Number, at); err != nil {
		return nil, err
	}
	n.InAudience, n.Admitted = n.Outside == nil, n.Reason == ""
	switch {
	case !n.InAudience:
		n.Words = "The campaign has not run. Now this person is not in the audience."
	case !n.Admitted:
		n.Words = "The campaign has not run. Now this person is in the audience and would be excluded: " + inWords(n.Reason) + "."
	default:
		n.Words = "The campaign has not run. Now this person is in the audience and would get it."
	}
	return n, nil
}

// steps fills in what happened to the message and returns its class, empty if
// nothing did.
func (a *app) steps(ctx context.Context, run, message identity.ID, r *runOfPerson) (class, reason string, err error) {
	ids := []any{run.UUID(), message.UUID()}
	var address, templateID string
	var templateVersion int64
	var at time.Time
	if err := a.each(ctx, inputQuery, ids, []any{&at, &address, &templateID, &templateVersion}, func() {
		r.Steps = append(r.Steps, step{At: at, Step: "requested", Detail: fmt.Sprintf("for %s, with template %s version %d", address, templateID, templateVersion)})
	}); err != nil {
		return "", "", err
	}
	var s step
	if err := a.each(ctx, outcomeQuery, ids, []any{&s.Step, &s.Attempt, &s.Reason, &s.Detail, &s.At}, func() { r.Steps = append(r.Steps, s) }); err != nil {
		return "", "", err
	}
	s = step{}
	if err := a.each(ctx, engagementQuery, ids, []any{&s.Step, &s.Detail, &s.At}, func() { r.Steps = append(r.Steps, s) }); err != nil {
		return "", "", err
	}
	if len(r.Steps) == 0 {
		return "", "", nil
	}
	err = a.each(ctx, classQuery, ids, []any{&class, &reason}, func() {})
	return class, reason, err
}

// each asks and calls do for each row, scanned into the same variables.
func (a *app) each(ctx context.Context, query string, args, into []any, do func()) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	a.sql(query, args...)
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		do()
	}
	return rows.Err()
}

func (a *app) printExplanation(e *explanation) {
	fmt.Fprintf(a.out, "%s in campaign %s\n", printable(e.UserID), e.CampaignID)
	for _, r := range e.Runs {
		fmt.Fprintf(a.out, "\nrun %s (%s, as of %s)\n", r.RunID, r.State, moment(r.AsOf))
		if len(r.Steps) > 0 {
			fmt.Fprintf(a.out, "message %s\n", r.MessageID)
			rows := make([][]string, len(r.Steps))
			for i, s := range r.Steps {
				rows[i] = []string{"  " + moment(s.At), s.Step, s.inWords()}
			}
			a.table([]string{"  WHEN (UTC)", "STEP", "WHAT"}, rows)
		}
		fmt.Fprintln(a.out, r.Words)
		a.printOutside(r.Outside)
		if r.Outside != nil {
			fmt.Fprintln(a.out, "  (attributes as they are today; events and lists as of the run)")
		}
	}
	if e.Now != nil {
		fmt.Fprintf(a.out, "\n%s\n", e.Now.Words)
		a.printOutside(e.Now.Outside)
	}
	for _, m := range e.Meanings {
		fmt.Fprintf(a.out, "\n%s: %s\n", m.Word, m.Meaning)
	}
}

func (a *app) printOutside(f *failedFilter) {
	if f != nil {
		fmt.Fprintf(a.out, "  audience %s version %d asks for: %s\n  it saw: %s\n", f.AudienceID, f.Version, printable(f.Condition), printable(f.Saw))
	}
}

func (s *step) inWords() string {
	var parts []string
	if s.Attempt > 0 {
		parts = append(parts, fmt.Sprintf("attempt %d", s.Attempt))
	}
	if s.Reason != "" {
		parts = append(parts, inWords(s.Reason))
	}
	if s.Detail != "" {
		parts = append(parts, s.Detail)
	}
	return strings.Join(parts, ": ")
}

// meaningOfUncertain is said wherever the word is.
const meaningOfUncertain = "the provider was asked and never answered, so they may or may not have got it; they are not asked again"

// inWords explains a reason; the provider's codes speak for themselves.
func inWords(reason string) string {
	words, ok := map[string]string{
		string(admit.NoAddress):     "no address on this channel",
		string(admit.Unsubscribed):  "unsubscribed from this channel",
		string(admit.NotSubscribed): "the campaign asks for consent, and none is known",
		string(admit.Suppressed):    "the address bounced for good, or its owner complained of spam; hikyaku unsuppress lifts it",
		string(admit.RunCancelled):  "the run was cancelled",
		"template_error":            "the template failed for this person",
		"invalid_address":           "the address is none",
		"too_large":                 "the message is too large",
		"too_large_to_retry":        "the message is too large to be kept for a retry",
		"expired":                   "too late to be sent",
		"sender_lost":               "the sender ended before it heard the answer",
		"no_answer":                 "no answer to the finished message",
		"connection_lost":           "the connection broke before the message was finished",
		"retries_exhausted":         "refused for now as often as is allowed",
		"poison":                    "it could not be processed; hikyaku dead-letters shows it",
		"poison_candidate":          "it could not be processed before it was requested; hikyaku dead-letters shows it",
	}[reason]
	if !ok {
		return reason
	}
	return reason + " (" + words + ")"
}

func endingInWords(class, reason string) string {
	because := ""
	if reason != "" {
		because = ": " + inWords(reason)
	}
	switch class {
	case "excluded":
		return "Excluded" + because + "."
	case "waiting":
		return "On its way: requested, without an ending yet" + because + "."
	case "accepted":
		return "The provider took it."
	case "rejected":
		return "Not rendered, so not sent" + because + "."
	case "failed":
		return "The provider refused it for good" + because + "."
	case "uncertain":
		return "Uncertain" + because + "."
	case "expired":
		return "Not sent" + because + "."
	case "cancelled":
		return "Not sent, cancelled" + because + "."
	case "parked":
		return "Not sent" + because + "."
	}
	return class + because
}
