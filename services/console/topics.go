package console

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

func (a *app) topicCommand() *cobra.Command {
	root := &cobra.Command{Use: "topic", Short: "Look into Kafka: list the topics, read one decoded",
		Long: "The services hand records to each other over these topics; topic list says which holds what, and topic read shows it.\nhikyaku dead-letters shows what could not be processed.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	root.AddCommand(a.topicListCommand(), a.topicReadCommand())
	return root
}

func (a *app) topicListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Every topic: what it holds, its key, who writes and reads it",
		Long: "The topics are those of the catalogue, in the order in which data flows. RECORDS counts offsets between the start and the end\nof the log: what was compacted away and the markers of transactions are in it.",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return a.topicList(cmd.Context()) },
	}
}

// listedTopic is a row of the catalogue with what the broker says of it.
type listedTopic struct {
	Topic      topic.Name `json:"topic"`
	Record     string     `json:"record"`
	Key        string     `json:"key"`
	Partitions int        `json:"partitions"`
	Records    int64      `json:"records"`
	Writers    []string   `json:"writers"`
	Readers    []string   `json:"readers"`
}

func (a *app) topicList(ctx context.Context) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	client, err := c.Producer()
	if err != nil {
		return err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	var ask []string
	for _, t := range topic.Catalogue() {
		ask = append(ask, t.Name.In(c.Namespace()))
	}
	patient, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	starts, err := adm.ListStartOffsets(patient, ask...)
	if err != nil {
		return missing("reading where the topics begin: %w", err)
	}
	ends, err := adm.ListEndOffsets(patient, ask...)
	if err == nil {
		err = errors.Join(starts.Error(), ends.Error())
	}
	if err != nil {
		return missing("reading where the topics end: %w", err)
	}
	list := []listedTopic{}
	for _, t := range topic.Catalogue() {
		l := listedTopic{Topic: t.Name, Record: t.Record, Key: t.Key, Writers: t.Writers, Readers: []string{}}
		for _, g := range t.Readers {
			l.Readers = append(l.Readers, string(g))
		}
		for _, s := range t.TableOf {
			if !slices.Contains(l.Readers, s) {
				l.Readers = append(l.Readers, s)
			}
		}
		for p, end := range ends[t.Name.In(c.Namespace())] {
			start, _ := starts.Lookup(end.Topic, p)
			l.Partitions++
			l.Records += end.Offset - start.Offset
		}
		list = append(list, l)
	}
	if a.asJSON {
		return a.printJSON(list)
	}
	rows := make([][]string, len(list))
	for i, l := range list {
		rows[i] = []string{string(l.Topic), l.Record, l.Key, strconv.Itoa(l.Partitions), thousands(l.Records), strings.Join(l.Writers, ", "), strings.Join(l.Readers, ", ")}
	}
	a.table([]string{"TOPIC", "RECORD", "KEY", "PARTITIONS", "RECORDS", "WRITTEN BY", "READ BY"}, rows)
	return nil
}

// reading is what topic read was asked for.
type reading struct {
	from      string
	limit     int64
	follow    bool
	partition int32 // -1: all
	key       string
	keyed     bool
}

func (a *app) topicReadCommand() *cobra.Command {
	q := reading{}
	cmd := &cobra.Command{
		Use: "read TOPIC", Short: "Print a topic's records, decoded, as JSON Lines",
		Long: `read prints {topic, partition, offset, key, at, headers, value} for each committed record, in order within each partition, up to the
end of the topic at the moment of asking; --follow goes on until Ctrl-C. A record that does not decode is printed with its
error and its bytes in base64. A value of null is a tombstone. hikyaku topic list names the topics. Reading changes nothing:
no group's offset moves.`,
		Example: "  hikyaku topic read outcomes --limit 5\n  hikyaku topic read events --key 12347\n  hikyaku topic read messages.email.bulk --from end --follow\n  hikyaku topic read runs --from 2026-12-01T09:00:00Z",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.keyed = cmd.Flags().Changed("key")
			return a.topicRead(cmd.Context(), args[0], q)
		},
	}
	cmd.Flags().StringVar(&q.from, "from", "start", "start, end (what comes from now on), or a time such as 2026-12-01T09:00:00Z: records written since")
	cmd.Flags().Int64Var(&q.limit, "limit", 0, "stop after so many records; 0 is no limit")
	cmd.Flags().BoolVarP(&q.follow, "follow", "f", false, "wait for more")
	cmd.Flags().Int32Var(&q.partition, "partition", -1, "only this partition")
	cmd.Flags().StringVar(&q.key, "key", "", "only records with this key")
	return cmd
}

// topicNamed finds a row of the catalogue, with or without the namespace.
func topicNamed(name, namespace string) (topic.Topic, error) {
	short := strings.TrimPrefix(name, namespace+".")
	if t, ok := topic.ByName(topic.Name(short)); ok {
		return t, nil
	}
	var names []string
	for _, t := range topic.Catalogue() {
		names = append(names, string(t.Name))
	}
	if near := nearest(short, names); near != "" {
		return topic.Topic{}, usage("there is no topic %s; did you mean %q?", name, near)
	}
	return topic.Topic{}, usage("there is no topic %s; hikyaku topic list names them", name)
}

