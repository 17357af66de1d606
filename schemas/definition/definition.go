// Package definition holds what people write to Hikyaku: import specs, audiences, templates, campaigns and exports, as YAML documents.
//
// Load reads files and refuses everything that cannot be meant, all errors at once, each with file, line, column, field, what was
// expected and the nearest right word. A document that was accepted has one canonical body (JSON, keys sorted, defaults filled in,
// files embedded), and that is what is stored: equal bodies are equal definitions, and Decode reads a body back into its type.
//
// The *.schema.json files beside the code say the same to editors; a test holds both to the same verdicts.
package definition

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
)

// The kinds of definitions.
const (
	KindImportSpec = "ImportSpec"
	KindAudience   = "Audience"
	KindTemplate   = "Template"
	KindCampaign   = "Campaign"
	KindExport     = "Export"
)

// Kinds lists every kind, in the order in which they build on each other.
func Kinds() []string {
	return []string{KindImportSpec, KindAudience, KindTemplate, KindCampaign, KindExport}
}

// ChannelEmail is the one channel there is so far.
const ChannelEmail = "email"

// Duration is a length of time such as 3d; see filter.Duration.
type Duration = filter.Duration

// Definition is one of *ImportSpec, *Audience, *Template, *Campaign and *Export.
type Definition interface {
	// Ref names the definition.
	Ref() Ref
}

// Ref names a definition of any version.
type Ref struct {
	Kind string
	ID   string // [a-z0-9][a-z0-9-]{0,62}
}

// String is the key of the version in force in the topic of definitions: kind/id.
func (r Ref) String() string { return r.Kind + "/" + r.ID }

// ImportSpec says how the rows of a file become profile updates, members of a segment, or events. A row becomes everything the spec has.
type ImportSpec struct {
	ID      string   `json:"id"`
	Source  Source   `json:"source"`
	UserID  Value    `json:"user_id"` // the person a row is about; other Liquid texts see it as user_id
	Profile *Profile `json:"profile,omitempty"`
	Segment *Segment `json:"segment,omitempty"`
	Event   *Event   `json:"event,omitempty"`

	MaxRejects MaxRejects `json:"max_rejects,omitempty"`
}

// Source is where files arrive and what they look like.
type Source struct {
	Prefix               string `json:"prefix"`                           // of the object's key in the bucket
	Format               string `json:"format"`                           // one of the Format constants
	Delimiter            string `json:"delimiter,omitempty"`              // of csv and tsv: one ASCII character; a comma or a tab unless said
	Encoding             string `json:"encoding,omitempty"`               // of text formats: one of Encodings; empty for the first, auto
	MaxDecompressedBytes int64  `json:"max_decompressed_bytes,omitempty"` // of a compressed file; 0 for 200 times its size
}

// The formats of files. Files of text formats may be compressed with gzip, zstd or
// bzip2, which their first bytes tell.
const (
	FormatCSV     = "csv"     // RFC 4180 with a header line
	FormatTSV     = "tsv"     // as csv, with tabs
	FormatJSONL   = "jsonl"   // JSON Lines: an object on each line
	FormatAvro    = "avro"    // Avro object container files
	FormatParquet = "parquet" // Apache Parquet
)

// Encodings are what a text can be written in; auto is what a byte order mark says, and
// else UTF-8. iso-8859-1 is Latin-1; windows-1252 has it but for control characters.
func Encodings() []string {
	return []string{"auto", "utf-8", "utf-16", "shift_jis", "euc-jp", "iso-8859-1", "windows-1252"}
}

// MaxRejects is how many rows of a file may be rejected before its import fails: a
// number, or a share of its rows such as 0.5%; empty for any number.
type MaxRejects string

// maxRejectsPattern is what a MaxRejects is written like.
var maxRejectsPattern = regexp.MustCompile(`^[0-9]{1,12}$|^([0-9]{1,2}(\.[0-9]{1,6})?|100)%$`)

// Exceeded says whether so many rejects are too many. A share is judged when all rows
// are known.
func (m MaxRejects) Exceeded(rejected, rows int64, all bool) bool {
	if m == "" || rejected == 0 {
		return false
	}
	if share, ok := strings.CutSuffix(string(m), "%"); ok {
		if !all {
			return false
		}
		percent, err := strconv.ParseFloat(share, 64)
		return err == nil && float64(rejected)*100 > percent*float64(rows)
	}
	most, err := strconv.ParseInt(string(m), 10, 64)
	return err == nil && rejected > most
}

// Failure says of an import, in a sentence for the file's owner, that so many rejects
// are too many.
func (m MaxRejects) Failure(rejected, rows int64) string {
	return fmt.Sprintf("%d of %d rows were rejected; max_rejects in the import spec allows %s", rejected, rows, m)
}

// Profile says what a row tells about the person.
type Profile struct {
	Addresses  map[string]Value `json:"addresses,omitempty"` // by channel
	Attributes map[string]Value `json:"attributes,omitempty"`
	Consents   map[string]Value `json:"consents,omitempty"` // by channel; the value reads subscribed, unsubscribed, or nothing for not known
	Locale     *Value           `json:"locale,omitempty"`
	TimeZone   *Value           `json:"time_zone,omitempty"` // an IANA name
}

