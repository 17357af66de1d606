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
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// importFilter selects imports of the list.
type importFilter struct {
	state, spec string
	only        *identity.ID // one import
}

func (f *importFilter) matches(i *shownImport) bool {
	return (f.state == "" || i.State == f.state) && (f.spec == "" || i.Spec == f.spec) && (f.only == nil || i.ImportID == *f.only)
}

func (a *app) importsCommand() *cobra.Command {
	const about = `An import is one version of an object on S3 under one version of an import spec. It is announced (seen), reading, published (all rows are
in Kafka), loaded (all of them are in ClickHouse) and done, or it has failed. The list has those that have not ended and the last that have,
the newest last. ROWS/S and the time left are of the last half minute of reading; ROWS/S of an import that has ended is of all its
time, loading included. Of a compressed file READ is what has been read of the object.

--follow draws a bar for each import that has not ended, also for those that begin meanwhile, until all have ended; without a
terminal it tells changes of state, and with --json it prints a line for each sign of progress. Exit code 1 if one has failed.`
	var filter importFilter
	var limit int
	var all, follow bool
	list := func(cmd *cobra.Command, _ []string) error {
		switch {
		case limit < 0:
			return usage("--limit is a number of imports")
		case filter.state != "" && !slices.Contains(importfile.States(), filter.state):
			return usage("--state is one of %s", strings.Join(importfile.States(), ", "))
		case follow && filter.state != "":
			return usage("--follow follows imports from state to state: leave out --state")
		case follow:
			return a.importsFollowed(cmd.Context(), &filter)
		case all:
			limit = -1
		}
		return a.importList(cmd.Context(), &filter, limit)
	}
	root := &cobra.Command{Use: "imports", Short: "What is being imported from S3, how fast and until when; what was", Long: about, Args: cobra.NoArgs, RunE: list,
		Example: "  hikyaku imports --follow\n  hikyaku imports --state failed --all\n  hikyaku imports show people-2026.csv"}
	listing := &cobra.Command{Use: "list", Short: "List them; the same as hikyaku imports", Long: about, Args: cobra.NoArgs, RunE: list}
	for _, c := range []*cobra.Command{root, listing} {
		c.Flags().IntVar(&limit, "limit", 20, "list so many of those that have ended")
		c.Flags().BoolVar(&all, "all", false, "list all that have ended")
		c.Flags().StringVar(&filter.state, "state", "", "only those in this state: "+strings.Join(importfile.States(), ", "))
		c.Flags().StringVar(&filter.spec, "spec", "", "only those of this import spec")
		c.Flags().BoolVarP(&follow, "follow", "f", false, "follow those that have not ended, until they have")
	}
	var followOne bool
	show := &cobra.Command{Use: "show IMPORT", Short: "One import whole: its counts, why it failed, and what to do next",
		Long: "IMPORT is an id or the beginning of one, or an object's key or the last parts of it: then the newest import of that object.\nWith --follow it is followed until it has ended; exit code 1 if it has failed then.",
		Args: cobra.ExactArgs(1), Example: "  hikyaku imports show 3f9a01c2\n  hikyaku imports show imports/people/2026.csv --follow",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importShown(cmd.Context(), args[0], followOne)
		},
	}
	show.Flags().BoolVarP(&followOne, "follow", "f", false, "follow it until it has ended")
	root.AddCommand(listing, show)
	return root
}

// shownImport is an import as its records tell it.
type shownImport struct {
	ImportID       identity.ID `json:"import_id"`
	Spec           string      `json:"spec"`
	SpecVersion    int64       `json:"spec_version"`
	Bucket         string      `json:"bucket"`
	Key            string      `json:"key"`
	VersionID      string      `json:"version_id"`
	LastModified   time.Time   `json:"last_modified"`
	State          string      `json:"state"`
	Error          string      `json:"error"` // why it failed
	SizeBytes      int64       `json:"size_bytes"`
	OffsetBytes    int64       `json:"offset_bytes"` // read of them
	Line           int64       `json:"line"`         // of the next row
	Rows           int64       `json:"rows"`         // rejected ones among them
	Rejected       int64       `json:"rejected"`
	ProfileUpdates int64       `json:"profile_updates"`
	SegmentMembers int64       `json:"segment_members"`
	Events         int64       `json:"events"`
	Segment        string      `json:"segment"`      // that it fills, or empty
	SegmentMode    string      `json:"segment_mode"` // replace, add or remove; empty without one
	FilesPrefix    string      `json:"files_prefix"` // what the keys of its rejects file and report have before the object's
	Undoes         string      `json:"undoes"`       // import_id of the import that it takes back, or empty
	Again          int64       `json:"again"`        // how often the object was imported before, if it is repeated
	RowsPerSecond  *float64    `json:"rows_per_second"`
	SecondsLeft    *float64    `json:"seconds_left"` // until all is read; null unless that can be told
	Seconds        float64     `json:"seconds"`      // since it began, or that it took
	AnnouncedAt    time.Time   `json:"announced_at"`
	StartedAt      time.Time   `json:"started_at"`
	UpdatedAt      time.Time   `json:"updated_at"`

	silent time.Duration // since its last sign of life; 0 unless that is too long
}

