package console

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/spf13/cobra"
)

func (a *app) funnelCommand() *cobra.Command {
	var steps, by, within string
	cmd := &cobra.Command{
		Use: "funnel [CAMPAIGN]", Short: "How far a campaign's messages got, as bars; or a funnel of your own steps",
		Long: `Without --steps: the messages of all runs of a campaign, step by step. A step counts messages; in one run of a bulk campaign a
person has one. Opens, clicks and unsubscribes are by people; the second number is what machines (mail scanners, privacy proxies) and who
knows whom opened and clicked. converted are messages whose goal event came within the goal's time.

With --steps: a funnel in strict order. Steps of messages come first (` + strings.Join(messageSteps, ", ") + `), then names of
events: each step must come after the one before it, and within --within of the first. What began several times counts by its best try; at one
moment the order of the steps decides. If the first step is a step of messages, messages are counted, of one campaign or of all; if it is an
event, people are, and there is no campaign. With --json a step says which: messages or people.`,
		Example: `  hikyaku funnel thanks-2011
  hikyaku funnel thanks-2011 --by variant
  hikyaku funnel --steps 'delivered,clicked,add_to_cart,purchase' --within 7d --by variant
  hikyaku funnel thanks-2011 --steps 'accepted,purchase,purchase' --within 30d --json
  hikyaku funnel --steps 'view,add_to_cart,purchase' --within 24h`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := funnelQuestion{by: by}
			if len(args) == 1 {
				q.campaign = args[0]
			}
			if err := q.read(steps, within, cmd.Flags().Changed("steps"), cmd.Flags().Changed("within")); err != nil {
				return err
			}
			if q.steps != nil {
				return a.customFunnel(cmd.Context(), &q)
			}
			return a.funnel(cmd.Context(), &q)
		},
	}
	cmd.Flags().StringVar(&steps, "steps", "", "a funnel of these steps, in order, separated by commas")
	cmd.Flags().StringVar(&within, "within", "7d", "with --steps: from the first step to the last, as 90s, 30m, 12h, 3d or 2w")
	cmd.Flags().StringVar(&by, "by", "", "one funnel for each "+strings.Join(funnelGroups, ", ")+" (run is its id)")
	return cmd
}

var (
	messageSteps = []string{"requested", "accepted", "delivered", "opened", "clicked"}
	funnelGroups = []string{"campaign", "run", "variant", "channel"}
	// groupColumns are the columns of the views; only these words reach a query's text.
	groupColumns = map[string]string{"": "''", "campaign": "campaign_id", "run": "replaceAll(toString(run_id), '-', '')", "variant": "variant", "channel": "channel"}
)

// funnelQuestion is what was asked for.
type funnelQuestion struct {
	campaign, by string
	steps        []string // nil: the campaign's own funnel
	within       time.Duration
}

// ofEvents reports whether the funnel begins with an event, so that it is one of
// people, not of messages.
func (q *funnelQuestion) ofEvents() bool { return !slices.Contains(messageSteps, q.steps[0]) }

var windowPattern = regexp.MustCompile(`^([1-9][0-9]{0,5})([smhdw])$`)

// read checks what was written and names the nearest right word.
func (q *funnelQuestion) read(steps, within string, hasSteps, hasWithin bool) error {
	if _, ok := groupColumns[q.by]; !ok {
		return usage("--by is %s%s", orList(funnelGroups), didYouMean(q.by, funnelGroups))
	}
	if !hasSteps {
		if q.campaign == "" {
			return usage("which campaign? hikyaku get campaign lists them; or --steps, for a funnel over all of them")
		}
		if hasWithin {
			return usage("--within belongs to --steps")
		}
		return nil
	}
	m := windowPattern.FindStringSubmatch(within)
	if m == nil {
		return usage("--within is a whole number and a unit: 90s, 30m, 12h, 3d or 2w, not %q", within)
	}
	n, _ := strconv.Atoi(m[1])
	q.within = time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 168 * time.Hour}[m[2]]
	if q.within/time.Hour > 20*365*24 {
		return usage("--within is 20 years at most")
	}
	event := ""
	for _, s := range strings.Split(steps, ",") {
		s = strings.TrimSpace(s)
		own := slices.Contains(messageSteps, s)
		switch {
		case s == "":
			return usage("--steps has an empty step in %q", steps)
		case own && event != "":
			return usage("%s is a step of messages: those come before events, and %s is taken for an event%s", s, event, didYouMean(event, messageSteps))
		case !own && event == "":
			event = s
		}
		q.steps = append(q.steps, s)
	}
	if len(q.steps) < 2 || len(q.steps) > 20 {
		return usage("--steps takes 2 to 20 steps")
	}
	if q.ofEvents() && q.campaign != "" {
		return usage("a funnel of a campaign begins with a step of messages: %s%s", orList(messageSteps), didYouMean(q.steps[0], messageSteps))
	}
	if q.ofEvents() && q.by != "" {
		return usage("--by divides messages, and this funnel is of people: %s is an event%s", q.steps[0], didYouMean(q.steps[0], messageSteps))
	}
	return nil
}