// Segment says what the people whom the file lists are to a segment.
type Segment struct {
	ID         string           `json:"id"`
	Mode       string           `json:"mode,omitempty"`       // one of SegmentModes; empty for the first, replace
	Attributes map[string]Value `json:"attributes,omitempty"` // of the person as a member; none with SegmentRemove
}

// What a file does with its segment.
const (
	SegmentReplace = "replace" // it is the whole list of members
	SegmentAdd     = "add"     // those whom it lists are members from now on
	SegmentRemove  = "remove"  // those whom it lists are no longer members
)

// SegmentModes lists them.
func SegmentModes() []string { return []string{SegmentReplace, SegmentAdd, SegmentRemove} }

// ModeOrReplace is the mode, replace unless said.
func (s *Segment) ModeOrReplace() string {
	if s.Mode == "" {
		return SegmentReplace
	}
	return s.Mode
}

// Event says what the row's person did.
type Event struct {
	Name       Value            `json:"name"`
	OccurredAt Value            `json:"occurred_at"`  // of type time
	ID         *Value           `json:"id,omitempty"` // event_id; without it the id derives from import and record
	Properties map[string]Value `json:"properties,omitempty"`
}

// The types of a Value.
const (
	TypeString  = "string"
	TypeInt     = "int"     // 64 bits
	TypeDecimal = "decimal" // a decimal fraction
	TypeBool    = "bool"
	TypeTime    = "time" // an instant
)

// Value is where a value comes from: a Liquid text over the row's columns, or one column. Exactly one of Liquid and Column is set.
// An empty text (after Trim) is no value.
type Value struct {
	Liquid string // columns by their names, or row['Any name']; the result is a string (for occurred_at: a time in Layout)
	Column string // the name in the header
	Type   string // one of the Type constants
	Layout string // of Type time: a Go layout
	Zone   string // of Type time: the IANA zone of times whose text has none
	Trim   bool   // of a column: cut white space at both ends

	DecimalComma bool // of Type decimal: 1.234,5 instead of 1234.5
}

type columnValue struct {
	Column string `json:"column"`
	Type   string `json:"type"`
	Layout string `json:"layout,omitempty"`
	Zone   string `json:"zone,omitempty"`
	Trim   bool   `json:"trim"`

	DecimalComma bool `json:"decimal_comma,omitempty"`
}

// MarshalJSON writes a Liquid text as a string and a column as an object.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.Column == "" {
		return json.Marshal(v.Liquid)
	}
	return json.Marshal(columnValue{v.Column, v.Type, v.Layout, v.Zone, v.Trim, v.DecimalComma})
}

// UnmarshalJSON reads what MarshalJSON writes. Whether a text is a time depends on where it stands; Decode sees to that.
func (v *Value) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*v = Value{Type: TypeString}
		return json.Unmarshal(b, &v.Liquid)
	}
	var c columnValue
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return err
	}
	*v = Value{Column: c.Column, Type: c.Type, Layout: c.Layout, Zone: c.Zone, Trim: c.Trim, DecimalComma: c.DecimalComma}
	return nil
}

// Audience is a saved filter.
type Audience struct {
	ID     string       `json:"id"`
	Filter *filter.Node `json:"filter"`
}

// Template is the content of a message: Liquid texts, with files already embedded.
type Template struct {
	ID      string `json:"id"`
	Channel string `json:"channel"` // email
	Subject string `json:"subject"`
	HTML    string `json:"html,omitempty"` // at least one of HTML and Text is there
	Text    string `json:"text,omitempty"`
	Strict  bool   `json:"strict"` // a variable without a value rejects the message
}

// Campaign sends a template to an audience.
type Campaign struct {
	ID           string   `json:"id"`
	Audience     string   `json:"audience"` // id
	Template     string   `json:"template"` // id
	From         Sender   `json:"from"`
	ReplyTo      string   `json:"reply_to,omitempty"` // an address
	At           At       `json:"at,omitzero"`
	Policy       string   `json:"policy"`
	Consent      string   `json:"consent"`
	Goal         *Goal    `json:"goal,omitempty"`
	ExpiresAfter Duration `json:"expires_after"` // after which a message not yet sent is dropped; 3d unless said
}

// Sender is who a message is from.
type Sender struct {
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
}

// Goal is the event that the campaign wants people to do, counted when it comes within the time after the message.
type Goal struct {
	Event   string   `json:"event"`
	Within  Duration `json:"within"`
	Revenue string   `json:"revenue,omitempty"` // property of the event that is what the person paid
}

// What becomes of a message whose provider was asked and never heard (Campaign.Policy).
const (
	AtMostOnce  = "at_most_once"  // it is recorded as uncertain, and not sent again
	AtLeastOnce = "at_least_once" // it is sent again
)

// Who may be sent to (Campaign.Consent).
const (
	NotUnsubscribed = "not_unsubscribed" // everybody who did not say no
	Subscribed      = "subscribed"       // only those who said yes
)

