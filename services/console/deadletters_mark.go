package console

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// deadLettersID, after the namespace, is the transactional id that all who replay
// or drop share: that is what keeps two of them from replaying one dead letter.
const deadLettersID = "dead-letters"

// A transaction holds so many dead letters at most, or so many bytes of them.
const (
	markAtOnce      = 200
	markAtOnceBytes = 8 << 20
)

// marking is what replay and drop were asked for.
type marking struct {
	letterFilter
	all     bool
	again   bool
	dryRun  bool
	yes     bool
	because string // of drop
}

func (a *app) replayCommand() *cobra.Command {
	var m marking
	cmd := &cobra.Command{
		Use: "replay [ID...]", Short: "Put dead letters' records back where they came from, once what was wrong is mended",
		Long: `replay puts the record of each dead letter back on its topic, as it was, for the service that parked it. If it was about a message,
that message waits again, its run is open again, and balances and finishes like any other. Record, outcome and a mark that says
so are one transaction: a dead letter is replayed once, however often this is asked for or killed; --again replays one more
time, and what was sent then is sent twice. A record that still cannot be processed is parked again, under a new ID.

Give IDs as hikyaku dead-letters lists them, or say which: --service, --topic, --reason, --run, or --all. More than one asks first.`,
		Example: "  hikyaku dead-letters replay renderer/3\n  hikyaku dead-letters replay --service sender --reason 'does not exist' --dry-run\n  hikyaku dead-letters replay --run RUN --yes",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.mark(cmd.Context(), "replayed", args, &m) },
	}
	m.flags(cmd, "replay")
	return cmd
}

func (a *app) dropCommand() *cobra.Command {
	var m marking
	cmd := &cobra.Command{
		Use: "drop [ID...] --because TEXT", Short: "Give dead letters up: they are not listed as open any more",
		Long: `drop marks dead letters as given up, with the reason in your words. Nothing else changes: a message among them stays parked, and is counted
as that. They can be listed with --state dropped, and replayed with --again, for as long as they are kept (30 days).`,
		Example: "  hikyaku dead-letters drop renderer/3 --because 'a test of ours'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(m.because) == "" {
				return usage("say why, for whoever looks at the counts later: --because TEXT")
			}
			return a.mark(cmd.Context(), "dropped", args, &m)
		},
	}
	m.flags(cmd, "drop")
	cmd.Flags().StringVar(&m.because, "because", "", "why they are given up")
	return cmd
}

func (m *marking) flags(cmd *cobra.Command, verb string) {
	m.letterFilter.flags(cmd)
	cmd.Flags().BoolVar(&m.all, "all", false, verb+" every one that is open")
	cmd.Flags().BoolVar(&m.again, "again", false, verb+" also what was replayed or dropped before")
	cmd.Flags().BoolVar(&m.dryRun, "dry-run", false, "only say which")
	cmd.Flags().BoolVarP(&m.yes, "yes", "y", false, "do not ask")
}

// marked is what replay and drop print as JSON.
type marked struct {
	Action  string        `json:"action"`
	DryRun  bool          `json:"dry_run"`
	Letters []string      `json:"letters"`
	Refused []refusedMark `json:"refused"`
}

type refusedMark struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