// importWindow is how much of the past a rate is of, and importSilence how long an
// owner may be silent: then another instance takes the import over.
const (
	importWindow  = 30 * time.Second
	importSilence = time.Minute
)

// importSign is what one record said of how far an import was.
type importSign struct {
	at          time.Time
	rows, bytes int64
}

// importPicture is an import's last record, and the signs of the window before it.
type importPicture struct {
	event.Import
	signs []importSign
}

func (p *importPicture) apply(e *event.Import) {
	p.Import = *e
	p.Header, p.Published = nil, nil
	p.signs = append(p.signs, importSign{e.UpdatedAt, e.Rows, e.OffsetBytes})
	p.signs = slices.DeleteFunc(p.signs, func(s importSign) bool { return e.UpdatedAt.Sub(s.at) > importWindow })
}

// at is the import as it stands at a moment.
func (p *importPicture) at(now time.Time) shownImport {
	s := shownImport{
		ImportID: p.ImportID, Spec: p.SpecID, SpecVersion: p.SpecVersion, Bucket: p.Bucket, Key: p.Key, VersionID: p.VersionID, LastModified: p.LastModified,
		State: p.State, Error: p.Error, SizeBytes: p.SizeBytes, OffsetBytes: p.OffsetBytes, Line: p.Line, Rows: p.Rows, Rejected: p.Rejected,
		ProfileUpdates: p.ProfileUpdates, SegmentMembers: p.SegmentMembers, Events: p.Events, Segment: p.SegmentID, SegmentMode: p.SegmentMode,
		FilesPrefix: p.FilesPrefix, Undoes: p.Undoes, Again: p.Again,
		AnnouncedAt: p.AnnouncedAt, StartedAt: p.StartedAt, UpdatedAt: p.UpdatedAt,
	}
	if s.Segment == "" {
		s.SegmentMode = ""
	}
	if importfile.Ended(p.State) {
		took := p.UpdatedAt.Sub(p.StartedAt).Seconds()
		s.Seconds = took
		if took > 0 {
			rate := float64(p.Rows) / took
			s.RowsPerSecond = &rate
		}
		return s
	}
	s.Seconds = max(0, now.Sub(p.StartedAt).Seconds())
	if silent := now.Sub(p.UpdatedAt); silent > importSilence {
		s.silent = silent
		return s // it is not known to be read at all
	}
	if p.State != importfile.StateReading {
		return s
	}
	// Of older signs that were compacted away the start still tells.
	since := p.signs[0]
	if len(p.signs) == 1 {
		since = importSign{at: p.StartedAt}
	}
	span := p.UpdatedAt.Sub(since.at).Seconds()
	if span < 1 {
		return s
	}
	rate := float64(p.Rows-since.rows) / span
	s.RowsPerSecond = &rate
	if read := p.OffsetBytes - since.bytes; read > 0 {
		// What should be over by now is not known any more.
		if left := float64(p.SizeBytes-p.OffsetBytes)/(float64(read)/span) - now.Sub(p.UpdatedAt).Seconds(); left > 0 {
			s.SecondsLeft = &left
		}
	}
	return s
}

// importTable is the topic imports as it is read.
type importTable struct {
	mu   sync.Mutex
	byID map[identity.ID]*importPicture

	caughtUp func(context.Context) error // waits until all is read that is there now
}

func (t *importTable) apply(e *event.Import) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[e.ImportID] == nil {
		t.byID[e.ImportID] = &importPicture{}
	}
	t.byID[e.ImportID].apply(e)
}

// last returns a copy of an import's last record; nil if there is none.
func (t *importTable) last(id identity.ID) *event.Import {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byID[id]
	if p == nil {
		return nil
	}
	e := p.Import
	return &e
}