func orList(words []string) string {
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func didYouMean(written string, words []string) string {
	if n := nearest(written, words); n != "" && n != written {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}

// funnelStep is one bar.
type funnelStep struct {
	Step     string `json:"step"`
	Messages *int64 `json:"messages,omitempty"` // that got so far; in a bulk run one per person
	People   *int64 `json:"people,omitempty"`   // instead, of a funnel that begins with an event
	Machines *int64 `json:"machines,omitempty"` // opened and clicked: messages that machines did it to
	Unknown  *int64 `json:"unknown,omitempty"`  // and who knows who
}

// step is a bar of what the funnel counts.
func (q *funnelQuestion) step(name string, n uint64) funnelStep {
	count := int64(n)
	if q.steps != nil && q.ofEvents() {
		return funnelStep{Step: name, People: &count}
	}
	return funnelStep{Step: name, Messages: &count}
}

func (s *funnelStep) count() int64 {
	if s.People != nil {
		return *s.People
	}
	return *s.Messages
}

type funnelGroup struct {
	group         string
	steps         []funnelStep
	completeUntil time.Time
}

// Clicks in test mails belong to no run and are not counted.
const funnelQuery = `SELECT %s AS grouped, sum(requested), sum(rendered), sum(accepted), sum(delivered), sum(opened), sum(clicked), sum(converted), sum(unsubscribed), sum(bounced), sum(complained),
 sum(opened_machine), sum(clicked_machine), sum(opened_unknown), sum(clicked_unknown), max(complete_until)
FROM funnel WHERE campaign_id = ? AND run_id IN (SELECT run_id FROM runs WHERE campaign_id = ?) GROUP BY grouped ORDER BY grouped`

func (a *app) funnel(ctx context.Context, q *funnelQuestion) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	query := fmt.Sprintf(funnelQuery, groupColumns[q.by])
	a.sql(query, q.campaign, q.campaign)
	rows, err := conn.Query(ctx, query, q.campaign, q.campaign)
	if err != nil {
		return fmt.Errorf("reading the funnel of %s: %w", q.campaign, err)
	}
	defer rows.Close()
	names := []string{"requested", "rendered", "accepted", "delivered", "opened", "clicked", "converted", "unsubscribed", "bounced", "complained"}
	var groups []funnelGroup
	for rows.Next() {
		var g funnelGroup
		counts := make([]uint64, len(names)+4)
		into := []any{&g.group}
		for i := range counts {
			into = append(into, &counts[i])
		}
		if err := rows.Scan(append(into, &g.completeUntil)...); err != nil {
			return fmt.Errorf("reading the funnel of %s: %w", q.campaign, err)
		}
		for i, name := range names {
			g.steps = append(g.steps, q.step(name, counts[i]))
		}
		for i, name := range []string{"opened", "clicked"} {
			machines, unknown := int64(counts[len(names)+i]), int64(counts[len(names)+2+i])
			s := &g.steps[slices.Index(names, name)]
			s.Machines, s.Unknown = &machines, &unknown
		}
		groups = append(groups, g)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading the funnel of %s: %w", q.campaign, err)
	}
	if len(groups) == 0 {
		return a.noFunnel(ctx, q.campaign)
	}
	return a.printFunnels(q, groups)
}

// noFunnel says why there is nothing to show.
func (a *app) noFunnel(ctx context.Context, campaign string) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	var known []string
	if err := conn.QueryRow(ctx, "SELECT groupUniqArray(campaign_id) FROM runs").Scan(&known); err != nil {
		return fmt.Errorf("reading the campaigns that ran: %w", err)
	}
	return usage("campaign %s has sent nothing yet, or there is no such campaign; hikyaku get campaign lists them%s", campaign, didYouMean(campaign, known))
}

// What is told of a custom funnel: the steps whatever a group reached.
const (
	messageFunnelQuery = `SELECT %s AS grouped, position, step, sum(messages), max(complete_until)
FROM message_funnel(steps = ?, within_ms = ?, campaign = ?) GROUP BY grouped, position, step ORDER BY grouped, position`
	eventFunnelQuery = `SELECT '' AS grouped, position, step, people, complete_until FROM event_funnel(steps = ?, within_ms = ?) ORDER BY position`
)

