// Package mapping turns a row of a file into records, as an import spec says.
// It knows values only: no clock, no Kafka, no files. The same row of the same
// import always gives the same records (I5).
package mapping

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

// Import is what the records of one import have in common.
type Import struct {
	ID        identity.ID
	StartedAt time.Time // receipt of everything in it
	// LastModified is when the file said what it says: an unsubscribe that came
	// after it wins over the file.
	LastModified time.Time
}

// earliest is before all that can have happened to a person.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Patch is what the profile updates of an import have in common.
func (i Import) Patch() event.ProfilePatch {
	// Neither the future nor a time before there was any of this: a file whose
	// time was set by hand must not win over everything for ever.
	at := i.LastModified
	if at.After(i.StartedAt) {
		at = i.StartedAt
	}
	if at.Before(earliest) {
		at = earliest
	}
	return event.ProfilePatch{OccurredAt: at, SetAt: i.StartedAt, SetBy: i.setBy()}
}

// Member is what the members of the segment that an import fills have in common.
func (i Import) Member(segmentID string) event.SegmentMember {
	return event.SegmentMember{SegmentID: segmentID, ImportID: i.ID, OccurredAt: i.StartedAt}
}

func (i Import) setBy() string { return "import:" + i.ID.String() }

// Reject says why a row makes no records. It never quotes the row.
type Reject struct {
	Column string // in the header; for a Liquid text its place in the spec; empty if it concerns the whole row
	Reason string
}

// Records is what a row makes; what the spec does not ask for is nil.
type Records struct {
	UserID string
	Patch  *event.ProfilePatch
	Member *event.SegmentMember
	Event  *event.Event
}

// Mapper maps rows of one import. It is for one goroutine.
type Mapper struct {
	columns int
	imp     Import

	userID *value

	hasProfile bool
	addresses  []*value
	attributes []*value
	consents   []*value
	locale     *value
	timeZone   *value

	segmentID string
	member    []*value

	name       *value
	occurredAt *value
	eventID    *value
	properties []*value

	// For Liquid texts: what they read, and where it stands in the row.
	vars, row     map[string]any
	bound, rowAt  []binding
	usesLiquid    bool
	userIDColumn  int // of the column named user_id; -1 if there is none
	out           []byte
	zones         Zones
	patch         event.ProfilePatch
	segment       event.SegmentMember
	behaviour     event.Event
	localeText    string
	timeZoneText  string
	latest, began time.Time
}

type binding struct {
	name  string
	index int
}

// value is a compiled definition.Value.
type value struct {
	key      string // of the attribute, property or channel
	where    string // for rejects
	index    int    // of the column; -1 for a Liquid text
	template *liquid.Template
	kind     string
	layout   string
	zone     *time.Location
	trim     bool
	comma    bool // decimals are written with one
}

// Columns are the names of the columns that a spec reads, for formats without a
// header. The error names everything that cannot be found out.
func Columns(engine *liquid.Engine, spec *definition.ImportSpec) ([]string, error) {
	c := compiler{engine: engine, collects: true}
	(&Mapper{}).compile(&c, spec)
	for _, t := range c.templates {
		for _, path := range t.Variables() {
			if path[0] == rowName && len(path) == 1 {
				c.problem("a Liquid text computes which column of the row it reads, and files of format %s have no header to compute it from", spec.Source.Format)
			}
		}
	}
	return c.header, c.err()
}

// Compile fits a spec to a file's header. The error names everything that the
// file lacks, and means that no row of it can be mapped.
func Compile(engine *liquid.Engine, spec *definition.ImportSpec, header []string, imp Import) (*Mapper, error) {
	c := compiler{engine: engine, header: header}
	m := &Mapper{
		columns: len(header), imp: imp,
		zones: Zones{}, userIDColumn: slices.Index(header, userIDName),
		began: imp.StartedAt, latest: imp.StartedAt.Add(24 * time.Hour),
	}
	m.compile(&c, spec)
	if err := c.err(); err != nil {
		return nil, err
	}
	m.bind(&c)
	m.prepare()
	return m, nil
}

