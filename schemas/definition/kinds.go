package definition

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
)

// document reads a whole document; the result counts only when there are no errors.
func (d *decoder) document(n *node) Definition {
	if n.shape != object {
		d.shapeError(n, "", found(n), "a document that begins with kind and id")
		return nil
	}
	for i, key := range []string{"kind", "id"} {
		if n.field("kind") != nil && n.field(key) != nil && n.fields[i].key != key {
			d.meaningError(n, key, "kind and id come first, in this order", "")
			break
		}
	}
	kind := n.field("kind")
	if kind == nil {
		d.shapeError(n, "kind", "is missing", oneOf(Kinds()))
		return nil
	}
	var k string
	d.word(kind, "kind", &k, Kinds()...)
	switch k {
	case KindImportSpec:
		return d.importSpec(n)
	case KindAudience:
		return d.audience(n)
	case KindTemplate:
		return d.template(n)
	case KindCampaign:
		return d.campaign(n)
	case KindExport:
		return d.export(n)
	}
	return nil
}

// head are the fields every document has.
func (d *decoder) head(id *string) []field {
	return []field{{"kind", true, nil}, {"id", true, func(n *node, p string) { d.id(n, p, id) }}}
}

func (d *decoder) importSpec(n *node) *ImportSpec {
	s := &ImportSpec{}
	d.object(n, "", append(d.head(&s.ID),
		field{"source", true, func(n *node, p string) {
			defer func() { d.source(n, p, &s.Source) }()
			d.object(n, p,
				field{"prefix", true, func(n *node, p string) {
					if d.text(n, p, &s.Source.Prefix) && strings.HasPrefix(s.Source.Prefix, "/") {
						d.shapeError(n, p, "begins with /; keys in a bucket do not", "")
					}
				}},
				field{"format", true, func(n *node, p string) {
					d.word(n, p, &s.Source.Format, FormatCSV, FormatTSV, FormatJSONL, FormatAvro, FormatParquet)
				}},
				field{"delimiter", false, func(n *node, p string) {
					if !d.text(n, p, &s.Source.Delimiter) {
						return
					}
					if c := s.Source.Delimiter; len(c) != 1 || c[0] >= 0x7f || c[0] < ' ' && c[0] != '\t' || c == `"` {
						d.shapeError(n, p, fmt.Sprintf("%q cannot delimit", c), "one ASCII character that is not a quote")
					}
				}},
				field{"encoding", false, func(n *node, p string) { d.word(n, p, &s.Source.Encoding, Encodings()...) }},
				field{"max_decompressed_bytes", false, func(n *node, p string) {
					if n.shape != integer || n.int < 1 {
						d.shapeError(n, p, found(n), "a number of bytes from 1")
						return
					}
					s.Source.MaxDecompressedBytes = n.int
				}},
			)
		}},
		field{"user_id", true, func(n *node, p string) { d.value(n, p, &s.UserID, false) }},
		field{"profile", false, func(n *node, p string) {
			s.Profile = &Profile{}
			d.object(n, p,
				field{"addresses", false, func(n *node, p string) { s.Profile.Addresses = d.values(n, p, ChannelEmail) }},
				field{"attributes", false, func(n *node, p string) { s.Profile.Attributes = d.values(n, p) }},
				field{"consents", false, func(n *node, p string) { s.Profile.Consents = d.values(n, p, ChannelEmail) }},
				field{"locale", false, func(n *node, p string) { s.Profile.Locale = d.optional(n, p) }},
				field{"time_zone", false, func(n *node, p string) { s.Profile.TimeZone = d.optional(n, p) }},
			)
			if n.shape == object && len(n.fields) == 0 {
				d.shapeError(n, p, "is empty", "addresses, attributes, consents, locale or time_zone")
			}
		}},
		field{"segment", false, func(n *node, p string) {
			s.Segment = &Segment{}
			d.object(n, p,
				field{"id", true, func(n *node, p string) { d.id(n, p, &s.Segment.ID) }},
				field{"mode", false, func(n *node, p string) { d.word(n, p, &s.Segment.Mode, SegmentModes()...) }},
				field{"attributes", false, func(n *node, p string) { s.Segment.Attributes = d.values(n, p) }},
			)
			if at := n.field("attributes"); at != nil && s.Segment.Mode == SegmentRemove {
				d.meaningError(at, join(p, "attributes"), "whoever is removed from a segment has none there", "mode add or replace")
			}
		}},
		field{"event", false, func(n *node, p string) {
			s.Event = &Event{}
			d.object(n, p,
				field{"name", true, func(n *node, p string) { d.value(n, p, &s.Event.Name, false) }},
				field{"occurred_at", true, func(n *node, p string) { d.value(n, p, &s.Event.OccurredAt, true) }},
				field{"id", false, func(n *node, p string) { s.Event.ID = d.optional(n, p) }},
				field{"properties", false, func(n *node, p string) { s.Event.Properties = d.values(n, p) }},
			)
		}},
		field{"max_rejects", false, func(n *node, p string) { d.maxRejects(n, p, &s.MaxRejects) }},
	)...)
	if n.field("profile") == nil && n.field("segment") == nil && n.field("event") == nil {
		d.shapeError(n, "", "an import that makes nothing of its rows", "profile, segment or event")
	}
	return s
}

