package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/guess"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

func (a *app) importCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "import", Short: "What a file would change; take an import back, or repeat it"}
	var spec, specFile string
	var offline bool
	plan := &cobra.Command{
		Use: "plan FILE", Short: "What importing a file would do, without doing it",
		Long: `plan reads a file on this machine as the importer would, with its own code, and writes nothing: how many rows there are, which
would be rejected and why, what would be written, whom of these people nobody knows yet, whose profiles would change, and who would
join and leave the segment. Everybody is compared with what ClickHouse has now; that needs about 40 bytes of memory for each person.

The spec is one that was applied (--spec ID), or one in a file that was not (--spec-file). With --offline nothing but the file and
the spec is looked at. Exit code 1 if the import would fail.

Without a spec, plan guesses one from the beginning of the file (format, delimiter, encoding, types, which column is the id and which
the address) and prints it as YAML, to be read, corrected and tried with --spec-file; nothing but the file is looked at. A segment
file of Amazon Pinpoint needs no spec: it is planned by the one that is built in, ` + pinpoint.SpecID + `.`,
		Example: "  hikyaku import plan people.csv > people.yaml\n  hikyaku import plan people.csv --spec-file people.yaml --offline\n  hikyaku import plan orders.csv.gz --spec retail-orders", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case spec != "" && specFile != "":
				return usage("say --spec ID or --spec-file FILE, not both")
			case spec == "" && specFile == "" && a.isPinpoint(args[0]):
				spec = pinpoint.SpecID
			case spec == "" && specFile == "":
				return a.guess(args[0])
			}
			return a.plan(cmd.Context(), args[0], spec, specFile, offline)
		},
	}
	plan.Flags().StringVar(&spec, "spec", "", "id of an import spec that was applied")
	plan.Flags().StringVar(&specFile, "spec-file", "", "file with an import spec that was not applied")
	plan.Flags().BoolVar(&offline, "offline", false, "compare with nothing; needs no Kafka and no ClickHouse with --spec-file")
	cmd.AddCommand(plan, a.undoCommand(), a.againCommand())
	return cmd
}

// planned is what an import would do.
type planned struct {
	File  string `json:"file"`
	Spec  string `json:"spec"`
	Error string `json:"error,omitempty"` // why it would fail

	// As in the import's report.
	Rows           int64 `json:"rows"`
	Rejected       int64 `json:"rejected"`
	ProfileUpdates int64 `json:"profile_updates"`
	SegmentMembers int64 `json:"segment_members"`
	Events         int64 `json:"events"`

	RejectedBy []rejectKind    `json:"rejected_by"`
	People     *plannedPeople  `json:"people,omitempty"`    // nil if nothing was compared
	Segment    *plannedSegment `json:"segment,omitempty"`   // nil if there is none, or nothing was compared
	NotTaken   []string        `json:"not_taken,omitempty"` // what the built-in spec makes nothing of, if the file has it
	Samples    []plannedRow    `json:"samples"`
}

type rejectKind struct {
	Column    string `json:"column,omitempty"`
	Reason    string `json:"reason"`
	Rows      int64  `json:"rows"`
	FirstLine int64  `json:"first_line"`
}

// plannedPeople are those whose rows are not rejected.
type plannedPeople struct {
	Listed  int64 `json:"listed"`
	New     int64 `json:"new"`     // without a profile now
	Changed int64 `json:"changed"` // with a profile that a row would change
	Same    int64 `json:"same"`
}

type plannedSegment struct {
	SegmentID string `json:"segment_id"`
	Mode      string `json:"mode"` // replace, add or remove
	Joins     int64  `json:"joins"`
	Stays     int64  `json:"stays"`
	Leaves    int64  `json:"leaves"`
}

// plannedRow is what one row makes.
type plannedRow struct {
	Line     int64             `json:"line"`
	UserID   string            `json:"user_id"`
	Profile  map[string]any    `json:"profile,omitempty"`
	Member   map[string]any    `json:"member,omitempty"`
	Event    string            `json:"event,omitempty"`
	At       *time.Time        `json:"occurred_at,omitempty"`
	Contents map[string]any    `json:"properties,omitempty"`
	Address  map[string]string `json:"addresses,omitempty"`
	Consent  map[string]string `json:"consents,omitempty"`
}

