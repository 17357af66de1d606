package console

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) funnelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "funnel CAMPAIGN", Short: "How far a campaign's messages got, as bars",
		Long: "Every step counts people once. Opens and clicks are raw hits: mail scanners and privacy proxies are not told apart yet.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.funnel(cmd.Context(), args[0]) },
	}
}

// funnelStep is one bar.
type funnelStep struct {
	Step   string `json:"step"`
	People int64  `json:"people"`
}

// A person is counted once per run, so that a second run is a second chance.
// Clicks in test mails belong to no run and are not counted.
const funnelQuery = `SELECT sum(requested), sum(rendered), sum(accepted), sum(opened), sum(clicked), sum(unsubscribed), count()
FROM funnel WHERE campaign_id = ? AND run_id IN (SELECT run_id FROM runs WHERE campaign_id = ?)`

func (a *app) funnel(ctx context.Context, campaign string) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	a.sql(funnelQuery, campaign, campaign)
	names := []string{"requested", "rendered", "accepted", "opened", "clicked", "unsubscribed"}
	counts := make([]uint64, len(names)+1)
	into := make([]any, len(counts))
	for i := range counts {
		into[i] = &counts[i]
	}
	if err := conn.QueryRow(ctx, funnelQuery, campaign, campaign).Scan(into...); err != nil {
		return fmt.Errorf("reading the funnel of %s: %w", campaign, err)
	}
	if counts[len(names)] == 0 {
		return usage("campaign %s has sent nothing yet, or there is no such campaign; hikyaku get campaign lists them", campaign)
	}
	steps := make([]funnelStep, len(names))
	for i, name := range names {
		steps[i] = funnelStep{name, int64(counts[i])}
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"campaign_id": campaign, "steps": steps})
	}
	const width = 40
	for _, s := range steps {
		share := 0.0
		if steps[0].People > 0 {
			share = float64(s.People) / float64(steps[0].People)
		}
		bar := strings.Repeat("█", int(share*width+0.5))
		if bar == "" && s.People > 0 {
			bar = "▏"
		}
		fmt.Fprintf(a.out, "%-13s %-*s %9s  %5.1f %%\n", s.Step, width, bar, thousands(s.People), 100*share)
	}
	return nil
}