// source fills in what follows from the format, and refuses what another has.
func (d *decoder) source(n *node, path string, s *Source) {
	isText, isCSV := true, false
	switch s.Format {
	case FormatCSV, FormatTSV:
		isCSV = true
		if n.field("delimiter") == nil {
			s.Delimiter = map[string]string{FormatCSV: ",", FormatTSV: "\t"}[s.Format]
		}
	case FormatAvro, FormatParquet:
		isText = false
	}
	for _, f := range []struct {
		key   string
		fits  bool
		where string
	}{
		{"delimiter", isCSV, "csv or tsv"}, {"encoding", isText, "csv, tsv or jsonl"}, {"max_decompressed_bytes", isText, "csv, tsv or jsonl"},
	} {
		if v := n.field(f.key); v != nil && !f.fits && s.Format != "" {
			d.meaningError(v, join(path, f.key), fmt.Sprintf("files of format %s have none", s.Format), "format "+f.where)
		}
	}
}

func (d *decoder) maxRejects(n *node, path string, into *MaxRejects) {
	const expected = "a number of rows such as 100, or a share of them such as 0.5%"
	switch {
	case n.shape == integer && n.int >= 0 && n.int < 1e12:
		*into = MaxRejects(strconv.FormatInt(n.int, 10))
	case n.shape == text && maxRejectsPattern.MatchString(n.text):
		*into = MaxRejects(n.text)
	default:
		d.shapeError(n, path, found(n), expected)
	}
}

func (d *decoder) optional(n *node, path string) *Value {
	v := &Value{}
	d.value(n, path, v, false)
	return v
}

// values reads a map of values; with names, only these keys.
func (d *decoder) values(n *node, path string, names ...string) map[string]Value {
	if n.shape != object || len(n.fields) == 0 {
		d.shapeError(n, path, found(n), "a map of names and where their values come from")
		return nil
	}
	out := map[string]Value{}
	for _, e := range n.fields {
		at, p := &node{line: e.line, column: e.column}, join(path, e.key)
		if len(names) > 0 {
			if known := strings.Join(names, "\n"); known != e.key {
				d.shapeError(at, p, fmt.Sprintf("unknown channel %q", e.key), oneOf(names)).Suggestion = nearest(e.key, names)
			}
		} else if l := utf8.RuneCountInString(e.key); l == 0 || l > 128 {
			d.shapeError(at, path, "a name has 1 to 128 characters", "")
		}
		var v Value
		d.value(e.value, p, &v, false)
		out[e.key] = v
	}
	return out
}

