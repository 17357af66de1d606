package console

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// deadLetterRecord is what the topics hold that are read here.
const deadLetterRecord = "DeadLetter"

func (a *app) deadLettersCommand() *cobra.Command {
	const about = `A dead letter is a record that a service could not process: it was parked with its reason and its origin, and the service went on.
If it was about a message, that message is counted as parked. When what was wrong is mended, replay puts the record back; what nobody
needs any more, drop takes off the list.`
	var limit int
	var filter letterFilter
	state := stateOpen
	list := func(cmd *cobra.Command, _ []string) error {
		if limit < 1 {
			return usage("--limit is a number above 0")
		}
		if !slices.Contains([]string{"all", stateOpen, "replayed", "dropped"}, state) {
			return usage("--state is all, open, replayed or dropped")
		}
		if err := filter.check(); err != nil {
			return err
		}
		return a.deadLetters(cmd.Context(), &filter, state, limit)
	}
	root := &cobra.Command{Use: "dead-letters", Short: "What could not be processed, and why; replay it or give it up", Long: about, Args: cobra.NoArgs, RunE: list}
	listing := &cobra.Command{Use: "list", Short: "Count them by service and reason, and list the newest", Long: about, Args: cobra.NoArgs, RunE: list}
	for _, c := range []*cobra.Command{root, listing} {
		c.Flags().IntVar(&limit, "limit", 50, "list so many of the newest")
		c.Flags().StringVar(&state, "state", stateOpen, "open (nobody has dealt with it), replayed, dropped or all")
		filter.flags(c)
	}
	root.AddCommand(listing, &cobra.Command{
		Use: "show ID", Short: "One dead letter whole, decoded as far as it can be",
		Long: "ID is service/offset, as the list prints it. The value is decoded again: a reason that has been mended since shows.",
		Args: cobra.ExactArgs(1), Example: "  hikyaku dead-letters show renderer/3",
		RunE: func(cmd *cobra.Command, args []string) error { return a.deadLetter(cmd.Context(), args[0]) },
	}, a.replayCommand(), a.dropCommand())
	return root
}

// stateOpen is the state of a dead letter that nobody has dealt with. The other
// states are the actions of marks.
const stateOpen = "open"

// letterFilter selects dead letters.
type letterFilter struct{ service, topic, reason, run string }

func (f *letterFilter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.service, "service", "", "only those that this service parked")
	cmd.Flags().StringVar(&f.topic, "topic", "", "only records of this topic")
	cmd.Flags().StringVar(&f.reason, "reason", "", "only those whose reason contains this")
	cmd.Flags().StringVar(&f.run, "run", "", "only those of this run")
}

func (f *letterFilter) empty() bool { return *f == letterFilter{} }

// check refuses words that select nothing because nobody knows them.
func (f *letterFilter) check() error {
	if f.service != "" {
		if err := knownService(f.service); err != nil {
			return err
		}
	}
	if f.topic != "" {
		if _, err := topicNamed(f.topic, ""); err != nil {
			return err
		}
	}
	if f.run != "" {
		run, err := runArg(f.run)
		if err != nil {
			return err
		}
		f.run = run.String()
	}
	return nil
}

func (f *letterFilter) matches(l *letter) bool {
	return (f.service == "" || l.Service == f.service) && (f.topic == "" || l.Topic == f.topic) && (f.reason == "" || strings.Contains(l.Reason, f.reason)) &&
		(f.run == "" || l.RunID != nil && l.RunID.String() == f.run)
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
	State     string       `json:"state"` // open, replayed, dropped
	MarkedAt  *time.Time   `json:"marked_at"`
	MarkedBy  string       `json:"marked_by"`
	Because   string       `json:"because"`   // of dropped: why
	ReplayOf  string       `json:"replay_of"` // where the record lay before it was replayed and parked again, or empty
	Copies    int          `json:"copies"`    // how often it was parked: a service that was killed may do so again

	ids  []string // of all copies, the first first
	kind string
}

// identity is what a dead letter is, however often it was parked.
func (l *letter) identity() string { return markKey(l.Service, l.Topic, l.Partition, l.Offset) }

