package console

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/exports"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// exportWish is an export that nobody has applied, as flags say it.
type exportWish struct {
	fields     map[string]*string // by the field of the definition
	attributes []string           // name=type
	maxBytes   int64
}

func (a *app) exportCommand() *cobra.Command {
	w := &exportWish{fields: map[string]*string{}}
	var detach bool
	cmd := &cobra.Command{
		Use: "export ID | --what WHAT --format FORMAT --to PREFIX", Short: "Write profiles, an audience, a segment, outcomes or engagement to S3 now",
		Long: `export asks for an export that was applied (kind: Export), or for one that the flags describe, and follows it until it is
complete. The files lie in a folder of their own; they are the export when its manifest.json is there, and not before. Killed, export
stops to follow; what was asked for goes on. hikyaku exports lists them.`,
		Example: `  hikyaku export loyal-nightly
  hikyaku export --what audience --audience loyal --format parquet --to exports/
  hikyaku export --what profiles --format csv --compression gzip --to exports/ --attribute city=string --attribute points=int
  hikyaku export --what outcomes --run RUN --format jsonl --to exports/`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var described bool
			for name := range w.fields {
				described = described || cmd.Flags().Changed(name)
			}
			if described == (len(args) == 1) {
				return usage("the id of an Export that was applied, or --what, --format and --to")
			}
			return a.export(cmd.Context(), args, w, detach)
		},
	}
	for name, help := range map[string]string{
		"what": "profiles, audience, segment, outcomes or engagement", "audience": "which audience", "segment": "which segment", "run": "which run",
		"campaign": "engagement of which campaign", "format": "csv, jsonl, avro or parquet", "compression": "none, gzip or zstd", "to": "key in the bucket under which the export's folder lies",
	} {
		w.fields[name] = cmd.Flags().String(name, "", help)
	}
	cmd.Flags().StringArrayVar(&w.attributes, "attribute", nil, "NAME=TYPE: an attribute with a column of its own; repeat it")
	cmd.Flags().Int64Var(&w.maxBytes, "max-file-bytes", 0, "about where a file ends and the next begins")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow it")
	return cmd
}

// document is the wish as a definition is written, so that it is judged as one.
func (w *exportWish) document() []byte {
	var b strings.Builder
	b.WriteString("kind: Export\nid: ad-hoc\n")
	for _, name := range slices.Sorted(maps.Keys(w.fields)) {
		if v := *w.fields[name]; v != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, strconv.Quote(v))
		}
	}
	if w.maxBytes != 0 {
		fmt.Fprintf(&b, "max_file_bytes: %d\n", w.maxBytes)
	}
	if len(w.attributes) > 0 {
		b.WriteString("attributes:\n")
	}
	for _, one := range w.attributes {
		name, kind, _ := strings.Cut(one, "=")
		fmt.Fprintf(&b, "  %s: %s\n", strconv.Quote(name), strconv.Quote(kind))
	}
	return []byte(b.String())
}

// wanted is the definition of the export that was asked for.
func (a *app) wanted(ctx context.Context, args []string, w *exportWish) (*definition.Export, int64, []byte, error) {
	store, err := a.definitions(ctx)
	if err != nil {
		return nil, 0, nil, err
	}
	if len(args) == 1 {
		def, v, err := inForce[*definition.Export](store, definition.KindExport, args[0])
		return def, v.Number, v.Body, err
	}
	docs, wrong := definition.Parse("flags", w.document(), definition.Options{})
	if len(wrong) == 0 {
		if err := definition.Validate(docs, known(store)); err != nil {
			return nil, 0, nil, usage("%w", err)
		}
		return docs[0].Definition.(*definition.Export), 0, docs[0].Body, nil
	}
	var lines []string
	for _, e := range wrong {
		line := "--" + strings.ReplaceAll(e.Field, "_", "-") + ": " + e.Message
		if e.Expected != "" {
			line += "; expected " + e.Expected
		}
		lines = append(lines, line)
	}
	return nil, 0, nil, usage("%s", strings.Join(lines, "\nhikyaku: "))
}

func (a *app) export(ctx context.Context, args []string, w *exportWish, detach bool) error {
	def, version, body, err := a.wanted(ctx, args, w)
	if err != nil {
		return err
	}
	request := identity.ID(randomBytes())
	first := exports.New(a.cluster.Namespace(), def, version, body, request.String(), now())
	first.RequestedBy = author()
	record, err := a.cluster.Record(topic.Exports, first.ExportID.String(), &first)
	if err != nil {
		return err
	}
	if err := a.cluster.WriteOnce(ctx, exports.TransactionalID(first.ExportID), func(context.Context) ([]*kgo.Record, error) { return []*kgo.Record{record}, nil }); err != nil {
		return missing("the request could not be written to Kafka: %w", err)
	}
	if detach {
		if a.asJSON {
			return a.printJSON(showExport(&first))
		}
		fmt.Fprintln(a.out, first.ExportID)
		return nil
	}
	return a.followExport(ctx, first.ExportID)
}

