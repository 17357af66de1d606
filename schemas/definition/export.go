package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Export writes what is known to files on S3: when somebody asks for it, and at At or by
// Schedule if there is one.
type Export struct {
	ID   string `json:"id"`
	What string `json:"what"` // one of the What constants

	Audience string `json:"audience,omitempty"` // id; of what: audience
	Segment  string `json:"segment,omitempty"`  // id; of what: segment
	Run      string `json:"run,omitempty"`      // 32 hex digits; of what: outcomes, or engagement
	Campaign string `json:"campaign,omitempty"` // id; of what: engagement

	// Attributes become columns of these types (one of the Type constants, or TypeJSON),
	// in the order of their names, instead of all in one column of JSON. Of another type
	// than this, a value is left out. Of profiles, audiences and segments.
	Attributes map[string]string `json:"attributes,omitempty"`

	To           string    `json:"to"`             // of the keys in the bucket; ends with a slash
	Format       string    `json:"format"`         // FormatCSV, FormatJSONL, FormatAvro or FormatParquet
	Compression  string    `json:"compression"`    // one of the Compression constants
	MaxFileBytes int64     `json:"max_file_bytes"` // about, as written; a file ends with the row, block or row group that reaches it
	At           time.Time `json:"at,omitzero"`    // UTC
	Schedule     *Schedule `json:"schedule,omitempty"`
}

// What an export consists of.
const (
	WhatProfiles   = "profiles"
	WhatAudience   = "audience"   // the profiles of its people
	WhatSegment    = "segment"    // the profiles of its members
	WhatOutcomes   = "outcomes"   // of a run
	WhatEngagement = "engagement" // opens, clicks and unsubscribes; of a run, a campaign, or all
)

// TypeJSON is the type of a column of lists and objects, as JSON text.
const TypeJSON = "json"

// The compressions of an export: of the file for text, inside it for Avro and Parquet.
const (
	CompressionNone = "none"
	CompressionGzip = "gzip" // deflate in Avro
	CompressionZstd = "zstd"
)

// The size of a file, unless said, and the least that can be.
const (
	DefaultMaxFileBytes = 256 << 20
	MinMaxFileBytes     = 64 << 10
)

// Schedule is a cron expression of five fields in a zone.
type Schedule struct {
	Cron string `json:"cron"`
	Zone string `json:"zone"` // an IANA name; UTC unless said
}

// Next is the first moment after t, UTC; zero if there is none. Error: the expression.
func (s *Schedule) Next(t time.Time) (time.Time, error) {
	parsed, err := cron.ParseStandard("CRON_TZ=" + s.Zone + " " + s.Cron)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the schedule %q: %w", s.Cron, err)
	}
	next := parsed.Next(t)
	if next.IsZero() {
		return next, nil
	}
	return next.UTC(), nil
}

// Latest is the last moment after from and not after to, UTC; zero if there is none.
func (s *Schedule) Latest(from, to time.Time) (time.Time, error) {
	parsed, err := cron.ParseStandard("CRON_TZ=" + s.Zone + " " + s.Cron)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the schedule %q: %w", s.Cron, err)
	}
	var latest time.Time
	for next := parsed.Next(from); !next.IsZero() && !next.After(to); next = parsed.Next(next) {
		latest = next.UTC()
	}
	return latest, nil
}

// Ref names the definition.
func (d *Export) Ref() Ref { return Ref{KindExport, d.ID} }

// ProfileColumns are the columns of exported profiles beside those of Attributes.
func ProfileColumns() []string {
	return []string{"user_id", "attributes", "addresses", "consents", "locale", "time_zone", "account_id"}
}

var (
	runPattern  = regexp.MustCompile(`^[0-9a-f]{32}$`)
	avroPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	cronPattern = regexp.MustCompile(`^[0-9A-Za-z*/,?-]+( [0-9A-Za-z*/,?-]+){4}$`)
)

func (d *decoder) export(n *node) *Export {
	e := &Export{MaxFileBytes: DefaultMaxFileBytes}
	d.object(n, "", append(d.head(&e.ID),
		field{"what", true, func(n *node, p string) {
			d.word(n, p, &e.What, WhatProfiles, WhatAudience, WhatSegment, WhatOutcomes, WhatEngagement)
		}},
		field{"audience", false, func(n *node, p string) { d.reference(n, p, KindAudience, &e.Audience) }},
		field{"segment", false, func(n *node, p string) { d.reference(n, p, KindSegment, &e.Segment) }},
		field{"run", false, func(n *node, p string) {
			if d.text(n, p, &e.Run) && !runPattern.MatchString(e.Run) {
				d.shapeError(n, p, fmt.Sprintf("%q is no run", e.Run), "the 32 hex digits that hikyaku start prints, in quotes")
			}
		}},
		field{"campaign", false, func(n *node, p string) { d.reference(n, p, KindCampaign, &e.Campaign) }},
		field{"attributes", false, func(n *node, p string) { e.Attributes = d.attributeTypes(n, p) }},
		field{"to", true, func(n *node, p string) {
			if !d.text(n, p, &e.To) {
				return
			}
			if strings.HasPrefix(e.To, "/") {
				d.shapeError(n, p, "begins with /; keys in a bucket do not", "")
			}
			if !strings.HasSuffix(e.To, "/") {
				e.To += "/"
			}
		}},
		field{"format", true, func(n *node, p string) { d.word(n, p, &e.Format, FormatCSV, FormatJSONL, FormatAvro, FormatParquet) }},
		field{"compression", false, func(n *node, p string) {
			d.word(n, p, &e.Compression, CompressionNone, CompressionGzip, CompressionZstd)
		}},
		field{"max_file_bytes", false, func(n *node, p string) {
			if n.shape != integer || n.int < MinMaxFileBytes {
				d.shapeError(n, p, found(n), fmt.Sprintf("a number of bytes from %d", MinMaxFileBytes))
				return
			}
			e.MaxFileBytes = n.int
		}},
		field{"at", false, func(n *node, p string) {
			e.At = d.moment(n, p, "a time with a zone such as 2026-12-01T09:00:00+09:00").UTC()
		}},
		field{"schedule", false, func(n *node, p string) { e.Schedule = d.schedule(n, p) }},
	)...)
	e.fill()
	d.exportFits(n, e)
	return e
}