func (a *app) mark(ctx context.Context, action string, ids []string, m *marking) error {
	switch {
	case len(ids) == 0 && !m.all && m.empty():
		return usage("name dead letters, or say which: --service, --topic, --reason, --run or --all")
	case len(ids) > 0 && (m.all || !m.empty()):
		return usage("give either IDs or --service, --topic, --reason, --run or --all")
	}
	if err := m.check(); err != nil {
		return err
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	client, err := c.TransactionalProducer(deadLettersID)
	if err != nil {
		return err
	}
	defer client.Close()
	if !m.dryRun {
		// Open first: whoever was at it is fenced, so that nothing is marked
		// between what is read below and what is written after it.
		patient, cancel := context.WithTimeout(ctx, a.patience)
		_, _, err := client.ProducerID(patient)
		cancel()
		if err != nil {
			return overtaken(err)
		}
	}
	all, err := a.letters(ctx)
	if err != nil {
		return err
	}
	chosen, err := choose(all, ids, m)
	if err != nil {
		return err
	}
	out := marked{Action: action, DryRun: m.dryRun, Letters: []string{}, Refused: []refusedMark{}}
	switch {
	case len(chosen) == 0:
	case m.dryRun:
		err = a.eachLetter(ctx, chosen, func(l *letter, d *event.DeadLetter) error {
			return out.take(c, action, l, d, func([]*kgo.Record) error { return nil })
		})
	default:
		if len(chosen) > 1 && !m.yes {
			verb := map[string]string{"replayed": "Replay", "dropped": "Drop"}[action]
			if err := a.agree(ctx, fmt.Sprintf("%s %s dead letters?", verb, thousands(int64(len(chosen)))), "nothing was "+action); err != nil {
				return err
			}
		}
		err = a.writeMarks(ctx, c, client, action, m.because, chosen, &out)
	}
	if a.asJSON {
		err = errors.Join(err, a.printJSON(out))
	} else {
		a.printMarked(&out, len(chosen))
	}
	if err == nil && len(out.Refused) > 0 {
		return broken("%s of %s cannot be %s", thousands(int64(len(out.Refused))), thousands(int64(len(chosen))), action)
	}
	return err
}

func (a *app) printMarked(out *marked, chosen int) {
	for _, r := range out.Refused {
		fmt.Fprintf(a.out, "%s cannot be %s: %s\n", r.ID, out.Action, printable(r.Why))
	}
	switch {
	case chosen == 0:
		fmt.Fprintln(a.out, "no dead letter is open that this means")
	case out.DryRun:
		fmt.Fprintf(a.out, "%s would be %s\n", thousands(int64(len(out.Letters))), out.Action)
	case len(out.Letters) == 1:
		fmt.Fprintf(a.out, "%s is %s\n", out.Letters[0], out.Action)
	case len(out.Letters) > 1:
		fmt.Fprintf(a.out, "%s dead letters are %s\n", thousands(int64(len(out.Letters))), out.Action)
	}
}

// choose returns what was asked for, the oldest first. What was dealt with before
// is asked for by --again only.
func choose(all []*letter, ids []string, m *marking) ([]*letter, error) {
	var chosen []*letter
	if len(ids) == 0 {
		for _, l := range all {
			if m.matches(l) && (l.State == stateOpen || m.again) {
				chosen = append(chosen, l)
			}
		}
		return chosen, nil
	}
	byID := map[string]*letter{}
	for _, l := range all {
		for _, id := range l.ids {
			byID[id] = l
		}
	}
	for _, id := range ids {
		if _, _, err := parseLetterID(id); err != nil {
			return nil, err
		}
		l := byID[id]
		switch {
		case l == nil:
			return nil, usage("there is no dead letter %s (any more: they are kept for 30 days)", id)
		case l.State != stateOpen && !m.again:
			return nil, usage("%s was %s at %s by %s; --again does it all the same", id, l.State, moment(*l.MarkedAt), l.MarkedBy)
		case !slices.Contains(chosen, l):
			chosen = append(chosen, l)
		}
	}
	return chosen, nil
}

// take makes the records for one dead letter, or notes why there are none.
func (out *marked) take(c *kafka.Cluster, action string, l *letter, d *event.DeadLetter, write func([]*kgo.Record) error) error {
	var records []*kgo.Record
	if action == "replayed" && d == nil {
		out.Refused = append(out.Refused, refusedMark{l.ID, "the dead letter itself does not decode"})
		return nil
	}
	if action == "replayed" {
		var err error
		if records, err = c.Replay(d, now()); err != nil {
			out.Refused = append(out.Refused, refusedMark{l.ID, err.Error()})
			return nil
		}
	}
	out.Letters = append(out.Letters, l.ID)
	return write(records)
}

// writeMarks writes what belongs to each dead letter, with its mark, in
// transactions of a bounded size.
func (a *app) writeMarks(ctx context.Context, c *kafka.Cluster, client *kgo.Client, action, because string, chosen []*letter, out *marked) error {
	var batch []*kgo.Record
	taken, size := 0, 0
	durable := 0 // of out.Letters
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := client.BeginTransaction(); err != nil {
			return overtaken(err)
		}
		if err := kafka.ProduceSync(ctx, client, batch...); err != nil {
			// Best effort: whoever opens the id next ends it in any case.
			if err = overtaken(err); !errors.Is(err, errOvertaken) {
				_ = client.EndTransaction(ctx, kgo.TryAbort)
			}
			return err
		}
		if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
			return overtaken(err)
		}
		durable = len(out.Letters)
		if durable+len(out.Refused) < len(chosen) { // there is more to come
			fmt.Fprintf(a.err, "%s %s of %s\n", action, thousands(int64(durable)), thousands(int64(len(chosen))))
		}
		batch, taken, size = nil, 0, 0
		return nil
	}
	err := a.eachLetter(ctx, chosen, func(l *letter, d *event.DeadLetter) error {
		return out.take(c, action, l, d, func(records []*kgo.Record) error {
			mark, err := c.Record(topic.DeadLetterMarks, l.identity(), &event.DeadLetterMark{Service: l.Service, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset,
				Action: action, Reason: because, MarkedAt: now(), MarkedBy: author()})
			if err != nil {
				return err
			}
			for _, r := range append(records, mark) {
				batch = append(batch, r)
				size += len(r.Value)
			}
			if taken++; taken < markAtOnce && size < markAtOnceBytes {
				return nil
			}
			return flush()
		})
	})
	if err == nil {
		err = flush()
	}
	out.Letters = out.Letters[:durable]
	return err
}