const (
	planSamples = 3
	planBatch   = 5000 // people who are looked up at once
)

func (a *app) plan(ctx context.Context, path, specID, specFile string, offline bool) error {
	spec, err := a.planSpec(ctx, specID, specFile)
	if err != nil {
		return err
	}
	p := &planning{app: a, spec: spec, result: planned{File: path, Spec: spec.ID, RejectedBy: []rejectKind{}, Samples: []plannedRow{}}}
	if spec.ID == pinpoint.SpecID {
		p.result.NotTaken = pinpoint.NotTaken()
	}
	if !offline {
		if err := p.connect(ctx); err != nil {
			return err
		}
	}
	if err := p.read(ctx, path); err != nil {
		return err
	}
	if a.asJSON {
		err = a.printJSON(&p.result)
	} else {
		p.print()
	}
	if err == nil && p.result.Error != "" {
		return broken("the import would fail: %s", p.result.Error)
	}
	return err
}

// isPinpoint says whether a file is a segment file of Amazon Pinpoint. What is wrong
// with it otherwise is said later.
func (a *app) isPinpoint(path string) bool {
	source, err := importfile.OpenLocal(path)
	if err != nil {
		return false
	}
	defer source.Close()
	if !guess.IsPinpoint(source) {
		return false
	}
	fmt.Fprintf(a.err, "%s is a segment file of Amazon Pinpoint: uploaded under PINPOINT_PREFIX, imports/pinpoint/ unless set otherwise, it is imported without an import spec\n", path)
	return true
}

// guess prints a spec for a file.
func (a *app) guess(path string) error {
	source, err := openFile(path)
	if err != nil {
		return err
	}
	defer source.Close()
	yaml, err := guess.Spec(filepath.Base(path), source)
	var invalid *rows.Invalid
	switch {
	case errors.As(err, &invalid):
		return broken("%s: %s", path, invalid.Reason)
	case err != nil:
		return fmt.Errorf("reading %s: %w", path, err)
	case a.asJSON:
		return a.printJSON(map[string]string{"file": path, "spec": yaml})
	}
	_, err = io.WriteString(a.out, yaml)
	return err
}

func openFile(path string) (*importfile.Local, error) {
	source, err := importfile.OpenLocal(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usage("there is no file %s", path)
	}
	return source, err
}

// planSpec is the spec in force, or the one in a file.
func (a *app) planSpec(ctx context.Context, id, file string) (*definition.ImportSpec, error) {
	if id == pinpoint.SpecID {
		return pinpoint.Spec(""), nil
	}
	if file == "" {
		store, err := a.definitions(ctx)
		if err != nil {
			return nil, err
		}
		spec, _, err := inForce[*definition.ImportSpec](store, definition.KindImportSpec, id)
		return spec, err
	}
	docs, err := definition.Load(file, definition.Options{ParseTemplate: liquid.New(liquid.Options{}).Check})
	if err != nil {
		return nil, a.refuse(file, err)
	}
	var found []*definition.ImportSpec
	for _, d := range docs {
		if spec, ok := d.Definition.(*definition.ImportSpec); ok {
			found = append(found, spec)
		}
	}
	if len(found) != 1 {
		return nil, usage("%s holds %d import specs; a plan is by one", file, len(found))
	}
	return found[0], nil
}

// planning is a plan in the making.
type planning struct {
	*app
	spec   *definition.ImportSpec
	result planned
	conn   *clickhouse.Conn // nil: nothing is compared

	rejects importfile.Tally
	seen    map[identity.ID]uint8 // what is known of each person listed
	pending map[string]*event.ProfilePatch
	segment event.SegmentPin // as it is now
}

// What is known of a person.
const (
	personKnown uint8 = 1 << iota
	personChanges
	personMember
)