func (a *app) topicRead(ctx context.Context, name string, q reading) error {
	cfg, err := a.config(ctx)
	if err != nil {
		return err
	}
	t, err := topicNamed(name, cfg.Kafka.Namespace)
	if err != nil {
		return err
	}
	var opts []kafka.TableOption
	switch q.from {
	case "start":
	case "end":
		// No record is as young as that, and then it is the end: now would be the
		// beginning of a millisecond in which there were records.
		opts = append(opts, kafka.TableFrom(time.Now().AddDate(100, 0, 0)))
		q.follow = true // otherwise there is nothing to read
	default:
		at, err := time.Parse(time.RFC3339, q.from)
		if err != nil {
			return usage("--from %q is neither start nor end nor a time such as 2026-12-01T09:00:00Z", q.from)
		}
		opts = append(opts, kafka.TableFrom(at))
	}
	if q.limit < 0 {
		return usage("--limit is a number above 0")
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	if n := t.PartitionCount(c.P()); q.partition >= int32(n) || q.partition < -1 {
		return usage("topic %s has the partitions 0 to %d", t.Name, n-1)
	}
	var printed int64
	err = a.read(ctx, []topic.Name{t.Name}, q.follow, func(r *kgo.Record) error {
		if q.partition >= 0 && r.Partition != q.partition || q.keyed && string(r.Key) != q.key {
			return nil
		}
		if err := a.printJSON(decoded(c, t, r)); err != nil {
			return err
		}
		if printed++; printed == q.limit {
			return errEnough
		}
		return nil
	}, opts...)
	if q.follow && ctx.Err() != nil {
		return nil // Ctrl-C is how following ends
	}
	return err
}

// errEnough ends a reading early.
var errEnough = errors.New("enough")

// read hands the records of topics to do, up to their end at the moment of the
// call, or, following, until ctx ends.
func (a *app) read(ctx context.Context, names []topic.Name, follow bool, do func(*kgo.Record) error, opts ...kafka.TableOption) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	// Records that come after the end are not for the reader any more.
	open := true
	table := a.cluster.Table(names, func(r *kgo.Record) error {
		if !open {
			return nil
		}
		err := do(r)
		open = err == nil
		return err
	}, opts...)
	go func() { ended <- table.Run(ctx) }()
	if follow {
		return enough(<-ended)
	}
	if err := table.CaughtUp(ctx); err != nil {
		stop()
		if failed := <-ended; failed != nil {
			return enough(failed)
		}
		return err
	}
	stop()
	return enough(<-ended)
}

func enough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// shownRecord is a line of topic read.
type shownRecord struct {
	Topic     topic.Name        `json:"topic"`
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Key       string            `json:"key"`
	At        time.Time         `json:"at"`
	Headers   map[string]string `json:"headers"`
	Value     any               `json:"value"`
	Error     string            `json:"error,omitempty"`
	Base64    string            `json:"base64,omitempty"` // of the value, when it does not decode
}

// decoded shows a record of a topic, whatever it holds.
func decoded(c *kafka.Cluster, t topic.Topic, r *kgo.Record) shownRecord {
	s := shownRecord{Topic: t.Name, Partition: r.Partition, Offset: r.Offset, Key: asText(r.Key), At: r.Timestamp.UTC(), Headers: map[string]string{}}
	for _, h := range r.Headers {
		s.Headers[h.Key] = asText(h.Value)
	}
	if r.Value == nil {
		return s
	}
	value, err := decodedValue(c, t.Record, r)
	if err != nil {
		s.Error, s.Base64 = err.Error(), base64.StdEncoding.EncodeToString(r.Value)
		return s
	}
	s.Value = value
	return s
}

// decodedValue is a record's value as JSON.
func decodedValue(c *kafka.Cluster, record string, r *kgo.Record) (json.RawMessage, error) {
	into, ok := event.New(record)
	if !ok {
		return nil, fmt.Errorf("nothing is known of records of type %q", record)
	}
	if err := c.Decode(r, into); err != nil {
		return nil, err
	}
	return json.Marshal(readable(into))
}

// readable lets people read what JSON would write in base64: mails, and keys of
// dead letters.
func readable(rec event.Record) any {
	switch m := rec.(type) {
	case *event.Message:
		type mail struct {
			EnvelopeFrom string `json:"envelope_from"`
			To           string `json:"to"`
			MIME         string `json:"mime"`
		}
		shown := struct {
			*event.Message
			ContentHash string `json:"content_hash"`
			Email       *mail  `json:"email"`
		}{Message: m, ContentHash: fmt.Sprintf("%x", m.ContentHash)}
		if m.Email != nil {
			shown.Email = &mail{m.Email.EnvelopeFrom, m.Email.To, asText(m.Email.MIME)}
		}
		return shown
	case *event.Outcome:
		return struct {
			*event.Outcome
			ContentHash string `json:"content_hash"`
		}{m, fmt.Sprintf("%x", m.ContentHash)}
	case *event.DeadLetter:
		return struct {
			*event.DeadLetter
			Key     string            `json:"key"`
			Headers map[string]string `json:"headers"`
		}{m, asText(m.Key), headersOf(m)}
	case *event.Definition:
		return struct {
			*event.Definition
			Body json.RawMessage `json:"body"`
		}{m, body(m)}
	}
	return rec
}

func body(d *event.Definition) json.RawMessage {
	if json.Valid([]byte(d.Body)) {
		return json.RawMessage(d.Body)
	}
	quoted, _ := json.Marshal(d.Body) // a string always can be
	return quoted
}

func headersOf(d *event.DeadLetter) map[string]string {
	out := map[string]string{}
	for _, h := range d.Headers {
		out[h.Key] = asText(h.Value)
	}
	return out
}

// asText is bytes that are nearly always text.
func asText(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return "base64:" + base64.StdEncoding.EncodeToString(b)
}
