package console

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/identity"
)

// sheet is a run's balance: the resolver's counters beside ClickHouse's own
// count of distinct messages.
type sheet struct {
	RunID      string           `json:"run_id"`
	CampaignID string           `json:"campaign_id"`
	State      string           `json:"state"`
	Note       string           `json:"note"`
	Audience   int64            `json:"audience"`
	Repeats    int64            `json:"repeats"`
	Excluded   map[string]int64 `json:"excluded"`
	Requested  int64            `json:"requested"`
	Rejected   int64            `json:"rejected"`
	Accepted   int64            `json:"accepted"`
	Failed     int64            `json:"failed"`
	Uncertain  int64            `json:"uncertain"`
	Expired    int64            `json:"expired"`
	Cancelled  int64            `json:"cancelled"`
	Parked     int64            `json:"parked"`
	Waiting    int64            `json:"waiting"`
	Stored     map[string]int64 `json:"stored"`     // the same, as ClickHouse counts
	Difference map[string]int64 `json:"difference"` // stored minus counted, where not 0
	Balanced   bool             `json:"balanced"`
}

var sheetClasses = []string{"rejected", "accepted", "failed", "uncertain", "expired", "cancelled", "parked", "waiting"}

const balanceQuery = `SELECT campaign_id, state, note, audience, repeats, excluded_reasons, requested, rejected, accepted, failed, uncertain, expired, cancelled, parked, waiting,
  excluded_stored, requested_stored, rejected_stored, accepted_stored, failed_stored, uncertain_stored, expired_stored, cancelled_stored, parked_stored, waiting_stored,
  difference, balanced
FROM run_balance WHERE run_id = toUUID(?)`

func (a *app) sheet(ctx context.Context, run identity.ID) (*sheet, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	a.sql(balanceQuery, run.UUID())
	s := sheet{RunID: run.String(), Stored: map[string]int64{}}
	names := append([]string{"excluded", "requested"}, sheetClasses...)
	stored := make([]int64, len(names))
	into := []any{&s.CampaignID, &s.State, &s.Note, &s.Audience, &s.Repeats, &s.Excluded, &s.Requested, &s.Rejected, &s.Accepted, &s.Failed, &s.Uncertain, &s.Expired, &s.Cancelled, &s.Parked, &s.Waiting}
	for i := range stored {
		into = append(into, &stored[i])
	}
	err = conn.QueryRow(ctx, balanceQuery, run.UUID()).Scan(append(into, &s.Difference, &s.Balanced)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, usage("there is no run %s", run)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the balance of run %s: %w", run, err)
	}
	for i, name := range names {
		s.Stored[name] = stored[i]
	}
	return &s, nil
}