func (p *planning) connect(ctx context.Context) (err error) {
	if p.conn, err = p.clickhouse(ctx); err != nil {
		return err
	}
	p.result.People = &plannedPeople{}
	if p.spec.Segment == nil {
		return nil
	}
	p.result.Segment = &plannedSegment{SegmentID: p.spec.Segment.ID, Mode: p.spec.Segment.ModeOrReplace()}
	store, err := p.definitions(ctx)
	if err != nil {
		return err
	}
	if head, ok := store.Head(definitions.KindSegment, p.spec.Segment.ID); ok {
		now, err := definitions.DecodeSegment(head)
		if err != nil {
			return err
		}
		p.segment = now.Pin(p.spec.Segment.ID)
	}
	return nil
}

// read goes through the file, as the importer's produce does.
func (p *planning) read(ctx context.Context, path string) error {
	source, err := openFile(path)
	if err != nil {
		return err
	}
	defer source.Close()
	p.seen, p.pending = map[identity.ID]uint8{}, map[string]*event.ProfilePatch{}
	engine := liquid.New(liquid.Options{})
	file, err := importfile.Open(engine, p.spec, source, importfile.Position{})
	if err != nil {
		return p.judge(err)
	}
	defer file.Close()
	now := time.Now().UTC()
	mapper, err := importfile.Compile(engine, p.spec, file.Header(), mapping.Import{ID: identity.Hash("plan", path), StartedAt: now, LastModified: source.LastModified()})
	if err != nil {
		p.result.Error = err.Error()
		return nil
	}
	for p.result.Error == "" {
		row, err := file.Next()
		if err == io.EOF {
			p.tooMany(true)
			break
		}
		if err != nil {
			if err := p.judge(err); err != nil {
				return err
			}
			break
		}
		p.row(mapper, file.Header(), row)
		p.tooMany(false)
		if len(p.pending) >= planBatch {
			if err := p.compare(ctx); err != nil {
				return err
			}
		}
		if p.result.Rows%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := p.compare(ctx); err != nil {
		return err
	}
	return p.sum(ctx)
}

// judge makes of what is wrong with the file a part of the plan.
func (p *planning) judge(err error) error {
	var invalid *rows.Invalid
	if errors.As(err, &invalid) {
		p.result.Error = invalid.Reason
		return nil
	}
	return err
}

func (p *planning) tooMany(all bool) {
	if p.spec.MaxRejects.Exceeded(p.result.Rejected, p.result.Rows, all) {
		p.result.Error = p.spec.MaxRejects.Failure(p.result.Rejected, p.result.Rows)
	}
}

func (p *planning) row(mapper importfile.Mapper, header []string, row rows.Row) {
	p.result.Rows++
	if m := row.Malformed; m != nil {
		p.reject(row.Line, m.Column(header), m.Reason)
		return
	}
	made, rej := mapper.Row(row.Fields, row.Line, p.result.Rows)
	if rej != nil {
		p.reject(row.Line, rej.Column, rej.Reason)
		return
	}
	if made.Patch != nil {
		p.result.ProfileUpdates++
	}
	if made.Member != nil {
		p.result.SegmentMembers++
	}
	if made.Event != nil {
		p.result.Events++
	}
	if len(p.result.Samples) < planSamples {
		p.sample(row.Line, &made)
	}
	if p.conn != nil {
		before := p.pending[made.UserID]
		if before == nil {
			before = &event.ProfilePatch{}
			p.pending[made.UserID] = before
		}
		if made.Patch != nil {
			merge(before, made.Patch)
		}
	}
}

// merge adds what a later row of the same person says.
func merge(into, later *event.ProfilePatch) {
	for _, v := range later.Set {
		into.Set = slices.DeleteFunc(into.Set, func(w event.NamedValue) bool { return w.Name == v.Name })
		into.Set = append(into.Set, v)
	}
	into.Addresses = append(into.Addresses, later.Addresses...)
	into.Consents = append(into.Consents, later.Consents...)
	if later.Locale != nil {
		locale := *later.Locale
		into.Locale = &locale
	}
	if later.TimeZone != nil {
		zone := *later.TimeZone
		into.TimeZone = &zone
	}
}

func (p *planning) reject(line int64, column, reason string) {
	p.result.Rejected++
	p.rejects.Add(line, column, reason)
}

func (p *planning) sample(line int64, made *mapping.Records) {
	s := plannedRow{Line: line, UserID: strings.Clone(made.UserID)}
	if patch := made.Patch; patch != nil {
		s.Profile, s.Address = anyMap(patch.Set), map[string]string{}
		for _, ad := range patch.Addresses {
			s.Address[ad.Channel] = strings.Clone(ad.Address)
		}
		for _, c := range patch.Consents {
			if s.Consent == nil {
				s.Consent = map[string]string{}
			}
			s.Consent[c.Channel] = c.Consent
		}
	}
	if made.Member != nil {
		s.Member = anyMap(made.Member.Attributes)
	}
	if e := made.Event; e != nil {
		at := e.OccurredAt
		s.Event, s.At, s.Contents = strings.Clone(e.Name), &at, anyMap(e.Properties)
	}
	p.result.Samples = append(p.result.Samples, s)
}

func anyMap(values []event.NamedValue) map[string]any {
	out := make(map[string]any, len(values))
	for _, v := range values {
		out[v.Name] = v.Value.Any()
	}
	return out
}

// compare looks up the people of the last rows.
func (p *planning) compare(ctx context.Context) error {
	if p.conn == nil || len(p.pending) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(p.pending))
	state := make(map[string]uint8, len(ids))
	if err := p.profiles(ctx, ids, state); err != nil {
		return err
	}
	if err := p.members(ctx, ids, state); err != nil {
		return err
	}
	for _, id := range ids {
		p.seen[identity.Hash(id)] |= state[id]
	}
	clear(p.pending)
	return nil
}