func (m *Mapper) compile(c *compiler, spec *definition.ImportSpec) {
	m.userID = c.value("", "user_id", &spec.UserID, false)
	if p := spec.Profile; p != nil {
		m.hasProfile = true
		m.addresses = c.values("profile.addresses", p.Addresses)
		m.attributes = c.values("profile.attributes", p.Attributes)
		m.consents = c.values("profile.consents", p.Consents)
		m.locale = c.value("", "profile.locale", p.Locale, true)
		m.timeZone = c.value("", "profile.time_zone", p.TimeZone, true)
	}
	if s := spec.Segment; s != nil {
		m.segmentID = s.ID
		m.member = c.values("segment.attributes", s.Attributes)
	}
	if e := spec.Event; e != nil {
		m.name = c.value("", "event.name", &e.Name, true)
		m.occurredAt = c.value("", "event.occurred_at", &e.OccurredAt, true)
		m.eventID = c.value("", "event.id", e.ID, true)
		m.properties = c.values("event.properties", e.Properties)
	}
}

// userIDName is what Liquid texts call the person.
const userIDName = "user_id"

// rowName is the map under which Liquid texts find columns whose names are no
// identifiers.
const rowName = "row"

// prepare fills in what is the same in every row.
func (m *Mapper) prepare() {
	m.patch = m.imp.Patch()
	m.segment = m.imp.Member(m.segmentID)
	m.behaviour = event.Event{ReceivedAt: m.imp.StartedAt, Source: m.imp.setBy()}
}

// Row maps the row that begins at line, the file's record-th (from 1, rejected
// rows counted). The records are valid until the next call.
func (m *Mapper) Row(fields []string, line, record int64) (Records, *Reject) {
	if len(fields) != m.columns {
		return Records{}, Ragged(len(fields), m.columns)
	}
	if m.usesLiquid {
		m.fill(fields)
	}
	var out Records
	var rej *Reject
	if out.UserID, rej = m.text(m.userID, fields); rej != nil {
		return Records{}, rej
	}
	if out.UserID == "" {
		return Records{}, &Reject{m.userID.where, "the row has no user_id"}
	}
	if rej = CheckUserID(out.UserID, m.userID.where); rej != nil {
		return Records{}, rej
	}
	if m.usesLiquid {
		m.vars[userIDName] = out.UserID
	}
	if m.hasProfile {
		if rej = m.mapProfile(out.UserID, fields); rej != nil {
			return Records{}, rej
		}
		out.Patch = &m.patch
	}
	if m.segmentID != "" {
		m.segment.UserID, m.segment.Line = out.UserID, line
		if m.segment.Attributes, rej = m.named(m.segment.Attributes[:0], m.member, fields); rej != nil {
			return Records{}, rej
		}
		out.Member = &m.segment
	}
	if m.name != nil {
		if rej = m.mapEvent(out.UserID, fields, record); rej != nil {
			return Records{}, rej
		}
		out.Event = &m.behaviour
	}
	return out, nil
}

// Ragged rejects a row that has more columns than its header, or fewer.
func Ragged(columns, header int) *Reject {
	return &Reject{"", fmt.Sprintf("the row has %d columns, the header has %d", columns, header)}
}

// CheckUserID rejects what is too long to be the key of every record about a person.
func CheckUserID(userID, column string) *Reject {
	if len(userID) > 512 {
		return &Reject{column, "the user_id is longer than 512 bytes"}
	}
	return nil
}

