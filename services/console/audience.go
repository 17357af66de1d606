package console

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
)

func (a *app) audienceCommand() *cobra.Command {
	var members bool
	var limit int64
	cmd := &cobra.Command{
		Use: "audience ID", Short: "How many people an audience has now, or who they are",
		Long: `audience asks ClickHouse with the same query as a run does, as of now. With --members it lists user_id and e-mail address,
sorted by user_id, as they come; with --json that is JSON Lines. Whether they may be messaged (address, consent) is decided
when a campaign runs: hikyaku preview and hikyaku explain say it of one person.`,
		Example: "  hikyaku audience loyal\n  hikyaku audience loyal --members --limit 10\n  hikyaku audience loyal --sql", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 || cmd.Flags().Changed("limit") && limit == 0 {
				return usage("--limit is a number above 0")
			}
			if members || limit > 0 {
				return a.members(cmd.Context(), args[0], limit)
			}
			return a.audienceSize(cmd.Context(), args[0])
		},
	}
	cmd.Flags().BoolVar(&members, "members", false, "list the people")
	cmd.Flags().Int64Var(&limit, "limit", 0, "list so many people at most")
	return cmd
}

func (a *app) audienceSize(ctx context.Context, id string) error {
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	n, at, err := a.countAudience(ctx, store, id)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"audience_id": id, "members": n, "as_of": at.AsOf})
	}
	people := "people"
	if n == 1 {
		people = "person"
	}
	fmt.Fprintf(a.out, "%s: %s %s\n", id, thousands(n), people)
	a.mentionEmptySegments(at)
	return nil
}

// countAudience counts the members an audience has now.
func (a *app) countAudience(ctx context.Context, store *definitions.Store, id string) (int64, audience.Moment, error) {
	def, at, err := audienceNow(store, id)
	if err != nil {
		return 0, at, err
	}
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return 0, at, err
	}
	q := audience.Count(def.Filter, at)
	a.sql(q.SQL, q.Args...)
	var n uint64
	if err := conn.QueryRow(ctx, q.SQL, q.Args...).Scan(&n); err != nil {
		return 0, at, fmt.Errorf("counting audience %s: %w", id, err)
	}
	return int64(n), at, nil
}

// audienceNow is an audience as it would be resolved now.
func audienceNow(store *definitions.Store, id string) (*definition.Audience, audience.Moment, error) {
	at := audience.Moment{AsOf: now()}
	def, _, err := inForce[*definition.Audience](store, definition.KindAudience, id)
	if err != nil {
		return nil, at, err
	}
	at.Segments, err = store.Pins(def.Filter.Segments())
	return def, at, err
}

// mentionEmptySegments says what is easily overlooked: nobody is in a segment
// that no import has filled.
func (a *app) mentionEmptySegments(at audience.Moment) {
	for _, pin := range at.Segments {
		if len(pin.ImportIDs) == 0 {
			fmt.Fprintf(a.err, "no import has filled segment %s yet\n", pin.SegmentID)
		}
	}
}

func (a *app) members(ctx context.Context, id string, limit int64) error {
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	def, at, err := audienceNow(store, id)
	if err != nil {
		return err
	}
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	q := membersQuery(def, at, limit)
	a.sql(q.SQL, q.Args...)
	rows, err := conn.Query(ctx, q.SQL, q.Args...)
	if err != nil {
		return fmt.Errorf("listing audience %s: %w", id, err)
	}
	defer rows.Close()
	var table *longTable
	if !a.asJSON {
		table = a.longTable("USER_ID", "ADDRESS")
		defer table.flush()
	}
	var n int64
	for ; rows.Next(); n++ {
		var user, address string
		if err := rows.Scan(&user, &address); err != nil {
			return fmt.Errorf("listing audience %s: %w", id, err)
		}
		if table != nil {
			table.row(user, address)
			continue
		}
		if err := a.printJSON(struct {
			UserID  string `json:"user_id"`
			Address string `json:"address"`
		}{user, address}); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("listing audience %s: %w", id, err)
	}
	if n == 0 {
		fmt.Fprintf(a.err, "nobody is in audience %s now\n", id)
		a.mentionEmptySegments(at)
	}
	return nil
}

// membersQuery lists members with their addresses. The address is empty where
// there is none: m[k] of a missing key is.
func membersQuery(def *definition.Audience, at audience.Moment, limit int64) audience.Query {
	q := audience.Members(def.Filter, at)
	q.SQL = strings.Replace(q.SQL, "SELECT user_id", "SELECT user_id, addresses[?]", 1) + " ORDER BY user_id"
	q.Args = append([]any{definition.ChannelEmail}, q.Args...)
	if limit > 0 {
		q.SQL += " LIMIT ?"
		q.Args = append(q.Args, limit)
	}
	return q
}