// fill sets what follows from the format unless it is said.
func (d *Export) fill() {
	if d.Compression == "" {
		d.Compression = map[string]string{FormatParquet: CompressionZstd, FormatAvro: CompressionGzip}[d.Format]
	}
	if d.Compression == "" {
		d.Compression = CompressionNone
	}
}

// exportFits refuses what does not go with what is exported.
func (d *decoder) exportFits(n *node, e *Export) {
	people := []string{WhatProfiles, WhatAudience, WhatSegment}
	for _, f := range []struct {
		key    string
		of     []string
		needed string // by which of these
	}{
		{"audience", []string{WhatAudience}, WhatAudience},
		{"segment", []string{WhatSegment}, WhatSegment},
		{"attributes", people, ""},
		{"run", []string{WhatOutcomes, WhatEngagement}, WhatOutcomes},
		{"campaign", []string{WhatEngagement}, ""},
	} {
		there := n.field(f.key)
		switch {
		case e.What == "":
		case there == nil && f.needed == e.What:
			d.meaningError(n, f.key, "is missing", "beside what: "+e.What)
		case there != nil && !slices.Contains(f.of, e.What):
			d.meaningError(there, f.key, fmt.Sprintf("an export of %s has none", e.What), "what: "+oneOf(f.of))
		}
	}
	if e.Format == FormatAvro {
		for _, name := range e.AttributeNames() {
			if !avroPattern.MatchString(name) {
				d.meaningError(n.field("attributes"), join("attributes", name), fmt.Sprintf("%q cannot be a name in Avro", name), "letters, digits and _, or another format")
			}
		}
	}
	if e.Run != "" && e.Campaign != "" {
		d.meaningError(n.field("campaign"), "campaign", "a run is of one campaign", "run or campaign")
	}
	if !e.At.IsZero() && e.Schedule != nil {
		d.meaningError(n.field("at"), "at", "the schedule says when", "at or schedule")
	}
}

// attributeTypes reads which attributes become columns, and their types.
func (d *decoder) attributeTypes(n *node, path string) map[string]string {
	if n.shape != object || len(n.fields) == 0 {
		d.shapeError(n, path, found(n), "a map of names and types")
		return nil
	}
	out := map[string]string{}
	for _, e := range n.fields {
		at, p := &node{line: e.line, column: e.column}, join(path, e.key)
		if l := len([]rune(e.key)); l == 0 || l > 128 {
			d.shapeError(at, path, "a name has 1 to 128 characters", "")
		}
		if slices.Contains(ProfileColumns(), e.key) {
			d.meaningError(at, p, fmt.Sprintf("there is a column %s already", e.key), "leave attributes out to have all of them in one column of JSON")
		}
		var kind string
		d.word(e.value, p, &kind, TypeString, TypeInt, TypeDecimal, TypeBool, TypeTime, TypeJSON)
		out[e.key] = kind
	}
	return out
}

// AttributeNames are the attributes that become columns, sorted.
func (d *Export) AttributeNames() []string { return slices.Sorted(maps.Keys(d.Attributes)) }

func (d *decoder) schedule(n *node, path string) *Schedule {
	s := &Schedule{Zone: "UTC"}
	const expected = "five fields: minute, hour, day of the month, month, day of the week; 0 6 * * 1-5 is six o'clock from Monday to Friday"
	d.object(n, path,
		field{"cron", true, func(n *node, p string) {
			if d.text(n, p, &s.Cron) && !cronPattern.MatchString(s.Cron) {
				d.shapeError(n, p, fmt.Sprintf("%q is not a cron expression", s.Cron), expected)
			}
		}},
		field{"zone", false, func(n *node, p string) {
			if !d.text(n, p, &s.Zone) {
				return
			}
			if _, err := time.LoadLocation(s.Zone); err != nil || s.Zone == "Local" {
				d.meaningError(n, p, fmt.Sprintf("unknown time zone %q", s.Zone), "an IANA name such as Europe/London")
			}
		}},
	)
	at := n.field("cron")
	if at == nil || !cronPattern.MatchString(s.Cron) {
		return s
	}
	// In UTC: the zone has been judged.
	switch next, err := (&Schedule{s.Cron, "UTC"}).Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)); {
	case err != nil:
		d.meaningError(at, join(path, "cron"), fmt.Sprintf("%q is not a cron expression: %v", s.Cron, err), expected)
	case next.IsZero():
		d.meaningError(at, join(path, "cron"), fmt.Sprintf("%q never comes", s.Cron), "")
	}
	return s
}