func (m *Mapper) mapProfile(userID string, fields []string) (rej *Reject) {
	p := &m.patch
	p.UserID = userID
	if p.Set, rej = m.named(p.Set[:0], m.attributes, fields); rej != nil {
		return rej
	}
	p.Addresses = p.Addresses[:0]
	for _, v := range m.addresses {
		s, rej := m.text(v, fields)
		if rej != nil {
			return rej
		}
		if s != "" {
			p.Addresses = append(p.Addresses, event.AddressPatch{Channel: v.key, Address: s})
		}
	}
	p.Consents = p.Consents[:0]
	for _, v := range m.consents {
		s, rej := m.text(v, fields)
		switch {
		case rej != nil:
			return rej
		case s == "":
		case s == "subscribed" || s == "unsubscribed":
			p.Consents = append(p.Consents, event.ConsentPatch{Channel: v.key, Consent: s})
		default:
			return &Reject{v.where, "the consent is neither subscribed nor unsubscribed"}
		}
	}
	p.Locale, p.TimeZone = nil, nil
	if m.locale != nil {
		if m.localeText, rej = m.text(m.locale, fields); rej != nil {
			return rej
		}
		if m.localeText != "" {
			p.Locale = &m.localeText
		}
	}
	if m.timeZone != nil {
		if m.timeZoneText, rej = m.text(m.timeZone, fields); rej != nil {
			return rej
		}
		if m.timeZoneText != "" {
			if !m.zones.Known(m.timeZoneText) {
				return &Reject{m.timeZone.where, "not an IANA time zone"}
			}
			p.TimeZone = &m.timeZoneText
		}
	}
	return nil
}

// Zones are names that were seen, and whether they are those of time zones.
type Zones map[string]bool

// Known says whether a name is that of an IANA time zone.
func (z Zones) Known(name string) bool {
	exists, seen := z[name]
	if !seen {
		_, err := time.LoadLocation(name)
		exists = err == nil && name != "" && name != "Local"
		// A file of nonsense must not fill the memory.
		if len(z) < 1000 {
			z[strings.Clone(name)] = exists
		}
	}
	return exists
}

func (m *Mapper) mapEvent(userID string, fields []string, record int64) (rej *Reject) {
	e := &m.behaviour
	e.UserID = userID
	if e.Name, rej = m.text(m.name, fields); rej != nil {
		return rej
	}
	if e.Name == "" {
		return &Reject{m.name.where, "the event has no name"}
	}
	text, rej := m.text(m.occurredAt, fields)
	if rej != nil {
		return rej
	}
	if text == "" {
		return &Reject{m.occurredAt.where, "the event has no time"}
	}
	at, rej := m.occurredAt.time(text)
	switch {
	case rej != nil:
		return rej
	case at.Before(earliest):
		return &Reject{m.occurredAt.where, "the time is before 2000-01-01"}
	case at.After(m.latest):
		return &Reject{m.occurredAt.where, "the time is more than a day after receipt"}
	case at.After(m.began):
		at = m.began
	}
	e.OccurredAt = at
	if m.eventID != nil {
		if e.EventID, rej = m.text(m.eventID, fields); rej != nil {
			return rej
		}
		if e.EventID == "" {
			return &Reject{m.eventID.where, "the event has no id"}
		}
	} else {
		e.EventID = identity.ImportedEvent(m.imp.ID, record)
	}
	e.Properties, rej = m.named(e.Properties[:0], m.properties, fields)
	return rej
}

// named appends the values that the row has, in the order of their names.
func (m *Mapper) named(out []event.NamedValue, values []*value, fields []string) ([]event.NamedValue, *Reject) {
	for _, v := range values {
		s, rej := m.text(v, fields)
		if rej != nil {
			return out, rej
		}
		if s == "" {
			continue
		}
		typed, rej := v.typed(s)
		if rej != nil {
			return out, rej
		}
		out = append(out, event.NamedValue{Name: v.key, Value: typed})
	}
	return out, nil
}

// text is the value as it stands in the row or comes out of its Liquid text.
func (m *Mapper) text(v *value, fields []string) (string, *Reject) {
	if v.template == nil {
		s := fields[v.index]
		if v.trim {
			s = strings.TrimSpace(s)
		}
		return s, nil
	}
	var err error
	// Its own limits end it; there is nobody to cancel it.
	if m.out, err = v.template.Append(context.Background(), m.out[:0], m.vars); err != nil {
		return "", &Reject{v.where, err.Error()}
	}
	return string(m.out), nil
}