// list returns the imports as they stand now, the newest last.
func (t *importTable) list() []shownImport {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	out := make([]shownImport, 0, len(t.byID))
	for _, p := range t.byID {
		out = append(out, p.at(now))
	}
	slices.SortFunc(out, func(x, y shownImport) int {
		return cmp.Or(x.AnnouncedAt.Compare(y.AnnouncedAt), strings.Compare(x.Key, y.Key), strings.Compare(x.ImportID.String(), y.ImportID.String()))
	})
	return out
}

// withImports reads what was in the topic imports at the moment of the call, and
// goes on reading while do runs. An import that is in a transaction now is shown as it was before it.
func (a *app) withImports(ctx context.Context, do func(context.Context, *importTable) error) error {
	t := &importTable{byID: map[identity.ID]*importPicture{}}
	return follow(ctx, a, topic.Imports, t.apply, func(ctx context.Context, table *kafka.Table) error {
		t.caughtUp = table.CaughtUp
		return do(ctx, t)
	})
}

func (a *app) importList(ctx context.Context, filter *importFilter, limit int) error {
	var all []shownImport
	if err := a.withImports(ctx, func(_ context.Context, t *importTable) error {
		all = t.list()
		return nil
	}); err != nil {
		return err
	}
	list := []shownImport{}
	total, room := 0, limit
	for _, i := range slices.Backward(all) {
		if !filter.matches(&i) {
			continue
		}
		total++
		if importfile.Ended(i.State) && limit >= 0 {
			if room == 0 {
				continue
			}
			room--
		}
		list = append(list, i)
	}
	slices.Reverse(list)
	if a.asJSON {
		return a.printJSON(list)
	}
	switch {
	case len(all) == 0:
		fmt.Fprintln(a.out, "nothing has been imported yet")
		return nil
	case len(list) == 0:
		fmt.Fprintf(a.out, "none of %s imports\n", thousands(int64(len(all))))
		return nil
	}
	a.printImports(list)
	newest := list[len(list)-1]
	fmt.Fprintf(a.err, "%d of %s; hikyaku imports show %s shows the last\n", len(list), thousands(int64(total)), shortID(newest.ImportID))
	return nil
}

func (a *app) printImports(list []shownImport) {
	rows := make([][]string, len(list))
	for n := range list {
		i := &list[n]
		rows[n] = []string{shortID(i.ImportID), i.State, i.Spec, i.title(), thousands(i.Rows), thousands(i.Rejected), i.share(), i.rate(), i.time(), i.StartedAt.UTC().Format(time.DateTime)}
	}
	a.table([]string{"IMPORT", "STATE", "SPEC", "OBJECT", "ROWS", "REJECTED", "READ", "ROWS/S", "TIME", "STARTED (UTC)"}, rows)
}

// shortID is enough of an id to name it.
func shortID(id identity.ID) string { return id.String()[:12] }

// share is what was read of the object's size.
func (i *shownImport) share() string {
	size := fmt.Sprintf("% .1f", decor.SizeB1000(i.SizeBytes))
	if i.SizeBytes == 0 {
		return size
	}
	return i.percent() + "of " + size
}

// percent is empty of an empty object.
func (i *shownImport) percent() string {
	if i.SizeBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%d%% ", min(100, 100*i.OffsetBytes/i.SizeBytes))
}

func (i *shownImport) rate() string {
	if i.RowsPerSecond == nil {
		return ""
	}
	return thousands(int64(*i.RowsPerSecond))
}

func (i *shownImport) time() string {
	switch {
	case importfile.Ended(i.State):
		return "took " + roughly(i.Seconds)
	case i.silent > 0:
		return "no sign for " + roughly(i.silent.Seconds())
	case i.SecondsLeft != nil:
		return roughly(*i.SecondsLeft) + " left"
	}
	return "for " + roughly(i.Seconds)
}