func (a *app) customFunnel(ctx context.Context, q *funnelQuestion) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	set := ch.ArraySet{}
	for _, s := range q.steps {
		set = append(set, s)
	}
	query, args := fmt.Sprintf(messageFunnelQuery, groupColumns[q.by]), []any{set, q.within.Milliseconds(), q.campaign}
	if q.ofEvents() {
		query, args = eventFunnelQuery, args[:2]
	}
	a.sql(query, args...)
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("reading a funnel of %s: %w", strings.Join(q.steps, ", "), err)
	}
	defer rows.Close()
	var groups []funnelGroup
	for rows.Next() {
		var group, step string
		var position uint32
		var count uint64
		var until time.Time
		if err := rows.Scan(&group, &position, &step, &count, &until); err != nil {
			return fmt.Errorf("reading a funnel of %s: %w", strings.Join(q.steps, ", "), err)
		}
		if position == 1 {
			groups = append(groups, funnelGroup{group: group, completeUntil: until})
		}
		g := &groups[len(groups)-1]
		g.steps = append(g.steps, q.step(step, count))
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading a funnel of %s: %w", strings.Join(q.steps, ", "), err)
	}
	if len(groups) == 0 && q.campaign != "" {
		return a.noFunnel(ctx, q.campaign)
	}
	if len(groups) == 0 || groups[0].steps[0].count() == 0 {
		if err := a.unknownEvents(ctx, q); err != nil {
			return err
		}
	}
	switch {
	case len(groups) > 0:
	case q.ofEvents():
		return usage("nobody did %s", q.steps[0])
	default:
		return usage("no message was ever asked for")
	}
	for i := range groups {
		if last := groups[i].steps[len(groups[i].steps)-1]; last.count() == 0 {
			if err := a.unknownEvents(ctx, q); err != nil {
				return err
			}
			break
		}
	}
	return a.printFunnels(q, groups)
}

// unknownEvents refuses a name that no event ever had.
func (a *app) unknownEvents(ctx context.Context, q *funnelQuestion) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	var known []string
	if err := conn.QueryRow(ctx, "SELECT arrayMap(n -> toString(n), groupUniqArray(name)) FROM event_rows").Scan(&known); err != nil {
		return fmt.Errorf("reading the names of events: %w", err)
	}
	for _, s := range q.steps {
		if !slices.Contains(messageSteps, s) && !slices.Contains(known, s) {
			return usage("there is no event %q, and it is no step of messages%s", s, didYouMean(s, append(slices.Clone(known), messageSteps...)))
		}
	}
	return nil
}

func (a *app) printFunnels(q *funnelQuestion, groups []funnelGroup) error {
	if a.asJSON {
		for _, g := range groups {
			line := map[string]any{"steps": g.steps, "complete_until": g.completeUntil.UTC()}
			if q.campaign != "" {
				line["campaign_id"] = q.campaign
			}
			if q.by != "" {
				line[q.by] = g.group
			}
			if q.steps != nil {
				line["within_ms"] = q.within.Milliseconds()
			}
			if err := a.printJSON(line); err != nil {
				return err
			}
		}
		return nil
	}
	for i, g := range groups {
		if q.by != "" {
			if i > 0 {
				fmt.Fprintln(a.out)
			}
			name := printable(g.group)
			if name == "" {
				name = "(none)"
			}
			fmt.Fprintf(a.out, "%s %s\n", q.by, name)
		}
		a.bars(g.steps)
	}
	if until := groups[0].completeUntil; until.Unix() > 0 {
		fmt.Fprintf(a.out, "complete until %s\n", moment(until))
	}
	return nil
}

func (a *app) bars(steps []funnelStep) {
	const width = 40
	names := 13
	for _, s := range steps {
		names = max(names, len([]rune(printable(s.Step))))
	}
	for _, s := range steps {
		share := 0.0
		if steps[0].count() > 0 {
			share = float64(s.count()) / float64(steps[0].count())
		}
		bar := strings.Repeat("█", min(width, int(share*width+0.5)))
		if bar == "" && s.count() > 0 {
			bar = "▏"
		}
		others := ""
		if s.Machines != nil && *s.Machines+*s.Unknown > 0 {
			others = fmt.Sprintf("  and %s by machines, %s by who knows whom", thousands(*s.Machines), thousands(*s.Unknown))
		}
		fmt.Fprintf(a.out, "%-*s %-*s %9s  %5.1f %%%s\n", names, printable(s.Step), width, bar, thousands(s.count()), 100*share, others)
	}
}