func markKey(service, topic string, partition int32, offset int64) string {
	return fmt.Sprintf("%s %s/%d@%d", service, topic, partition, offset)
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

// letters returns all dead letters with their state, the oldest of each service
// first, without the records in them. Copies of one are one.
func (a *app) letters(ctx context.Context) ([]*letter, error) {
	c, err := a.kafka(ctx)
	if err != nil {
		return nil, err
	}
	marks := map[string]event.DeadLetterMark{}
	err = a.read(ctx, []topic.Name{topic.DeadLetterMarks}, false, func(r *kgo.Record) error {
		var m event.DeadLetterMark
		if err := c.Decode(r, &m); err != nil {
			return fmt.Errorf("reading the marks of dead letters: %w", err) // not knowing what was replayed, nothing may be
		}
		marks[markKey(m.Service, m.Topic, m.Partition, m.Offset)] = m // the latest speaks
		return nil
	})
	if err != nil {
		return nil, err
	}
	services := deadLetterServices()
	var all []*letter
	known := map[string]*letter{}
	err = a.read(ctx, slices.Collect(maps.Keys(services)), false, func(r *kgo.Record) error {
		l := &letter{Service: services[c.NameOf(r.Topic)], ParkedAt: r.Timestamp.UTC(), State: stateOpen, Copies: 1}
		l.ID = l.Service + "/" + strconv.FormatInt(r.Offset, 10)
		l.ids = []string{l.ID}
		var d event.DeadLetter
		if err := c.Decode(r, &d); err != nil {
			l.Topic, l.Partition, l.Offset = string(c.NameOf(r.Topic)), r.Partition, r.Offset // itself
			l.Reason, l.kind = "the dead letter itself does not decode: "+err.Error(), "the dead letter itself does not decode"
		} else {
			// Decoded strings share their record, which may be large.
			l.ParkedAt, l.Topic, l.Partition, l.Offset, l.Reason = d.ParkedAt, strings.Clone(d.Topic), d.Partition, d.Offset, strings.Clone(d.Reason)
			l.MessageID, l.RunID, l.UserID = d.MessageID, d.RunID, strings.Clone(d.UserID)
			l.ReplayOf = headersOf(&d)[kafka.HeaderReplayOf]
			l.kind = strings.Clone(kindOfReason(&d))
		}
		if first := known[l.identity()]; first != nil {
			first.Copies++
			first.ids = append(first.ids, l.ID)
			return nil
		}
		known[l.identity()] = l
		if m, ok := marks[l.identity()]; ok {
			l.State, l.MarkedAt, l.MarkedBy, l.Because = m.Action, &m.MarkedAt, m.MarkedBy, m.Reason
		}
		all = append(all, l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	return all, nil
}

// openDeadLetters counts, by service, the dead letters that nobody has dealt with.
func (a *app) openDeadLetters(ctx context.Context) (map[string]int64, error) {
	all, err := a.letters(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int64{}
	for _, l := range all {
		if l.State == stateOpen {
			counts[l.Service]++
		}
	}
	return counts, nil
}

func (a *app) deadLetters(ctx context.Context, filter *letterFilter, state string, limit int) error {
	all, err := a.letters(ctx)
	if err != nil {
		return err
	}
	counts := map[reasonCount]int64{} // Count is 0 in the key
	newest := []letter{}
	for _, l := range all {
		if filter.matches(l) && (state == "all" || state == l.State) {
			counts[reasonCount{Service: l.Service, Reason: l.kind}]++
			newest = append(newest, *l)
		}
	}
	total := len(newest)
	newest = cutNewest(newest, limit)
	byReason := []reasonCount{}
	for k, n := range counts {
		k.Count = n
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
	switch {
	case len(all) == 0:
		fmt.Fprintln(a.out, "no dead letters")
		return nil
	case total == 0:
		fmt.Fprintf(a.out, "none of %s dead letters; --state all lists them\n", thousands(int64(len(all))))
		return nil
	}
	rows := make([][]string, len(byReason))
	for i, r := range byReason {
		rows[i] = []string{r.Service, thousands(r.Count), shorten(r.Reason)}
	}
	a.table([]string{"SERVICE", "COUNT", "REASON"}, rows)
	fmt.Fprintln(a.out)
	rows = rows[:0]
	for i := range newest {
		l := &newest[i]
		rows = append(rows, []string{l.ID, l.State, moment(l.ParkedAt), fmt.Sprintf("%s/%d@%d", l.Topic, l.Partition, l.Offset), shorten(l.said())})
	}
	a.table([]string{"ID", "STATE", "PARKED (UTC)", "ORIGIN", "REASON"}, rows)
	fmt.Fprintf(a.err, "%d of %s; hikyaku dead-letters show %s shows the first; replay puts it back, drop gives it up\n", len(newest), thousands(int64(total)), newest[0].ID)
	return nil
}

// said is the reason, and that it was parked again, if it was.
func (l *letter) said() string {
	if l.ReplayOf != "" {
		return "(again, though " + l.ReplayOf + " was replayed) " + l.Reason
	}
	return l.Reason
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
	Again      []string          `json:"parked_again"`     // what became of its replay, if it was parked again
	Final      string            `json:"not_replayable"`   // why it cannot be replayed, or empty
}

func (a *app) deadLetter(ctx context.Context, id string) error {
	service, offset, err := parseLetterID(id)
	if err != nil {
		return err
	}
	name := topic.DeadLetters(service)
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
	all, err := a.letters(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(l *letter) bool { return slices.Contains(l.ids, id) })
	if i < 0 {
		return usage("there is no dead letter %s (any more: they are kept for 30 days)", id)
	}
	w := wholeLetter{letter: *all[i], ProducedAt: d.ProducedAt, Key: asText(d.Key), Headers: headersOf(&d), Again: []string{}}
	w.ID = id
	for _, l := range all {
		if w.State == "replayed" && l.Service == w.Service && l.ReplayOf == fmt.Sprintf("%s/%d@%d", w.Topic, w.Partition, w.Offset) {
			w.Again = append(w.Again, l.ID)
		}
	}
	if _, err := c.Replay(&d, now()); err != nil {
		w.Final = err.Error()
	}
	switch {
	case d.Topic == kafka.OriginHTTP && json.Valid(d.Value):
		w.Value = json.RawMessage(d.Value) // as it was sent
	case d.Topic == kafka.OriginHTTP: // a provider may have signed anything
		w.Error, w.Base64 = "it is not JSON", base64.StdEncoding.EncodeToString(d.Value)
	case d.Value != nil:
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
	origin := fmt.Sprintf("%s, partition %d, offset %d", w.Topic, w.Partition, w.Offset)
	if w.Topic == kafka.OriginHTTP {
		origin = "HTTP, " + w.Headers["source"]
	}
	rows := [][]string{{"service", w.Service}, {"parked", moment(w.ParkedAt)}, {"produced", moment(w.ProducedAt)}, {"origin", origin}, {"key", w.Key}}
	if w.MessageID != nil {
		rows = append(rows, []string{"message", w.MessageID.String()})
	}
	if w.RunID != nil {
		rows = append(rows, []string{"run", w.RunID.String()})
	}
	if w.UserID != "" {
		rows = append(rows, []string{"person", w.UserID})
	}
	rows = append(rows, []string{"reason", w.said()})
	if w.Copies > 1 {
		rows = append(rows, []string{"copies", fmt.Sprintf("parked %d times: %s", w.Copies, strings.Join(w.ids, ", "))})
	}
	state := w.State
	if w.MarkedAt != nil {
		state += " at " + moment(*w.MarkedAt) + " by " + w.MarkedBy
	}
	if w.Because != "" {
		state += ": " + w.Because
	}
	if len(w.Again) > 0 {
		state += "; parked again as " + strings.Join(w.Again, ", ")
	}
	rows = append(rows, []string{"state", state})
	if w.Final != "" {
		rows = append(rows, []string{"replay", "cannot be: " + w.Final})
	}
	a.table([]string{"DEAD LETTER", w.ID}, rows)
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