// followExport shows how far an export is until it has ended, as JSON Lines or on one line of the
// terminal.
func (a *app) followExport(ctx context.Context, id identity.ID) error {
	_, terminal := a.terminal()
	var last event.Export
	err := a.withExports(ctx, func(ctx context.Context, t *exportTable) error {
		for {
			e := t.get(id)
			if e != nil && (e.State != last.State || e.Rows != last.Rows) {
				last = *e
				switch {
				case a.asJSON:
					if err := a.printJSON(showExport(e)); err != nil {
						return err
					}
				case terminal:
					fmt.Fprintf(a.err, "\r\x1b[K%s  %s rows  %.1f", e.State, thousands(e.Rows), decor.SizeB1000(e.Bytes))
				}
			}
			if e != nil && exports.Ended(e.State) {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	if terminal && !a.asJSON {
		fmt.Fprintln(a.err)
	}
	switch {
	case err != nil:
		return err
	case last.State == exports.Failed:
		return broken("export %s has failed: %s", shortID(id), printable(last.Error))
	case !a.asJSON:
		fmt.Fprintf(a.out, "s3://%s/%s%s\n", last.Bucket, last.Folder, exports.Manifest)
		fmt.Fprintf(a.err, "%s rows, % .1f, %d files\n", thousands(last.Rows), decor.SizeB1000(last.Bytes), len(last.Files))
	}
	return nil
}

// shownExport is an export as scripts see it.
type shownExport struct {
	ExportID    identity.ID `json:"export_id"`
	Export      string      `json:"export"`
	Version     int64       `json:"version"`
	State       string      `json:"state"`
	Error       string      `json:"error,omitempty"`
	RequestedAt time.Time   `json:"requested_at"`
	RequestedBy string      `json:"requested_by,omitempty"` // empty of a schedule
	AsOf        *time.Time  `json:"as_of"`                  // null before it is begun
	UpdatedAt   time.Time   `json:"updated_at"`
	Attempts    int64       `json:"attempts"`
	Rows        int64       `json:"rows"`
	Bytes       int64       `json:"bytes"`
	Files       int         `json:"files"`
	Manifest    string      `json:"manifest,omitempty"` // where it is; only of one that is done
}

func showExport(e *event.Export) shownExport {
	s := shownExport{
		ExportID: e.ExportID, Export: e.DefinitionID, Version: e.DefinitionVersion, State: e.State, Error: e.Error, RequestedAt: e.RequestedAt, RequestedBy: e.RequestedBy,
		UpdatedAt: e.UpdatedAt, Attempts: e.Attempt, Rows: e.Rows, Bytes: e.Bytes, Files: len(e.Files),
	}
	if e.Attempt > 0 {
		s.AsOf = &e.AsOf
	}
	if e.State == exports.Done {
		s.Manifest = "s3://" + e.Bucket + "/" + e.Folder + exports.Manifest
	}
	return s
}

func (a *app) exportsCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "exports", Short: "Exports to S3: what is being written, and what was", Args: cobra.NoArgs,
		Long: "exports lists exports, the newest last. --json prints a list.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usage("--limit is a number above 0")
			}
			return a.exportList(cmd.Context(), limit)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "show so many at most")
	return cmd
}

func (a *app) exportList(ctx context.Context, limit int) error {
	var list []event.Export
	if err := a.withExports(ctx, func(_ context.Context, t *exportTable) error {
		list = t.list()
		return nil
	}); err != nil {
		return err
	}
	list = list[max(0, len(list)-limit):]
	if a.asJSON {
		shown := make([]shownExport, len(list))
		for i := range list {
			shown[i] = showExport(&list[i])
		}
		return a.printJSON(shown)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.out, "nothing has been exported yet")
		return nil
	}
	rows := make([][]string, len(list))
	for i, e := range list {
		where := e.Folder
		if e.State == exports.Failed {
			where = e.Error
		}
		rows[i] = []string{shortID(e.ExportID), e.State, e.DefinitionID, thousands(e.Rows), fmt.Sprintf("% .1f", decor.SizeB1000(e.Bytes)), strconv.Itoa(len(e.Files)), e.RequestedAt.UTC().Format(time.DateTime), where}
	}
	a.table([]string{"EXPORT", "STATE", "OF", "ROWS", "SIZE", "FILES", "DUE (UTC)", "FOLDER"}, rows)
	return nil
}

// exportTable is the topic exports as it is read.
type exportTable struct {
	mu   sync.Mutex
	byID map[identity.ID]event.Export
}

func (t *exportTable) apply(e *event.Export) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[e.ExportID] = *e
}

func (t *exportTable) get(id identity.ID) *event.Export {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byID[id]; ok {
		return &e
	}
	return nil
}

// list returns the exports, the newest last.
func (t *exportTable) list() []event.Export {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.byID), func(x, y event.Export) int {
		return cmp.Or(x.RequestedAt.Compare(y.RequestedAt), strings.Compare(x.ExportID.String(), y.ExportID.String()))
	})
}

// withExports reads what was in the topic exports at the moment of the call, and goes on
// reading while do runs.
func (a *app) withExports(ctx context.Context, do func(context.Context, *exportTable) error) error {
	t := &exportTable{byID: map[identity.ID]event.Export{}}
	return follow(ctx, a, topic.Exports, t.apply, func(ctx context.Context, _ *kafka.Table) error { return do(ctx, t) })
}