const plannedProfiles = `SELECT user_id, attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json, addresses, consents, locale, time_zone FROM profiles WHERE user_id IN (?)`

func (p *planning) profiles(ctx context.Context, ids []string, state map[string]uint8) error {
	found, err := p.conn.Query(ctx, plannedProfiles, ids)
	if err != nil {
		return fmt.Errorf("reading profiles: %w", err)
	}
	defer found.Close()
	for found.Next() {
		var now person
		var m typedMaps
		if err := found.Scan(append(append([]any{&now.userID}, m.into()...), &now.addresses, &now.consents, &now.locale, &now.timeZone)...); err != nil {
			return fmt.Errorf("reading profiles: %w", err)
		}
		now.attributes = m.values()
		state[now.userID] |= personKnown
		if changes(&now, p.pending[now.userID]) {
			state[now.userID] |= personChanges
		}
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("reading profiles: %w", err)
	}
	return nil
}

// changes says whether a patch sets anything that is otherwise now. That somebody
// has unsubscribed since the file was written, the resolver knows and the plan does
// not: it counts the change.
func changes(now *person, patch *event.ProfilePatch) bool {
	for _, v := range patch.Set {
		if have, ok := event.Lookup(now.attributes, v.Name); !ok || !have.Equal(v.Value) {
			return true
		}
	}
	for _, ad := range patch.Addresses {
		if now.addresses[ad.Channel] != ad.Address {
			return true
		}
	}
	for _, c := range patch.Consents {
		if now.consents[c.Channel] != c.Consent {
			return true
		}
	}
	return patch.Locale != nil && *patch.Locale != now.locale || patch.TimeZone != nil && *patch.TimeZone != now.timeZone
}

func (p *planning) members(ctx context.Context, ids []string, state map[string]uint8) error {
	if len(p.segment.ImportIDs) == 0 {
		return nil
	}
	q := audience.Segment(&p.segment, ids)
	found, err := p.conn.Query(ctx, q.SQL, q.Args...)
	if err != nil {
		return fmt.Errorf("reading members of segment %s: %w", p.spec.Segment.ID, err)
	}
	defer found.Close()
	for found.Next() {
		var id string
		if err := found.Scan(&id); err != nil {
			return fmt.Errorf("reading members of segment %s: %w", p.spec.Segment.ID, err)
		}
		state[id] |= personMember
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("reading members of segment %s: %w", p.spec.Segment.ID, err)
	}
	return nil
}