// value reads a Liquid text or a column.
func (d *decoder) value(n *node, path string, v *Value, isTime bool) {
	v.Type = TypeString
	switch n.shape {
	case text:
		if d.text(n, path, &v.Liquid) {
			d.liquid(n, path, "", v.Liquid, false, false)
		}
		if isTime {
			asTime(v)
		}
		return
	case object:
	default:
		d.shapeError(n, path, found(n), "a Liquid text, or {column: NAME}")
		return
	}
	var layout, zone *node
	fields := []field{
		{"column", true, func(n *node, p string) { d.text(n, p, &v.Column) }},
		{"type", false, func(n *node, p string) {
			if isTime {
				d.word(n, p, &v.Type, TypeTime)
				return
			}
			d.word(n, p, &v.Type, TypeString, TypeInt, TypeDecimal, TypeBool, TypeTime)
		}},
		{"layout", false, func(n *node, p string) {
			layout = n
			if d.text(n, p, &v.Layout) {
				d.layout(n, p, v.Layout)
			}
		}},
		{"zone", false, func(n *node, p string) {
			zone = n
			if !d.text(n, p, &v.Zone) {
				return
			}
			if _, err := time.LoadLocation(v.Zone); err != nil || v.Zone == "Local" {
				d.meaningError(n, p, fmt.Sprintf("unknown time zone %q", v.Zone), "an IANA name such as Europe/London")
			}
		}},
		{"trim", false, func(n *node, p string) { d.bool(n, p, &v.Trim) }},
		{"decimal_comma", false, func(n *node, p string) { d.bool(n, p, &v.DecimalComma) }},
	}
	d.object(n, path, fields...)
	if v.DecimalComma && v.Type != TypeDecimal {
		d.meaningError(n.field("decimal_comma"), join(path, "decimal_comma"), "only a value of type decimal has one", "type: decimal beside it")
	}
	if isTime || v.Type == TypeTime {
		asTime(v)
		return
	}
	for _, f := range []struct {
		n   *node
		key string
	}{{layout, "layout"}, {zone, "zone"}} {
		if f.n != nil {
			d.shapeError(f.n, join(path, f.key), "only a value of type time has a "+f.key, "type: time beside it")
		}
	}
}

// layout refuses what would lose the day: a layout is right when the reference time survives being written and read by it.
func (d *decoder) layout(n *node, path, layout string) {
	want := time.Date(2021, 11, 22, 0, 0, 0, 0, time.UTC)
	got, err := time.Parse(layout, want.Format(layout))
	if y, m, day := got.Date(); err != nil || y != 2021 || m != 11 || day != 22 {
		d.meaningError(n, path, fmt.Sprintf("%q does not hold year, month and day", layout), "the time 2006-01-02 15:04:05 written in the file's way")
	}
}

// liquid lets the caller judge a Liquid text, and finds the line of the fault in the file.
func (d *decoder) liquid(n *node, path, embedded, src string, html, strict bool) {
	if d.options.ParseTemplate == nil {
		return
	}
	err := d.options.ParseTemplate(src, html, strict)
	if err == nil {
		return
	}
	e := d.meaningError(n, path, "not Liquid: "+err.Error(), "")
	var located interface{ LineNumber() int }
	if !errors.As(err, &located) || located.LineNumber() < 1 {
		return
	}
	line := located.LineNumber()
	if embedded == "" && !n.block && line > 1 {
		return // quoted text over several lines: the line inside it is all there is
	}
	// The line inside the text would contradict the line in the file.
	e.Message = "not Liquid: " + strings.TrimPrefix(err.Error(), fmt.Sprintf("line %d: ", line))
	switch {
	case embedded != "":
		e.File, e.Line, e.Column = embedded, line, 0
	case n.block:
		e.Line, e.Column = n.line+line, 0
	}
}

func (d *decoder) audience(n *node) *Audience {
	a := &Audience{}
	d.object(n, "", append(d.head(&a.ID), field{"filter", true, func(n *node, p string) { a.Filter = d.filter(n, p) }})...)
	return a
}

func (d *decoder) template(n *node) *Template {
	t := &Template{}
	if s := n.field("strict"); s != nil && s.shape == boolean {
		t.Strict = s.bool // before the texts, which are judged by it
	}
	d.strict = t.Strict
	d.object(n, "", append(d.head(&t.ID),
		field{"channel", true, func(n *node, p string) { d.word(n, p, &t.Channel, ChannelEmail) }},
		field{"subject", true, func(n *node, p string) {
			if !d.text(n, p, &t.Subject) {
				return
			}
			if strings.ContainsAny(strings.TrimRight(t.Subject, "\n"), "\r\n") {
				d.meaningError(n, p, "a subject is one line", "")
			}
			t.Subject = strings.TrimRight(t.Subject, "\n")
			d.liquid(n, p, "", t.Subject, false, d.strict)
		}},
		field{"html", false, func(n *node, p string) { d.content(n, p, &t.HTML, true) }},
		field{"text", false, func(n *node, p string) { d.content(n, p, &t.Text, false) }},
		field{"strict", false, func(n *node, p string) { d.bool(n, p, &t.Strict) }},
	)...)
	if n.field("html") == nil && n.field("text") == nil {
		d.shapeError(n, "", "a message without content", "html, text or both")
	}
	return t
}

// maxContentBytes bounds one part of a template.
const maxContentBytes = 1 << 20