// settled is a run's sheet. What is counted twice is seen at two moments: where an
// ended run differs, a message of it may be moving on (a replay, late evidence), so
// it is looked at until it balances or the patience is over.
func (a *app) settled(ctx context.Context, run identity.ID) (*sheet, error) {
	for began := time.Now(); ; {
		s, err := a.sheet(ctx, run)
		if err != nil || s.Balanced || !s.ended() || time.Since(began) >= a.patience {
			return s, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ended reports whether the run is over. One of whose messages waits is open
// again, by a replay, though its driver may not have said so yet.
func (s *sheet) ended() bool {
	return (s.State == "finished" || s.State == "cancelled") && s.Waiting == 0 && s.Stored["waiting"] == 0
}

func (s *sheet) class(name string) int64 {
	return map[string]int64{"rejected": s.Rejected, "accepted": s.Accepted, "failed": s.Failed, "uncertain": s.Uncertain,
		"expired": s.Expired, "cancelled": s.Cancelled, "parked": s.Parked, "waiting": s.Waiting}[name]
}

func (s *sheet) excluded() int64 {
	var n int64
	for _, c := range s.Excluded {
		n += c
	}
	return n
}

// sentence says where everybody went.
func (s *sheet) sentence() string {
	var b strings.Builder
	if s.Audience == 0 {
		b.WriteString("Nobody was in it")
	} else {
		s.whereabouts(&b)
	}
	switch {
	case s.Balanced && !s.ended():
		fmt.Fprintf(&b, ". The counts agree so far; the run is %s.", s.State)
	case s.Balanced:
		b.WriteString(". Balanced: the resolver's and ClickHouse's counts agree.")
	case s.ended():
		b.WriteString(". NOT balanced: see the differences.")
	case s.State == "finished" || s.State == "cancelled":
		b.WriteString(". It had ended, and is open again: what was parked is replayed.")
	default:
		fmt.Fprintf(&b, ". Not balanced yet: the run is %s.", s.State)
	}
	return b.String()
}

func (s *sheet) whereabouts(b *strings.Builder) {
	fmt.Fprintf(b, "Of %s people, %s were excluded", thousands(s.Audience), thousands(s.excluded()))
	if len(s.Excluded) > 0 {
		var parts []string
		for _, reason := range slices.Sorted(maps.Keys(s.Excluded)) {
			parts = append(parts, thousands(s.Excluded[reason])+" "+reason)
		}
		fmt.Fprintf(b, " (%s)", strings.Join(parts, ", "))
	}
	fmt.Fprintf(b, " and %s messages were requested; of these ", thousands(s.Requested))
	var parts []string
	for _, c := range sheetClasses {
		if n := s.class(c); n > 0 {
			parts = append(parts, thousands(n)+" "+c)
		}
	}
	if len(parts) == 0 {
		parts = []string{"none has an outcome"}
	}
	b.WriteString(strings.Join(parts, ", "))
}

// aboutUncertain says what the word means, wherever it is above 0.
func aboutUncertain(n int64, run identity.ID) string {
	return fmt.Sprintf("%s uncertain: %s. List them: hikyaku sql \"SELECT user_id, message_id FROM messages WHERE run_id = toUUID('%s') AND class = 'uncertain'\"",
		thousands(n), meaningOfUncertain, run.UUID())
}

func (a *app) balanceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "balance RUN", Short: "Where everybody of a run went, and whether it adds up",
		Long: `balance shows a run's counts twice: as the resolver counted them while it ran, and as ClickHouse counts the distinct
messages it has stored. audience = excluded + requested; requested = rejected + accepted + failed + uncertain + expired +
cancelled + parked + waiting. Exit code 1 if an ended run is not balanced, and still is not after --timeout: while dead
letters of it are replayed, one count may be seen a moment before the other.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.balance(cmd.Context(), args[0]) },
	}
}

func (a *app) balance(ctx context.Context, arg string) error {
	run, err := runArg(arg)
	if err != nil {
		return err
	}
	s, err := a.settled(ctx, run)
	if err != nil {
		return err
	}
	if a.asJSON {
		err = a.printJSON(s)
	} else {
		a.printSheet(s, run)
	}
	if err == nil && !s.Balanced && s.ended() {
		return broken("run %s has ended and is not balanced", run)
	}
	return err
}

func (a *app) printSheet(s *sheet, run identity.ID) {
	number := func(n int64) string { return thousands(n) }
	rows := [][]string{{"audience", number(s.Audience), number(s.Stored["excluded"] + s.Stored["requested"]), ""},
		{"- excluded", number(s.excluded()), number(s.Stored["excluded"]), difference(s, "excluded")}}
	reasons := maps.Clone(s.Excluded)
	for name := range s.Difference { // a reason that only ClickHouse has seen
		if reason, ok := strings.CutPrefix(name, "excluded."); ok && reasons != nil {
			reasons[reason] += 0
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		stored := s.Excluded[reason] + s.Difference["excluded."+reason]
		rows = append(rows, []string{"    " + reason, number(s.Excluded[reason]), number(stored), difference(s, "excluded."+reason)})
	}
	rows = append(rows, []string{"= requested", number(s.Requested), number(s.Stored["requested"]), difference(s, "requested")})
	for _, c := range sheetClasses {
		rows = append(rows, []string{"    " + c, number(s.class(c)), number(s.Stored[c]), difference(s, c)})
	}
	if s.Repeats > 0 {
		rows = append(rows, []string{"(repeats)", number(s.Repeats), "", ""})
	}
	a.table([]string{"", "RESOLVER", "CLICKHOUSE", "DIFFERENCE"}, rows)
	fmt.Fprintf(a.out, "\n%s\n", s.sentence())
	if s.Uncertain > 0 {
		fmt.Fprintln(a.out, aboutUncertain(s.Uncertain, run))
	}
}

func difference(s *sheet, name string) string {
	if d := s.Difference[name]; d != 0 {
		return strconv.FormatInt(d, 10)
	}
	return ""
}

// thousands writes a number as people read it: 12,345.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}