// roughly is a duration for people.
func roughly(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// importsFollowed follows what has not ended and says then how it ended.
func (a *app) importsFollowed(ctx context.Context, filter *importFilter) error {
	var list []shownImport
	if err := a.withImports(ctx, func(ctx context.Context, t *importTable) (err error) {
		show, done := a.importViewer(a.asJSON)
		defer done()
		list, err = followImports(ctx, t, filter, show)
		return err
	}); err != nil {
		return err
	}
	if !a.asJSON && len(list) > 0 {
		a.printImports(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.err, "nothing is being imported")
	}
	return failedImports(list)
}

// failedImports is the broken promise of imports that were followed.
func failedImports(list []shownImport) error {
	var failed []string
	for _, i := range list {
		if i.State == importfile.StateFailed {
			failed = append(failed, fmt.Sprintf("import %s of %s has failed: %s", shortID(i.ImportID), printable(i.Key), printable(i.Error)))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return broken("%s", strings.Join(failed, "\nhikyaku: "))
}

// followImports looks four times a second until all that had not ended, or began
// meanwhile, have ended, and returns these.
func followImports(ctx context.Context, t *importTable, filter *importFilter, show func([]shownImport) error) ([]shownImport, error) {
	followed := map[identity.ID]bool{}
	if filter.only != nil {
		followed[*filter.only] = true
	}
	for {
		var list []shownImport
		open := false
		for _, i := range t.list() {
			if !filter.matches(&i) || importfile.Ended(i.State) && !followed[i.ImportID] {
				continue
			}
			followed[i.ImportID] = true
			open = open || !importfile.Ended(i.State)
			list = append(list, i)
		}
		if err := show(list); err != nil {
			return nil, err
		}
		if !open {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// importViewer returns what shows the imports that are followed, and what ends it:
// JSON Lines, bars, or changes of state.
func (a *app) importViewer(asJSON bool) (show func([]shownImport) error, done func()) {
	width, terminal := a.terminal()
	if terminal && !asJSON {
		bars := a.newImportBars(width)
		return bars.show, bars.done
	}
	shown := map[identity.ID]shownImport{}
	return func(list []shownImport) error {
		for _, i := range list {
			before, known := shown[i.ImportID]
			shown[i.ImportID] = i
			switch {
			case asJSON && (!known || !before.UpdatedAt.Equal(i.UpdatedAt)):
				if err := a.printJSON(i); err != nil {
					return err
				}
			case !asJSON && before.State != i.State:
				fmt.Fprintf(a.err, "%s: %s, %s rows, %s rejected\n", printable(i.Key), i.State, thousands(i.Rows), thousands(i.Rejected))
			}
		}
		return nil
	}, func() {}
}

// importBars is a bar for each import that is followed.
type importBars struct {
	progress *mpb.Progress
	bars     map[identity.ID]*importBar
	width    int
}

type importBar struct {
	*mpb.Bar
	now atomic.Pointer[shownImport] // it is drawn from another goroutine
}

func (a *app) newImportBars(width int) *importBars {
	return &importBars{mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(width-2), mpb.WithAutoRefresh()), map[identity.ID]*importBar{}, width}
}

func (b *importBars) show(list []shownImport) error {
	for _, i := range list {
		bar := b.bars[i.ImportID]
		if bar == nil {
			bar = &importBar{}
			bar.now.Store(&i)
			name := func(decor.Statistics) string { return lastOf(printable(bar.now.Load().Key), b.width/4) + " " }
			// Without a total at first: a bar that has one ends when all is read.
			bar.Bar = b.progress.AddBar(0, mpb.PrependDecorators(decor.Any(name, decor.WCSyncWidthR), decor.Any(bar.state, decor.WCSyncWidthR)),
				mpb.AppendDecorators(decor.Any(bar.counts, decor.WCSyncSpaceR), decor.Any(bar.pace, decor.WCSyncSpaceR)))
			b.bars[i.ImportID] = bar
		}
		bar.now.Store(&i)
		bar.SetTotal(max(i.SizeBytes, 1), false)
		bar.SetCurrent(min(i.OffsetBytes, i.SizeBytes))
		switch i.State {
		case importfile.StateDone, importfile.StateUndone:
			bar.SetTotal(-1, true)
		case importfile.StateFailed:
			bar.Abort(false) // it stays as far as it came
		}
	}
	return nil
}

func (b *importBars) done() {
	for bar := range maps.Values(b.bars) {
		bar.Abort(false) // does nothing to a bar that is complete
	}
	b.progress.Wait()
}

func (b *importBar) state(decor.Statistics) string { return b.now.Load().State + " " }

func (b *importBar) counts(decor.Statistics) string {
	i := b.now.Load()
	text := i.percent() + thousands(i.Rows) + " rows"
	if i.Rejected > 0 {
		text += ", " + thousands(i.Rejected) + " rejected"
	}
	return text
}

func (b *importBar) pace(decor.Statistics) string {
	i := b.now.Load()
	if i.RowsPerSecond == nil {
		return i.time()
	}
	return i.rate() + "/s, " + i.time()
}

// lastOf keeps the end of a key, which differs from file to file.
func lastOf(s string, width int) string {
	if r := []rune(s); len(r) > max(width, 8) {
		return "…" + string(r[len(r)-max(width, 8)+1:])
	}
	return s
}

// findImport finds the import that an argument names, and the newest of an object.
func findImport(arg string, list []shownImport) (*shownImport, error) {
	var named *shownImport
	for n := range list {
		i := &list[n] // the newest is the last
		if i.Undoes != "" || i.Key != arg && "s3://"+i.Bucket+"/"+i.Key != arg && !strings.HasSuffix(i.Key, "/"+arg) {
			continue
		}
		if named != nil && (named.Key != i.Key || named.Bucket != i.Bucket) {
			return nil, usage("%s is the end of more than one key: s3://%s/%s and s3://%s/%s", arg, named.Bucket, named.Key, i.Bucket, i.Key)
		}
		named = i
	}
	if named != nil {
		return named, nil
	}
	if prefix := strings.ToLower(strings.ReplaceAll(arg, "-", "")); len(prefix) >= 4 {
		for n := range list {
			if !strings.HasPrefix(list[n].ImportID.String(), prefix) {
				continue
			}
			if named != nil {
				return nil, usage("%s is the beginning of more than one id: %s and %s", arg, named.ImportID, list[n].ImportID)
			}
			named = &list[n]
		}
	}
	if named == nil {
		return nil, usage("there is no import %s; hikyaku imports --all lists them. IMPORT is an id, four or more digits of its beginning, or an object's key", arg)
	}
	return named, nil
}

// wholeImport is what show shows.
type wholeImport struct {
	shownImport
	Current *bool    `json:"segment_current"` // whether its segment is made up of this import; null of one that is not done or has none
	Next    []string `json:"next"`            // what to do, or what will be
}

func (a *app) importShown(ctx context.Context, arg string, follow bool) error {
	w := wholeImport{}
	if err := a.withImports(ctx, func(ctx context.Context, t *importTable) error {
		found, err := findImport(arg, t.list())
		if err != nil {
			return err
		}
		w.shownImport = *found
		if !follow || importfile.Ended(w.State) {
			return nil
		}
		show, done := a.importViewer(false) // the answer is one value, at the end
		defer done()
		list, err := followImports(ctx, t, &importFilter{only: &w.ImportID}, show)
		if err == nil {
			w.shownImport = list[0]
		}
		return err
	}); err != nil {
		return err
	}
	if w.Segment != "" && w.State == importfile.StateDone {
		store, err := a.definitions(ctx)
		if err != nil {
			return err
		}
		if head, ok := store.Head(definitions.KindSegment, w.Segment); ok {
			segment, err := definitions.DecodeSegment(head)
			if err != nil {
				return err
			}
			current := slices.Contains(segment.Imports, w.ImportID)
			w.Current = &current
		}
	}
	w.Next = w.next()
	if a.asJSON {
		if err := a.printJSON(w); err != nil {
			return err
		}
	} else {
		a.printImport(&w)
	}
	if follow {
		return failedImports([]shownImport{w.shownImport})
	}
	return nil
}

// next says what to do, a sentence each.
func (w *wholeImport) next() []string {
	out := []string{}
	switch {
	case w.silent > 0:
		out = append(out, "Its importer has given no sign for "+roughly(w.silent.Seconds())+": hikyaku status says whether one runs. Another takes the import over and goes on at the next row.")
	case w.State == importfile.StateAnnounced || w.State == importfile.StateReading:
		out = append(out, "hikyaku imports show "+shortID(w.ImportID)+" --follow follows it.")
	case w.State == importfile.StatePublished:
		out = append(out, "All its rows are in Kafka. It waits until the audience-resolver and the event-collector have loaded them; hikyaku status says what they have still to read.")
	case w.State == importfile.StateLoaded:
		out = append(out, "All its rows are loaded. What remains is to point its segment at it, if it has one, and to write the report.")
	case w.State == importfile.StateFailed && w.Undoes == "":
		if made := w.ProfileUpdates + w.SegmentMembers + w.Events; made > 0 {
			out = append(out, fmt.Sprintf("What was imported of it before, %s records, stays; hikyaku import undo %s takes it back.", thousands(made), shortID(w.ImportID)))
		}
		if w.Segment != "" {
			out = append(out, "The segment "+w.Segment+" is as it was before.")
		}
		if w.Spec == pinpoint.SpecID {
			out = append(out, "Upload a mended file: that is another import. The import spec is built in; one of your own with the prefix of the file's folder takes its place.")
		} else {
			out = append(out, "If the import spec is wrong, mend it and hikyaku apply it: the object is imported again by itself. If the file is wrong, upload a mended one: that is another import.")
		}
	}
	switch {
	case w.State == importfile.StateUndone:
		out = append(out, "What it changed is as it was before. hikyaku import again "+shortID(w.ImportID)+" imports the object once more.")
	case w.Undoes != "" && w.State == importfile.StateDone:
		return append(out, "What import "+w.Undoes[:12]+" changed is as it was before, but for what was changed again since.")
	case w.Undoes != "" && importfile.Ended(w.State):
		return append(out, "What it had not taken back by then stays as it is.")
	case w.Undoes != "":
		return out
	}
	if w.Rejected > 0 {
		out = append(out, "hikyaku topic read "+string(topic.ImportRejects)+" --key "+w.ImportID.String()+" prints the rejected rows with line, column and reason, for 30 days.")
	}
	if importfile.Ended(w.State) {
		where := "beside the object"
		if w.FilesPrefix != "" {
			where = "under " + w.FilesPrefix
		}
		out = append(out, "The rejects file and the report lie "+where+", unless the object was replaced or removed, or the importer has no right to write there.")
	}
	if w.State == importfile.StateDone && w.Rejected > 0 {
		if w.SegmentMode == definition.SegmentReplace {
			out = append(out, "To import them, mend the whole file and upload it: one with only these rows would become the whole segment.")
		} else {
			out = append(out, "To import them, mend them and upload them as a file of their own.")
		}
	}
	return out
}

// madeOf says how many records an import made.
func madeOf(segmentMode string, profileUpdates, segmentMembers, events int64) string {
	members := "segment members"
	if segmentMode == definition.SegmentRemove {
		members = "removals from the segment"
	}
	return fmt.Sprintf("%s profile updates, %s %s, %s events", thousands(profileUpdates), thousands(segmentMembers), members, thousands(events))
}

func (a *app) printImport(w *wholeImport) {
	state := w.State
	if w.Error != "" {
		state += ": " + w.Error
	}
	rows := [][]string{{"state", state}}
	if w.Undoes != "" {
		rows = append(rows, []string{"undoes", w.Undoes})
	}
	rows = append(rows, []string{"object", "s3://" + w.Bucket + "/" + w.Key})
	if w.VersionID != "" {
		rows = append(rows, []string{"version", w.VersionID})
	}
	rows = append(rows, []string{"object of", moment(w.LastModified)}, []string{"spec", w.Spec + ", version " + strconv.FormatInt(w.SpecVersion, 10)},
		[]string{"read", w.share()}, []string{"rows", fmt.Sprintf("%s, of which %s were rejected", thousands(w.Rows), thousands(w.Rejected))},
		[]string{"made", madeOf(w.SegmentMode, w.ProfileUpdates, w.SegmentMembers, w.Events)})
	if w.Segment != "" {
		segment := w.Segment
		switch {
		case w.Current == nil && w.SegmentMode != definition.SegmentReplace:
			segment += ", mode " + w.SegmentMode
		case w.Current == nil:
		case !*w.Current:
			segment += ", made up of another import now"
		case w.SegmentMode == definition.SegmentAdd:
			segment += ", to which it adds"
		case w.SegmentMode == definition.SegmentRemove:
			segment += ", from which it removes"
		default:
			segment += ", made up of this import"
		}
		rows = append(rows, []string{"segment", segment})
	}
	if w.RowsPerSecond != nil {
		rows = append(rows, []string{"rows/s", w.rate()})
	}
	rows = append(rows, []string{"started", moment(w.StartedAt)}, []string{"last sign", moment(w.UpdatedAt)}, []string{"time", w.time()})
	if importfile.Ended(w.State) && w.Undoes == "" {
		beside := w.FilesPrefix + w.Key
		rows = append(rows, []string{"rejects", beside + importfile.RejectsSuffix}, []string{"report", beside + importfile.ReportSuffix})
	}
	a.table([]string{"IMPORT", w.ImportID.String()}, rows)
	if len(w.Next) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, s := range w.Next {
		fmt.Fprintln(a.out, printable(s))
	}
}
