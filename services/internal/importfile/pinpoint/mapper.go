package pinpoint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
)

// Mapper maps the rows of one import. It is for one goroutine.
type Mapper struct {
	columns []column          // of CSV; nil where a row is an object
	width   int               // of the header
	known   map[string]*field // names in objects
	zones   mapping.Zones

	text       [texts]string      // of the row, by kind
	path       []byte             // in an object
	values     []string           // of one name
	attributes []attribute        // of the row
	taken      []event.NamedValue // whose names another attribute of the row has
	reject     *mapping.Reject

	hasSegment       bool
	patch            event.ProfilePatch
	member           event.SegmentMember
	locale, timeZone string
}

// column is a name in a header: several columns of one name are one value.
type column struct {
	field
	at []int
}

type attribute struct {
	*field
	value event.Value
}

const (
	maxKnown     = 10_000 // names that are remembered
	maxDepth     = 8      // of objects that are taken apart; those below are values
	maxNameRunes = 128    // of an attribute, as import specs have it
	maxNameBytes = 1 << 10
	channelEmail = "EMAIL"

	noNumber    = "not a number"
	nameTooLong = "the name of an attribute has 1 to 128 characters"
)

// channelPattern is what a channel is written like.
var channelPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,31}$`)

// Compile fits the mapping to a file's header: that of a CSV file, or Object alone. The
// error means that no row can be mapped.
func Compile(spec *definition.ImportSpec, header []string, imp mapping.Import) (*Mapper, error) {
	if err := check(spec, header); err != nil {
		return nil, err
	}
	m := &Mapper{zones: mapping.Zones{}, known: map[string]*field{}, width: len(header), patch: imp.Patch()}
	if spec.Segment != nil {
		m.hasSegment, m.member = true, imp.Member(spec.Segment.ID)
	}
	if slices.Equal(header, []string{Object}) {
		return m, nil
	}
	for i, h := range header {
		name := strings.TrimSpace(h)
		at := slices.IndexFunc(m.columns, func(c column) bool { return c.name == name })
		if at < 0 {
			at = len(m.columns)
			m.columns = append(m.columns, column{field: meaning(name)})
		}
		m.columns[at].at = append(m.columns[at].at, i)
	}
	return m, nil
}

// Row maps the row that begins at line. The records are valid until the next call.
func (m *Mapper) Row(fields []string, line, _ int64) (mapping.Records, *mapping.Reject) {
	m.text, m.attributes, m.reject = [texts]string{}, m.attributes[:0], nil
	switch {
	case len(fields) != m.width:
		return mapping.Records{}, mapping.Ragged(len(fields), m.width)
	case m.columns == nil:
		m.path = m.path[:0]
		m.object(gjson.Parse(fields[0]), 1)
	default:
		m.row(fields)
	}
	if m.reject == nil {
		m.person()
	}
	if m.reject != nil {
		return mapping.Records{}, m.reject
	}
	made := mapping.Records{UserID: m.patch.UserID, Patch: &m.patch}
	if m.hasSegment {
		m.member.UserID, m.member.Line = m.patch.UserID, line
		made.Member = &m.member
	}
	return made, nil
}

// row takes a row of CSV apart.
func (m *Mapper) row(fields []string) {
	for i := range m.columns {
		c := &m.columns[i]
		m.values = m.values[:0]
		for _, at := range c.at {
			if fields[at] != "" {
				m.values = append(m.values, fields[at])
			}
		}
		switch len(m.values) {
		case 0:
		case 1:
			m.set(&c.field, event.String(m.values[0]))
		default:
			m.set(&c.field, list(m.values))
		}
		if m.reject != nil {
			return
		}
	}
}

// list is more than one value.
func list(values []string) event.Value {
	if !slices.ContainsFunc(values, special) {
		return event.JSON(`["` + strings.Join(values, `","`) + `"]`) // as it comes out below
	}
	text, _ := json.Marshal(values) // of strings it cannot fail
	v, _ := event.FromJSON(text)
	return v
}

// special says whether a text is written otherwise in JSON.
func special(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return true
		}
	}
	return false
}

// object takes an object apart, whose name is the path, and those inside it. Each level
// reads what is below it once more.
func (m *Mapper) object(o gjson.Result, depth int) {
	above := len(m.path)
	o.ForEach(func(key, value gjson.Result) bool {
		m.path = append(m.path, key.Str...)
		switch {
		case len(m.path) > maxNameBytes:
			m.refuse(string(m.path), nameTooLong)
		case value.IsObject() && depth < maxDepth:
			m.path = append(m.path, '.')
			m.object(value, depth+1)
		default:
			v, ok := m.value(value)
			if !ok {
				m.refuse(string(m.path), noNumber)
			} else if !v.IsNull() {
				m.set(m.field(), v)
			}
		}
		m.path = m.path[:above]
		return m.reject == nil
	})
}

// field is what the path means.
func (m *Mapper) field() *field {
	f := m.known[string(m.path)]
	if f == nil {
		name := string(m.path)
		f = new(field)
		*f = meaning(name)
		if len(m.known) < maxKnown {
			m.known[name] = f
		}
	}
	return f
}

// value is what a value says: a list of one is that one, and nothing is null. It is
// false for a number that is too large.
func (m *Mapper) value(v gjson.Result) (event.Value, bool) {
	if v.IsArray() {
		m.values = m.values[:0]
		said, texts, last := 0, true, v
		v.ForEach(func(_, e gjson.Result) bool {
			if e.Type == gjson.Null || e.Type == gjson.String && e.Str == "" {
				return true
			}
			said, last = said+1, e
			if texts = texts && e.Type == gjson.String; texts {
				m.values = append(m.values, e.Str)
			}
			return true
		})
		switch {
		case said == 0:
			return event.Null(), true
		case said == 1 && !last.IsArray():
			v = last
		case texts:
			return list(m.values), true
		}
	}
	switch {
	case v.Type == gjson.String && v.Str == "":
		return event.Null(), true
	case v.Type == gjson.String:
		return event.String(v.Str), true
	}
	out, err := event.FromJSON(json.RawMessage(v.Raw))
	return out, err == nil
}

// set notes a value of the row.
func (m *Mapper) set(f *field, v event.Value) {
	switch {
	case f.kind == kindNone:
	case f.kind < texts:
		if v.Kind() == event.KindJSON {
			m.refuse(f.name, "more than one value")
			return
		}
		m.text[f.kind] = strings.TrimSpace(v.String())
	default:
		if n := utf8.RuneCountInString(f.attribute); n == 0 || n > maxNameRunes {
			m.refuse(f.name, nameTooLong)
			return
		}
		if f.kind == kindNumber {
			number, ok := mapping.Decimal(strings.TrimSpace(v.String()))
			if !ok {
				m.refuse(f.name, noNumber)
				return
			}
			v = event.Float(number)
		}
		m.attributes = append(m.attributes, attribute{f, v})
	}
}

func (m *Mapper) refuse(name, reason string) {
	if r := []rune(name); len(r) > maxNameRunes {
		name = string(r[:maxNameRunes]) + "…"
	}
	m.reject = &mapping.Reject{Column: name, Reason: reason}
}

// person makes the patch of what was noted.
func (m *Mapper) person() {
	p := &m.patch
	p.UserID = cmp.Or(m.text[kindUserID], m.text[kindEndpointID], m.text[kindAddress])
	if p.UserID == "" {
		m.refuse(userID, fmt.Sprintf("the row has none of %s, %s and %s", userID, endpointID, address))
		return
	}
	if m.reject = mapping.CheckUserID(p.UserID, userID); m.reject != nil {
		return
	}
	p.Addresses, p.Consents, p.Locale, p.TimeZone = p.Addresses[:0], p.Consents[:0], nil, nil
	if m.endpoint(); m.reject != nil {
		return
	}
	if m.text[kindLocale] != "" {
		m.locale = strings.ReplaceAll(m.text[kindLocale], "_", "-")
		p.Locale = &m.locale
	}
	if zone := m.text[kindTimeZone]; m.zones.Known(zone) {
		m.timeZone = zone
		p.TimeZone = &m.timeZone
	} else if zone != "" {
		m.extra("demographic_timezone", event.String(zone))
	}
	m.name()
}

// endpoint says how the person is reached, and whether she wants to be.
func (m *Mapper) endpoint() {
	channel, out, active := strings.ToUpper(m.text[kindChannel]), false, true
	switch s := strings.ToUpper(m.text[kindOptOut]); s {
	case "", "NONE":
	case "ALL":
		out = true
	default:
		m.refuse(optOut, "neither ALL nor NONE")
		return
	}
	switch s := strings.ToUpper(m.text[kindStatus]); s {
	case "", "ACTIVE":
	case "INACTIVE":
		active = false
	default:
		m.refuse(status, "neither ACTIVE nor INACTIVE")
		return
	}
	switch {
	case channel == "" && m.text[kindAddress] != "":
		m.refuse(channelType, "the row has an Address and no ChannelType")
		return
	case channel != "" && !channelPattern.MatchString(channel):
		m.refuse(channelType, "not the name of a channel")
		return
	}
	ours, attribute := channel == channelEmail || channel == "", "pinpoint_"+strings.ToLower(channel)
	switch at := m.text[kindAddress]; {
	case at == "":
	case !active:
		// Another endpoint has its address now, or nothing is to be sent to it.
		m.extra(attribute+"_inactive", event.String(at))
	case ours:
		m.patch.Addresses = append(m.patch.Addresses, event.AddressPatch{Channel: definition.ChannelEmail, Address: at})
	default:
		m.extra(attribute, event.String(at))
	}
	switch {
	case out && ours:
		m.patch.Consents = append(m.patch.Consents, event.ConsentPatch{Channel: definition.ChannelEmail, Consent: "unsubscribed"})
	case out:
		m.extra(attribute+"_opt_out", event.Bool(true))
	}
}

// extra notes an attribute of ours. Where the file has one of that name, its own goes by
// its whole name.
func (m *Mapper) extra(name string, v event.Value) {
	m.attributes = append(m.attributes, attribute{&field{name: name, kind: kindAttribute, attribute: name, rank: -1}, v})
}

// name gives the attributes their names, of which each is there once, in their order.
func (m *Mapper) name() {
	slices.SortStableFunc(m.attributes, func(a, b attribute) int {
		if c := strings.Compare(a.attribute, b.attribute); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(a.rank, b.rank), strings.Compare(a.name, b.name))
	})
	set := m.patch.Set[:0]
	for i, a := range m.attributes {
		switch {
		case i+1 < len(m.attributes) && m.attributes[i+1].name == a.name:
			// Of a key that is there twice the last counts.
		case len(set) == 0 || set[len(set)-1].Name != a.attribute:
			set = append(set, event.NamedValue{Name: a.attribute, Value: a.value})
		case !set[len(set)-1].Value.Equal(a.value):
			m.taken = append(m.taken, event.NamedValue{Name: a.name, Value: a.value})
		}
	}
	if len(m.taken) > 0 {
		set = append(set, m.taken...)
		m.taken = m.taken[:0]
		slices.SortStableFunc(set, func(a, b event.NamedValue) int { return strings.Compare(a.Name, b.Name) })
		set = slices.CompactFunc(set, func(a, b event.NamedValue) bool { return a.Name == b.Name })
	}
	m.patch.Set = set
}
