package console

import (
	"context"
	"crypto/rand"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	schema "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

func (a *app) eraseCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "erase USER_ID", Short: "Remove one person from everything that is stored, for good",
		Long: `erase removes what is known of a person: profile, addresses, consents, suppressions, memberships, events. What became of messages
stays, so that runs still balance and funnels still add up, under a pseudonym that nothing leads back from: no user_id, address, link or value is left with it. Reading Kafka again from the beginning does not bring the person back.

It says what was removed, and what forgets later and when: Kafka keeps its records for as long as each topic does. It does not touch what is
not stored by Hikyaku: files that were imported or exported on S3, mails at providers. A file that still lists the person brings her back as somebody new
when it is imported again, and so does whatever she does from now on.

Messages on their way are still sent (hikyaku cancel stops their run). It may be called again at any time, also after it was stopped: then it says that it had begun before,
and counts what was left.`,
		Example: "  hikyaku erase 12347\n  hikyaku erase 12347 --yes --json", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.erase(cmd.Context(), args[0], yes) },
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// erasure is what hikyaku erase has done.
type erasure struct {
	UserID   string            `json:"user_id"`
	ErasedAt time.Time         `json:"erased_at"`
	Before   *time.Time        `json:"erased_before,omitempty"` // an erase went before, to its end or not: its rows are not counted here
	Removed  map[string]uint64 `json:"removed"`                 // rows by table, copies included
	Unlinked map[string]uint64 `json:"unlinked"`                // rows by table that bear a pseudonym now
	Left     map[string]uint64 `json:"left"`                    // rows by table that name the person and came meanwhile
	Forgets  []forgets         `json:"forgets"`
	Seconds  float64           `json:"seconds"`
}

// forgets is where something about the person lies for a while yet.
type forgets struct {
	What   string `json:"what"`
	Within string `json:"within"`
}

func (a *app) erase(ctx context.Context, userID string, yes bool) error {
	began := time.Now()
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	before, err := a.rowsNaming(ctx, userID)
	if err != nil {
		return err
	}
	if !yes {
		if err := a.agree(ctx, fmt.Sprintf("Erase %s (%s)? This cannot be undone.", printable(userID), rowsInWords(before)), "nothing was erased"); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.err, "waiting until every service has forgotten")
	e, earlier, err := a.forget(ctx, c, userID)
	if err != nil {
		return err
	}
	out := erasure{UserID: userID, ErasedAt: e.ErasedAt, Before: earlier, Removed: map[string]uint64{}, Unlinked: map[string]uint64{}, Forgets: forgetting()}
	for _, t := range clickhouse.PersonTables {
		n, err := a.eraseRows(ctx, &t, userID, e)
		if err != nil {
			return fmt.Errorf("erasing from %s; call it again: %w", t.Name, err)
		}
		switch {
		case n == 0:
		case t.Kept:
			out.Unlinked[t.Name] = n
		default:
			out.Removed[t.Name] = n
		}
		crash.At(crash.EraseTable)
	}
	// Some events may have been conversions, also of those that a call which was stopped removed.
	if err := a.forgetFunnels(ctx); err != nil {
		return err
	}
	if out.Left, err = a.rowsNaming(ctx, userID); err != nil {
		return err
	}
	out.Seconds = time.Since(began).Seconds()
	if a.asJSON {
		return a.printJSON(out)
	}
	fmt.Fprintf(a.out, "%s is erased\nremoved:  %s\nunlinked: %s\n", printable(userID), rowsInWords(out.Removed), rowsInWords(out.Unlinked))
	if earlier != nil {
		fmt.Fprintf(a.out, "not counted: what an erase of %s removed and unlinked, whether it came to its end or not\n", moment(*earlier))
	}
	if len(out.Left) > 0 {
		fmt.Fprintf(a.out, "came since then, as of somebody new: %s\n", rowsInWords(out.Left))
	}
	fmt.Fprintln(a.out, "\nforgets later:")
	for _, f := range out.Forgets {
		fmt.Fprintf(a.out, "  %-34s %s\n", f.Within, f.What)
	}
	fmt.Fprintln(a.out, "\nnot touched: files that were imported, reject files, exports on S3; what providers and recipients have")
	return nil
}