// bind lists what the Liquid texts read.
func (m *Mapper) bind(c *compiler) {
	m.usesLiquid = len(c.templates) > 0
	if !m.usesLiquid {
		return
	}
	m.vars, m.row = map[string]any{}, map[string]any{}
	m.vars[rowName] = m.row
	names, inRow := map[string]bool{}, map[string]bool{}
	for _, t := range c.templates {
		for _, path := range t.Variables() {
			switch {
			case path[0] != rowName:
				names[path[0]] = true
			case len(path) > 1:
				inRow[path[1]] = true
			default: // an index that is computed: it may be any
				for _, h := range c.header {
					inRow[h] = true
				}
			}
		}
	}
	for i, h := range c.header {
		if names[h] && h != userIDName {
			m.bound = append(m.bound, binding{h, i})
		}
		if inRow[h] {
			m.rowAt = append(m.rowAt, binding{h, i})
		}
	}
}

// fill hands a row to the Liquid texts.
func (m *Mapper) fill(fields []string) {
	for _, b := range m.bound {
		m.vars[b.name] = fields[b.index]
	}
	for _, b := range m.rowAt {
		m.row[b.name] = fields[b.index]
	}
	// Until the person is known, the name means the column.
	delete(m.vars, userIDName)
	if m.userIDColumn >= 0 {
		m.vars[userIDName] = fields[m.userIDColumn]
	}
}

// compiler collects what is wrong, so that a file's owner hears all at once.
type compiler struct {
	engine    *liquid.Engine
	header    []string
	collects  bool // the header from what the spec names
	templates []*liquid.Template
	problems  []string
}

func (c *compiler) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(c.problems, "; "))
}

func (c *compiler) problem(format string, a ...any) {
	p := fmt.Sprintf(format, a...)
	if !slices.Contains(c.problems, p) {
		c.problems = append(c.problems, p)
	}
}

func (c *compiler) values(where string, values map[string]definition.Value) []*value {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	sort.Strings(names) // as records carry them
	out := make([]*value, 0, len(names))
	for _, name := range names {
		v := values[name]
		out = append(out, c.value(name, where+"."+name, &v, true))
	}
	return out
}

// value compiles one; nil stays nil. personKnown says that user_id is the
// person's and not a column.
func (c *compiler) value(key, where string, v *definition.Value, personKnown bool) *value {
	if v == nil {
		return nil
	}
	out := &value{key: key, where: where, index: -1, kind: v.Type, layout: v.Layout, trim: v.Trim, comma: v.DecimalComma}
	if v.Type == definition.TypeTime {
		zone, err := time.LoadLocation(v.Zone)
		if err != nil {
			c.problem("%s: unknown time zone %q", where, v.Zone)
		}
		out.zone = zone
	}
	if v.Column != "" {
		out.where = v.Column
		out.index = c.column(v.Column)
		return out
	}
	t, err := c.engine.ParseExpression(v.Liquid)
	if err != nil {
		c.problem("%s: %v", where, err)
		return out
	}
	out.template = t
	c.templates = append(c.templates, t)
	for _, path := range t.Variables() {
		switch {
		case path[0] == rowName && len(path) > 1:
			c.column(path[1])
		case path[0] == rowName, path[0] == userIDName && personKnown:
		default:
			c.column(path[0])
		}
	}
	return out
}

// column finds a column that the spec names.
func (c *compiler) column(name string) int {
	at := slices.Index(c.header, name)
	if at < 0 && c.collects {
		c.header = append(c.header, name)
		return len(c.header) - 1
	}
	if at < 0 {
		c.problem("the header lacks the column %q that the spec names", name)
		return 0
	}
	if slices.Contains(c.header[at+1:], name) {
		c.problem("the header has the column %q more than once", name)
	}
	return at
}