// eachLetter reads the chosen dead letters again, whole, service by service; one
// that does not decode itself is nil.
func (a *app) eachLetter(ctx context.Context, chosen []*letter, do func(*letter, *event.DeadLetter) error) error {
	byOffset := map[topic.Name]map[int64]*letter{}
	bounds := map[topic.Name]*kafka.Range{}
	for _, l := range chosen {
		service, offset, err := parseLetterID(l.ID)
		if err != nil {
			return err
		}
		name := topic.DeadLetters(service)
		if byOffset[name] == nil {
			byOffset[name], bounds[name] = map[int64]*letter{}, &kafka.Range{Topic: name, From: offset, To: offset + 1}
		}
		byOffset[name][offset] = l
		b := bounds[name]
		b.From, b.To = min(b.From, offset), max(b.To, offset+1)
	}
	for _, t := range topic.Catalogue() {
		if bounds[t.Name] == nil {
			continue
		}
		if err := a.cluster.Read(ctx, []kafka.Range{*bounds[t.Name]}, kgo.ReadCommitted(), func(r *kgo.Record) error {
			l := byOffset[t.Name][r.Offset]
			if l == nil {
				return nil
			}
			d := new(event.DeadLetter)
			if err := a.cluster.Decode(r, d); err != nil {
				if fault.ClassOf(err) != fault.ClassPoison {
					return fmt.Errorf("decoding dead letter %s: %w", l.ID, err)
				}
				d = nil
			}
			return do(l, d)
		}); err != nil {
			return err
		}
	}
	return nil
}

// errOvertaken says that somebody else replays or drops at this moment.
var errOvertaken = errors.New("somebody else is replaying or dropping dead letters; look again")

// overtaken recognises what Kafka says to a writer whose transactional id another
// one has opened.
func overtaken(err error) error {
	if kafka.Fenced(err) {
		return missing("%w (%w)", errOvertaken, err)
	}
	return missing("writing to Kafka: %w", err)
}

// agree asks a question and returns an error unless the answer is yes.
func (a *app) agree(ctx context.Context, question, otherwise string) error {
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	// Reading stdin cannot be interrupted: Ctrl-C leaves the reader behind.
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		answered <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case answer := <-answered:
		if answer == "y" || answer == "yes" {
			return nil
		}
		return usage("%s", otherwise)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// parseLetterID reads service/offset.
func parseLetterID(id string) (service string, offset int64, err error) {
	service, number, ok := strings.Cut(id, "/")
	offset, err = strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || offset < 0 {
		return "", 0, usage("%q is no dead letter; one is service/offset, as hikyaku dead-letters lists them", id)
	}
	if err := knownService(service); err != nil {
		return "", 0, err
	}
	return service, offset, nil
}

// knownService refuses a service that has no dead letters.
func knownService(service string) error {
	var known []string
	for _, s := range deadLetterServices() {
		known = append(known, s)
	}
	slices.Sort(known)
	if slices.Contains(known, service) {
		return nil
	}
	if near := nearest(service, known); near != "" {
		return usage("there is no service %s; did you mean %q?", service, near)
	}
	return usage("there is no service %s; one of %s", service, strings.Join(known, ", "))
}