// At is when a campaign starts. The zero value means when somebody starts it. One of its fields is set at most.
type At struct {
	Now     bool      // when it is started by hand
	Time    time.Time // UTC
	Segment string    // once for each import that ends and makes people members of this segment
}

// atSegment is an At in JSON and YAML that is not a text.
type atSegment struct {
	Segment string `json:"segment"`
}

// IsZero reports that only a person starts the campaign.
func (a At) IsZero() bool { return !a.Now && a.Time.IsZero() && a.Segment == "" }

// String is now, a time, each import of a segment, or nothing.
func (a At) String() string {
	switch {
	case a.Segment != "":
		return "each import of segment " + a.Segment
	case a.Now:
		return "now"
	case a.Time.IsZero():
		return ""
	}
	return a.Time.UTC().Format(time.RFC3339Nano)
}

// MarshalJSON writes now, a time or nothing as the text of String, and a segment as an object.
func (a At) MarshalJSON() ([]byte, error) {
	if a.Segment != "" {
		return json.Marshal(atSegment{a.Segment})
	}
	return json.Marshal(a.String())
}

// UnmarshalJSON reads what MarshalJSON writes.
func (a *At) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var s atSegment
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err := d.Decode(&s)
		*a = At{Segment: s.Segment}
		return err
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*a = At{}
	switch s {
	case "":
		return nil
	case "now":
		a.Now = true
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	a.Time = t.UTC()
	return err
}

// Ref names the definition.
func (d *ImportSpec) Ref() Ref { return Ref{KindImportSpec, d.ID} }

// Ref names the definition.
func (d *Audience) Ref() Ref { return Ref{KindAudience, d.ID} }

// Ref names the definition.
func (d *Template) Ref() Ref { return Ref{KindTemplate, d.ID} }

// Ref names the definition.
func (d *Campaign) Ref() Ref { return Ref{KindCampaign, d.ID} }

// Encode writes the canonical body of a definition: JSON without white space, keys sorted, kind and id among them.
func Encode(d Definition) ([]byte, error) {
	plain, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", d.Ref(), err)
	}
	fields := map[string]any{}
	read := json.NewDecoder(bytes.NewReader(plain))
	read.UseNumber() // so that large integers keep every digit
	if err := read.Decode(&fields); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", d.Ref(), err)
	}
	fields["kind"] = d.Ref().Kind
	var body bytes.Buffer
	write := json.NewEncoder(&body) // sorts the keys of maps
	write.SetEscapeHTML(false)
	if err := write.Encode(fields); err != nil {
		return nil, fmt.Errorf("encoding %s: %w", d.Ref(), err)
	}
	return bytes.TrimRight(body.Bytes(), "\n"), nil
}

// Decode reads a canonical body. A field it does not know is an error: a condition that an older program overlooks would choose other people.
func Decode(kind string, body []byte) (Definition, error) {
	var d Definition
	var named struct {
		Kind string `json:"kind"`
	}
	read := json.NewDecoder(bytes.NewReader(body))
	read.DisallowUnknownFields()
	var err error
	switch kind {
	case KindImportSpec:
		v := struct {
			*ImportSpec
			Kind string `json:"kind"`
		}{ImportSpec: &ImportSpec{}}
		err = read.Decode(&v)
		d, named.Kind = v.ImportSpec, v.Kind
		if v.Event != nil {
			asTime(&v.Event.OccurredAt)
		}
	case KindAudience:
		v := struct {
			*Audience
			Kind string `json:"kind"`
		}{Audience: &Audience{}}
		err = read.Decode(&v)
		d, named.Kind = v.Audience, v.Kind
	case KindTemplate:
		v := struct {
			*Template
			Kind string `json:"kind"`
		}{Template: &Template{}}
		err = read.Decode(&v)
		d, named.Kind = v.Template, v.Kind
	case KindCampaign:
		v := struct {
			*Campaign
			Kind string `json:"kind"`
		}{Campaign: &Campaign{}}
		err = read.Decode(&v)
		d, named.Kind = v.Campaign, v.Kind
	case KindExport:
		v := struct {
			*Export
			Kind string `json:"kind"`
		}{Export: &Export{}}
		err = read.Decode(&v)
		d, named.Kind = v.Export, v.Kind
	default:
		return nil, fmt.Errorf("decoding a definition: unknown kind %q", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("decoding %s: %w", kind, err)
	}
	if named.Kind != kind || d.Ref().ID == "" {
		return nil, fmt.Errorf("decoding %s: the body is of kind %q with id %q", kind, named.Kind, d.Ref().ID)
	}
	return d, nil
}

// defaultLayout is how a time is written where a spec does not say: RFC 3339.
const defaultLayout = time.RFC3339

// asTime makes a value of occurred_at a time, whatever it comes from.
func asTime(v *Value) {
	v.Type = TypeTime
	if v.Layout == "" {
		v.Layout = defaultLayout
	}
	if v.Zone == "" {
		v.Zone = "UTC"
	}
}

// Hash is the SHA-256 of a canonical body in hex: a definition whose hash did not change needs no new version.
func Hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}