// forget lets the resolver forget the person, and then tells every sink whom to leave
// out. Who is killed in between calls it again. earlier is when it had come so far
// before, nil if it never had.
func (a *app) forget(ctx context.Context, c *kafka.Cluster, userID string) (e *event.Erasure, earlier *time.Time, err error) {
	e = &event.Erasure{Person: identity.Person(c.Namespace(), userID), Partition: topic.Partition(userID, c.P())}
	profiles, err := c.HighWatermarks(ctx, topic.Profiles)
	if err != nil {
		return nil, nil, err
	}
	at := now()
	if err := say(ctx, c, topic.ProfileUpdates, userID, &event.ProfilePatch{UserID: userID, OccurredAt: at, SetAt: at, SetBy: "operator:" + author(), Erases: true}); err != nil {
		return nil, nil, err
	}
	crash.At(crash.EraseAsked)
	if err := awaitPassed(ctx, c, e.Partition, topic.GroupPersonLoop, topic.ProfileUpdates); err != nil {
		return nil, nil, err
	}
	ends, err := c.HighWatermarks(ctx, topic.Profiles, topic.Events, topic.SegmentMembers)
	if err != nil {
		return nil, nil, err
	}
	removed := int64(-1)
	if err := c.ReadPartition(ctx, topic.Profiles, e.Partition, profiles[topic.Profiles][e.Partition], ends[topic.Profiles][e.Partition], kgo.ReadCommitted(), func(r *kgo.Record) error {
		if r.Value == nil && string(r.Key) == userID {
			removed = r.Offset
		}
		return nil
	}); err != nil {
		return nil, nil, err
	}
	if removed < 0 {
		return nil, nil, broken("the resolver has not removed the profile: is its version older than this command's?")
	}
	var mu sync.Mutex
	if err := follow(ctx, a, topic.Erasures, func(known *event.Erasure) {
		if known.Person == e.Person {
			mu.Lock()
			e.Pseudonym = known.Pseudonym // erased before: what was kept then is still hers
			earlier = &known.ErasedAt
			mu.Unlock()
		}
	}, func(context.Context, *kafka.Table) error { return nil }); err != nil {
		return nil, nil, err
	}
	if e.Pseudonym == "" {
		e.Pseudonym = "erased-" + strings.ToLower(rand.Text()[:20])
	}
	onTheirWay, _ := topic.ByName(topic.MessagesEmailBulk)
	e.ErasedAt = now()
	e.UnlinkedUntil = e.ErasedAt.Add(onTheirWay.Retain)
	e.Ends = []event.ErasedTopic{{Topic: string(topic.Events), Offset: ends[topic.Events][e.Partition]}, {Topic: string(topic.Profiles), Offset: removed},
		{Topic: string(topic.SegmentMembers), Offset: ends[topic.SegmentMembers][e.Partition]}}
	if err := say(ctx, c, topic.Erasures, e.Person.String(), e); err != nil {
		return nil, nil, err
	}
	crash.At(crash.EraseNamed)
	return e, earlier, awaitPassed(ctx, c, e.Partition, topic.GroupSink, topic.Profiles, topic.Events, topic.SegmentMembers, topic.Outcomes, topic.Engagements, topic.MessageRequestsBulk)
}

// say writes one record and waits until it is there.
func say(ctx context.Context, c *kafka.Cluster, name topic.Name, key string, rec event.Record) error {
	r, err := c.Record(name, key, rec)
	if err != nil {
		return err
	}
	producer, err := c.Producer()
	if err != nil {
		return err
	}
	defer producer.Close()
	if err := producer.ProduceSync(ctx, r).FirstErr(); err != nil {
		return missing("it could not be written to Kafka: %w", err)
	}
	return nil
}

// awaitPassed waits until a group has passed what the topics hold now on a partition.
func awaitPassed(ctx context.Context, c *kafka.Cluster, partition int32, group topic.Group, names ...topic.Name) error {
	ends, err := c.HighWatermarks(ctx, names...)
	if err != nil {
		return err
	}
	for name, partitions := range ends {
		ends[name] = map[int32]int64{partition: partitions[partition]}
	}
	for {
		behind, err := c.Passed(ctx, group, ends)
		if err != nil || len(behind) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// eraseRows removes or unlinks the rows of a table, and returns how many there were.
func (a *app) eraseRows(ctx context.Context, t *clickhouse.PersonTable, userID string, e *event.Erasure) (uint64, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return 0, err
	}
	where, args := t.Erased(userID, e)
	var n uint64
	if err := a.each(ctx, "SELECT count() FROM "+t.Name+" WHERE "+where, args, []any{&n}, func() {}); err != nil || n == 0 {
		return 0, err
	}
	query, args := t.Erase(userID, e)
	a.sql(query, args...)
	return n, conn.Exec(ctx, query, args...)
}

// forgetFunnels lets funnels be counted anew.
func (a *app) forgetFunnels(ctx context.Context) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	if err := schema.ForgetFunnels(func(query string) error {
		a.sql(query)
		return conn.Exec(ctx, query)
	}); err != nil {
		return fmt.Errorf("forgetting the funnels that were kept: %w", err)
	}
	return nil
}

// rowsNaming counts the stored rows that name a person, copies included.
func (a *app) rowsNaming(ctx context.Context, userID string) (map[string]uint64, error) {
	rows := map[string]uint64{}
	for _, t := range clickhouse.PersonTables {
		var n uint64
		err := a.each(ctx, "SELECT count() FROM "+t.Name+" WHERE user_id = {user:String}", []any{ch.Named("user", userID)}, []any{&n}, func() {})
		if err != nil {
			return nil, err
		}
		if n > 0 {
			rows[t.Name] = n
		}
	}
	return rows, nil
}

func rowsInWords(rows map[string]uint64) string {
	if len(rows) == 0 {
		return "nothing"
	}
	names := make([]string, 0, len(rows))
	for name := range rows {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %s", thousands(int64(rows[name])), name)
	}
	return strings.Join(names, ", ")
}

// forgetting is what still holds something about an erased person, and for how long.
func forgetting() []forgets {
	byTime := map[time.Duration][]string{}
	for _, t := range topic.Catalogue() {
		switch {
		case t.Cleanup == topic.Compact && t.Person:
			byTime[topic.Forever] = append(byTime[topic.Forever], string(t.Name))
		case t.Person && (t.Key == "user_id"), strings.HasPrefix(string(t.Name), "dead-letters."), t.Name == topic.ImportRejects:
			byTime[t.Retain] = append(byTime[t.Retain], string(t.Name))
		}
	}
	out := []forgets{{What: "topics " + strings.Join(byTime[topic.Forever], ", "), Within: "at their next compaction"}}
	delete(byTime, topic.Forever)
	spans := make([]time.Duration, 0, len(byTime))
	for d := range byTime {
		spans = append(spans, d)
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i] < spans[j] })
	for _, d := range spans {
		out = append(out, forgets{What: "topics " + strings.Join(byTime[d], ", "), Within: fmt.Sprintf("within %d days", int(d.Hours()/24))})
	}
	return out
}
