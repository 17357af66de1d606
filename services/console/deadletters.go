package console

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// deadLetterRecord is what the topics hold that are read here.
const deadLetterRecord = "DeadLetter"

func (a *app) deadLettersCommand() *cobra.Command {
	const about = `A dead letter is a record that a service could not process: it was parked with its reason and its origin, and the service went on.
If it was about a message, that message is counted as parked.`
	var limit int
	list := func(cmd *cobra.Command, _ []string) error {
		if limit < 1 {
			return usage("--limit is a number above 0")
		}
		return a.deadLetters(cmd.Context(), limit)
	}
	root := &cobra.Command{Use: "dead-letters", Short: "What could not be processed, and why", Long: about, Args: cobra.NoArgs, RunE: list}
	listing := &cobra.Command{Use: "list", Short: "Count them by service and reason, and list the newest", Long: about, Args: cobra.NoArgs, RunE: list}
	for _, c := range []*cobra.Command{root, listing} {
		c.Flags().IntVar(&limit, "limit", 50, "list so many of the newest")
	}
	root.AddCommand(listing, &cobra.Command{
		Use: "show ID", Short: "One dead letter whole, decoded as far as it can be",
		Long: "ID is service/offset, as the list prints it. The value is decoded again: a reason that has been mended since shows.",
		Args: cobra.ExactArgs(1), Example: "  hikyaku dead-letters show renderer/3",
		RunE: func(cmd *cobra.Command, args []string) error { return a.deadLetter(cmd.Context(), args[0]) },
	})
	return root
}

// letter is a dead letter without the record in it.
type letter struct {
	ID        string       `json:"id"`
	Service   string       `json:"service"`
	ParkedAt  time.Time    `json:"parked_at"`
	Topic     string       `json:"topic"`
	Partition int32        `json:"partition"`
	Offset    int64        `json:"offset"`
	Reason    string       `json:"reason"`
	MessageID *identity.ID `json:"message_id"`
	RunID     *identity.ID `json:"run_id"`
	UserID    string       `json:"user_id"`
}

// reasonCount is how often a service has parked for one reason.
type reasonCount struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
	Count   int64  `json:"count"`
}

// services that have a dead-letter topic, by the topic's name.
func deadLetterServices() map[topic.Name]string {
	out := map[topic.Name]string{}
	for _, t := range topic.Catalogue() {
		if t.Record == deadLetterRecord {
			out[t.Name] = t.Writers[0]
		}
	}
	return out
}

func (a *app) deadLetters(ctx context.Context, limit int) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	services := deadLetterServices()
	var names []topic.Name
	for name := range services {
		names = append(names, name)
	}
	counts := map[reasonCount]int64{} // Count is 0 in the key
	newest := []letter{}
	err = a.read(ctx, names, false, func(r *kgo.Record) error {
		l := letter{Service: services[c.NameOf(r.Topic)], ParkedAt: r.Timestamp.UTC()}
		l.ID = l.Service + "/" + strconv.FormatInt(r.Offset, 10)
		var d event.DeadLetter
		kind := ""
		if err := c.Decode(r, &d); err != nil {
			l.Reason, kind = "the dead letter itself does not decode: "+err.Error(), "the dead letter itself does not decode"
		} else {
			l.ParkedAt, l.Topic, l.Partition, l.Offset, l.Reason = d.ParkedAt, d.Topic, d.Partition, d.Offset, d.Reason
			l.MessageID, l.RunID, l.UserID = d.MessageID, d.RunID, d.UserID
			kind = kindOfReason(&d)
		}
		counts[reasonCount{Service: l.Service, Reason: kind}]++
		newest = append(newest, l)
		if len(newest) >= 2*limit {
			newest = cutNewest(newest, limit)
		}
		return nil
	})
	if err != nil {
		return err
	}
	newest = cutNewest(newest, limit)
	byReason := []reasonCount{}
	var total int64
	for k, n := range counts {
		k.Count = n
		total += n
		byReason = append(byReason, k)
	}
	slices.SortFunc(byReason, func(x, y reasonCount) int {
		if x.Count != y.Count {
			return int(y.Count - x.Count)
		}
		return strings.Compare(x.Service+x.Reason, y.Service+y.Reason)
	})
	if a.asJSON {
		return a.printJSON(map[string]any{"counts": byReason, "letters": newest})
	}
	if total == 0 {
		fmt.Fprintln(a.out, "no dead letters")
		return nil
	}
	rows := make([][]string, len(byReason))
	for i, r := range byReason {
		rows[i] = []string{r.Service, thousands(r.Count), shorten(r.Reason)}
	}
	a.table([]string{"SERVICE", "COUNT", "REASON"}, rows)
	fmt.Fprintln(a.out)
	rows = rows[:0]
	for _, l := range newest {
		rows = append(rows, []string{l.ID, moment(l.ParkedAt), fmt.Sprintf("%s/%d@%d", l.Topic, l.Partition, l.Offset), shorten(l.Reason)})
	}
	a.table([]string{"ID", "PARKED (UTC)", "ORIGIN", "REASON"}, rows)
	fmt.Fprintf(a.err, "%d of %s; hikyaku dead-letters show %s shows the first\n", len(newest), thousands(total), newest[0].ID)
	return nil
}