// sum adds up.
func (p *planning) sum(ctx context.Context) error {
	for _, k := range p.rejects.Kinds(func(a, b importfile.RejectKind) int { return int(a.FirstLine - b.FirstLine) }) {
		p.result.RejectedBy = append(p.result.RejectedBy, rejectKind{k.Column, k.Reason, k.Rows, k.FirstLine})
	}
	if p.conn == nil {
		return nil
	}
	people := p.result.People
	people.Listed = int64(len(p.seen))
	var listed int64 // of the segment's members
	for _, s := range p.seen {
		switch {
		case s&personKnown == 0:
			people.New++
		case s&personChanges != 0:
			people.Changed++
		default:
			people.Same++
		}
		if s&personMember != 0 {
			listed++
		}
	}
	if p.result.Segment == nil {
		return nil
	}
	members := uint64(listed)
	if len(p.segment.ImportIDs) > 0 {
		q := audience.Segment(&p.segment, nil)
		q.SQL = `SELECT uniqExact(user_id) FROM (` + q.SQL + `)`
		p.sql(q.SQL, q.Args...)
		if err := p.conn.QueryRow(ctx, q.SQL, q.Args...).Scan(&members); err != nil {
			return fmt.Errorf("counting members of segment %s: %w", p.spec.Segment.ID, err)
		}
	}
	p.result.Segment.judge(people.Listed, listed, int64(members))
	return nil
}

// judge says what becomes of the members, of whom some are among the people listed.
func (s *plannedSegment) judge(listed, listedMembers, members int64) {
	switch s.Mode {
	case definition.SegmentAdd:
		s.Joins, s.Stays = listed-listedMembers, members
	case definition.SegmentRemove:
		s.Stays, s.Leaves = members-listedMembers, listedMembers
	default:
		s.Joins, s.Stays, s.Leaves = listed-listedMembers, listedMembers, members-listedMembers
	}
}

func (p *planning) print() {
	a, o := p.app, &p.result
	mode := ""
	if p.spec.Segment != nil {
		mode = p.spec.Segment.Mode
	}
	fmt.Fprintf(a.out, "%s by %s: %s rows, %s rejected; %s\n",
		filepath.Base(o.File), o.Spec, thousands(o.Rows), thousands(o.Rejected), madeOf(mode, o.ProfileUpdates, o.SegmentMembers, o.Events))
	if n := o.People; n != nil {
		fmt.Fprintf(a.out, "%s people: %s are new, %s would change, %s would stay as they are\n", thousands(n.Listed), thousands(n.New), thousands(n.Changed), thousands(n.Same))
	}
	if s := o.Segment; s != nil {
		fmt.Fprintf(a.out, "segment %s (%s): %s would join, %s stay, %s leave\n", s.SegmentID, s.Mode, thousands(s.Joins), thousands(s.Stays), thousands(s.Leaves))
	}
	if len(o.RejectedBy) > 0 {
		fmt.Fprintln(a.out)
		var lines [][]string
		for _, r := range o.RejectedBy {
			lines = append(lines, []string{thousands(r.Rows), fmt.Sprint(r.FirstLine), r.Column, r.Reason})
		}
		p.table([]string{"rejected", "first line", "column", "reason"}, lines)
	}
	if len(o.NotTaken) > 0 {
		fmt.Fprintf(a.out, "\nnothing is made of: %s\n", strings.Join(o.NotTaken, "; "))
	}
	for _, s := range o.Samples {
		fmt.Fprintf(a.out, "\nline %d: %s\n", s.Line, s.UserID)
		for _, part := range []struct {
			name   string
			values map[string]any
		}{{"profile", s.Profile}, {"member", s.Member}, {"properties", s.Contents}} {
			for _, k := range slices.Sorted(maps.Keys(part.values)) {
				v := part.values[k]
				if t, ok := v.(time.Time); ok {
					v = t.Format(time.RFC3339Nano)
				}
				fmt.Fprintf(a.out, "  %s.%s = %v\n", part.name, k, v)
			}
		}
		for _, channel := range slices.Sorted(maps.Keys(s.Address)) {
			fmt.Fprintf(a.out, "  address.%s = %s\n", channel, s.Address[channel])
		}
		for _, channel := range slices.Sorted(maps.Keys(s.Consent)) {
			fmt.Fprintf(a.out, "  consent.%s = %s\n", channel, s.Consent[channel])
		}
		if s.Event != "" {
			fmt.Fprintf(a.out, "  event %s at %s\n", s.Event, s.At.Format(time.RFC3339))
		}
	}
}