// content reads a text, or the file that holds it.
func (d *decoder) content(n *node, path string, into *string, html bool) {
	if n.shape == text {
		if d.text(n, path, into) {
			d.liquid(n, path, "", *into, html, d.strict)
		}
		return
	}
	if n.shape != object {
		d.shapeError(n, path, found(n), "text, or {file: NAME}")
		return
	}
	var name string
	read := false
	d.object(n, path, field{"file", true, func(n *node, p string) { read = d.text(n, p, &name) }})
	if !read {
		return
	}
	at, p := n.field("file"), join(path, "file")
	if !filepath.IsLocal(name) {
		d.meaningError(at, p, fmt.Sprintf("%q leaves the directory of this document", name), "a file beside it")
		return
	}
	file := filepath.Join(filepath.Dir(d.file), name)
	src, err := readBounded(file)
	if err != nil {
		d.meaningError(at, p, "cannot be read: "+err.Error(), "a file beside this document")
		return
	}
	switch {
	case len(src) > maxContentBytes:
		d.meaningError(at, p, fmt.Sprintf("%s has more than %d bytes", name, maxContentBytes), "")
	case !utf8.Valid(src) || bytes.IndexByte(src, 0) >= 0:
		d.meaningError(at, p, name+" is not UTF-8 text", "")
	case len(bytes.TrimSpace(src)) == 0:
		d.meaningError(at, p, name+" is empty", "")
	default:
		*into = string(src)
		d.liquid(at, path, file, *into, html, d.strict)
	}
}

func (d *decoder) campaign(n *node) *Campaign {
	c := &Campaign{Policy: AtMostOnce, Consent: NotUnsubscribed, ExpiresAfter: Duration(72 * time.Hour)}
	d.object(n, "", append(d.head(&c.ID),
		field{"audience", true, func(n *node, p string) { d.reference(n, p, KindAudience, &c.Audience) }},
		field{"template", true, func(n *node, p string) { d.reference(n, p, KindTemplate, &c.Template) }},
		field{"from", true, func(n *node, p string) {
			d.object(n, p,
				field{"name", false, func(n *node, p string) {
					if d.text(n, p, &c.From.Name) && strings.ContainsFunc(c.From.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
						d.meaningError(n, p, "a name is one line", "")
					}
				}},
				field{"address", true, func(n *node, p string) { d.address(n, p, &c.From.Address) }},
			)
		}},
		field{"reply_to", false, func(n *node, p string) { d.address(n, p, &c.ReplyTo) }},
		field{"at", false, func(n *node, p string) { d.at(n, p, &c.At) }},
		field{"policy", false, func(n *node, p string) { d.word(n, p, &c.Policy, AtMostOnce, AtLeastOnce) }},
		field{"consent", false, func(n *node, p string) { d.word(n, p, &c.Consent, NotUnsubscribed, Subscribed) }},
		field{"goal", false, func(n *node, p string) {
			c.Goal = &Goal{}
			d.object(n, p,
				field{"event", true, func(n *node, p string) { d.text(n, p, &c.Goal.Event) }},
				field{"within", true, func(n *node, p string) { d.duration(n, p, &c.Goal.Within) }},
				field{"revenue", false, func(n *node, p string) { d.text(n, p, &c.Goal.Revenue) }},
			)
		}},
		field{"expires_after", false, func(n *node, p string) { d.duration(n, p, &c.ExpiresAfter) }},
	)...)
	return c
}

func (d *decoder) at(n *node, path string, at *At) {
	const expected = "now, a time with a zone such as 2026-12-01T09:00:00+09:00, or {segment: ID}"
	if n.shape == object {
		d.object(n, path, field{"segment", true, func(n *node, p string) { d.reference(n, p, KindSegment, &at.Segment) }})
		return
	}
	if n.shape == text && n.text == "now" {
		at.Now = true
		return
	}
	at.Time = d.moment(n, path, expected)
}

// moment reads a time with a zone; where there is none it says so and returns zero.
func (d *decoder) moment(n *node, path, expected string) time.Time {
	switch {
	case n.shape != text:
		d.shapeError(n, path, found(n), expected)
	case !timePattern.MatchString(n.text):
		d.shapeError(n, path, fmt.Sprintf("%q is not a time", n.text), expected)
	default:
		t, err := filter.ParseTime(n.text)
		if err == nil {
			return t
		}
		d.meaningError(n, path, fmt.Sprintf("%q is not in the calendar", n.text), expected)
	}
	return time.Time{}
}