// cutNewest keeps the newest of them, the newest first.
func cutNewest(letters []letter, limit int) []letter {
	slices.SortStableFunc(letters, func(x, y letter) int { return y.ParkedAt.Compare(x.ParkedAt) })
	return letters[:min(limit, len(letters))]
}

// kindOfReason is the reason without what differs from record to record: where
// the record lay, and which message it was.
func kindOfReason(d *event.DeadLetter) string {
	kind := strings.ReplaceAll(d.Reason, fmt.Sprintf("%s/%d@%d", d.Topic, d.Partition, d.Offset), d.Topic)
	for _, id := range []*identity.ID{d.MessageID, d.RunID} {
		if id != nil {
			kind = strings.ReplaceAll(kind, id.String(), "…")
		}
	}
	if d.UserID != "" && len(d.UserID) > 2 {
		kind = strings.ReplaceAll(kind, d.UserID, "…")
	}
	return kind
}

// shorten keeps a line a line.
func shorten(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 140 {
		return string(r[:139]) + "…"
	}
	return s
}

// wholeLetter is what show shows.
type wholeLetter struct {
	letter
	ProducedAt time.Time         `json:"produced_at"`
	Key        string            `json:"key"`
	Headers    map[string]string `json:"headers"`
	Value      any               `json:"value"`
	Error      string            `json:"error,omitempty"`  // why the value still does not decode
	Base64     string            `json:"base64,omitempty"` // of the value, then
}

func (a *app) deadLetter(ctx context.Context, id string) error {
	service, number, ok := strings.Cut(id, "/")
	offset, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || offset < 0 {
		return usage("%q is no dead letter; one is service/offset, as hikyaku dead-letters lists them", id)
	}
	name := topic.DeadLetters(service)
	if _, ok := deadLetterServices()[name]; !ok {
		var known []string
		for _, s := range deadLetterServices() {
			known = append(known, s)
		}
		slices.Sort(known)
		if near := nearest(service, known); near != "" {
			return usage("there is no service %s; did you mean %q?", service, near)
		}
		return usage("there is no service %s; one of %s", service, strings.Join(known, ", "))
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	ends, err := c.HighWatermarks(patient, name)
	if err != nil {
		return err
	}
	var found *kgo.Record
	if offset < ends[name][0] {
		if err := c.ReadPartition(patient, name, 0, offset, offset+1, kgo.ReadCommitted(), func(r *kgo.Record) error {
			found = r
			return nil
		}); err != nil {
			return fmt.Errorf("reading dead letter %s: %w", id, err)
		}
	}
	if found == nil {
		return usage("there is no dead letter %s (any more: they are kept for 30 days)", id)
	}
	var d event.DeadLetter
	if err := c.Decode(found, &d); err != nil {
		return fmt.Errorf("decoding dead letter %s: %w", id, err)
	}
	w := wholeLetter{letter: letter{ID: id, Service: d.Service, ParkedAt: d.ParkedAt, Topic: d.Topic, Partition: d.Partition, Offset: d.Offset,
		Reason: d.Reason, MessageID: d.MessageID, RunID: d.RunID, UserID: d.UserID}, ProducedAt: d.ProducedAt, Key: asText(d.Key), Headers: headersOf(&d)}
	if d.Value != nil {
		t, _ := topic.ByName(topic.Name(d.Topic))
		value, err := decodedValue(c, t.Record, &kgo.Record{Topic: t.Name.In(c.Namespace()), Partition: d.Partition, Offset: d.Offset, Value: d.Value})
		if err != nil {
			w.Error, w.Base64 = err.Error(), base64.StdEncoding.EncodeToString(d.Value)
		} else {
			w.Value = value
		}
	}
	if a.asJSON {
		return a.printJSON(w)
	}
	return a.printLetter(&w)
}

func (a *app) printLetter(w *wholeLetter) error {
	rows := [][]string{{"service", w.Service}, {"parked", moment(w.ParkedAt)}, {"produced", moment(w.ProducedAt)},
		{"origin", fmt.Sprintf("%s, partition %d, offset %d", w.Topic, w.Partition, w.Offset)}, {"key", w.Key}}
	if w.MessageID != nil {
		rows = append(rows, []string{"message", w.MessageID.String()})
	}
	if w.RunID != nil {
		rows = append(rows, []string{"run", w.RunID.String()})
	}
	if w.UserID != "" {
		rows = append(rows, []string{"person", w.UserID})
	}
	a.table([]string{"DEAD LETTER", w.ID}, append(rows, []string{"reason", w.Reason}))
	fmt.Fprintln(a.out)
	if w.Error != "" {
		fmt.Fprintf(a.out, "The value does not decode: %s\nIts bytes in base64:\n%s\n", w.Error, w.Base64)
		return nil
	}
	if raw, ok := w.Value.(json.RawMessage); ok {
		return a.printIndented(raw)
	}
	fmt.Fprintln(a.out, "It has no value: a tombstone.")
	return nil
}
