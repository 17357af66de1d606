package definition_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
)

func load(t *testing.T, path string) []definition.Document {
	t.Helper()
	docs, err := definition.Load(path, definition.Options{})
	require.NoError(t, err)
	require.NoError(t, definition.Validate(docs, nil))
	return docs
}

func TestTheDesignsExampleIsReadAsItIsMeant(t *testing.T) {
	t.Parallel()
	docs := load(t, "testdata/valid/design.yaml")
	require.Len(t, docs, 4)

	spec := docs[0].Definition.(*definition.ImportSpec)
	require.Equal(t, definition.Source{Prefix: "imports/retail-orders/", Format: "csv", Delimiter: ","}, spec.Source)
	require.Equal(t, "{{ CustomerID | split: '.' | first }}", spec.UserID.Liquid)
	require.Equal(t, definition.Value{Column: "Country", Type: "string", Trim: true}, spec.Profile.Attributes["country"])
	require.Equal(t, definition.Value{Column: "InvoiceDate", Type: "time", Layout: "2006-01-02 15:04:05", Zone: "UTC"}, spec.Event.OccurredAt)
	require.Equal(t, definition.Value{Column: "Quantity", Type: "int"}, spec.Event.Properties["quantity"])

	loyal := docs[1].Definition.(*definition.Audience)
	require.Equal(t, `all(event purchase at least 5 times since 2011-06-01; attribute country in ["France", "Germany", "United Kingdom"]; `+
		`not(event cancellation at least once since 2011-06-01))`, loyal.Filter.String())
	require.Equal(t, time.Date(2011, 6, 1, 0, 0, 0, 0, time.UTC), *loyal.Filter.All[0].Event.Since)

	thanks := docs[2].Definition.(*definition.Template)
	require.Equal(t, "<p>Thank you{% if name %}, {{ name }}{% endif %}!</p>\n", thanks.HTML)
	require.True(t, thanks.Strict)

	campaign := docs[3].Definition.(*definition.Campaign)
	require.True(t, campaign.At.Now)
	require.Equal(t, 7*24*time.Hour, campaign.Goal.Within.Duration())
	require.Equal(t, 72*time.Hour, campaign.ExpiresAfter.Duration())
}

func TestABodyReadsBackToTheSameDefinitionAndTheSameBody(t *testing.T) {
	t.Parallel()
	for _, d := range load(t, "testdata/valid") {
		read, err := definition.Decode(d.Kind, d.Body)
		require.NoError(t, err, d.Ref)
		require.Equal(t, d.Definition, read, d.Ref)
		again, err := definition.Encode(read)
		require.NoError(t, err)
		require.Equal(t, string(d.Body), string(again))
		require.Equal(t, definition.Hash(d.Body), definition.Hash(again))
		require.Len(t, definition.Hash(again), 64)
	}
}

func TestSpellingDoesNotChangeABody(t *testing.T) {
	t.Parallel()
	_, errs := definition.Parse("a.yaml", []byte(`
kind: Audience
id: x
filter: {all: [{attribute: {name: n, in: [b, a, b]}}, {event: {name: e}}, {event: {name: f, count: {gt: 1, lt: 4}, within: 48h, since: }}]}
`), definition.Options{})
	require.Len(t, errs, 1, "since without a value")
	a, errs := definition.Parse("a.yaml", []byte(`
kind: Audience
id: x
filter: {all: [{attribute: {name: n, in: [b, a, b]}}, {event: {name: e}}, {event: {name: f, count: {gt: 1, lt: 4}, within: 48h}}]}
`), definition.Options{})
	require.Empty(t, errs)
	b, errs := definition.Parse("b.yaml", []byte(`
kind: "Audience"
id: x
filter:
  all:
  - attribute:
      in: [a, b]
      name: n
  - event: {count: {gte: 1}, name: e}
  - event: {name: f, within: 2d, count: {lte: 3, gte: 2}}
`), definition.Options{})
	require.Empty(t, errs)
	require.Equal(t, string(a[0].Body), string(b[0].Body))
	require.Equal(t, `{"filter":{"all":[{"attribute":{"in":["a","b"],"name":"n"}},{"event":{"count":{"gte":1},"name":"e"}},`+
		`{"event":{"count":{"gte":2,"lte":3},"name":"f","within":"2d"}}]},"id":"x","kind":"Audience"}`, string(a[0].Body))
}

func TestABodyOfANewerProgramIsRefused(t *testing.T) {
	t.Parallel()
	_, err := definition.Decode("Audience", []byte(`{"filter":{"message":{"campaign":"x"}},"id":"x","kind":"Audience"}`))
	require.ErrorContains(t, err, "message")
	_, err = definition.Decode("Audience", []byte(`{"filter":{},"id":"x","kind":"Campaign"}`))
	require.Error(t, err)
	_, err = definition.Decode("Banner", []byte(`{}`))
	require.ErrorContains(t, err, `unknown kind "Banner"`)
}

// audience puts a filter into a document; the filter's first line is line 4 of the file.
func audience(filter string) string { return "kind: Audience\nid: a\nfilter:\n" + filter }

func campaign(rest string) string {
	return "kind: Campaign\nid: c\naudience: a\ntemplate: t\nfrom: {address: a@example.test}\n" + rest
}

func spec(rest string) string {
	return "kind: ImportSpec\nid: s\nsource: {prefix: p/, format: csv}\nuser_id: {column: Id}\n" + rest
}

func template(rest string) string {
	return "kind: Template\nid: t\nchannel: email\nsubject: s\n" + rest
}

func TestErrorsNameFileLineFieldAndTheRightWord(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown field": {audience("  all:\n    - atribute: {name: plan, in: [gold]}\n"),
			`f.yaml:5:7: filter.all[0].atribute: unknown field "atribute"; did you mean "attribute"?`},
		"swapped letters": {"kind: Audience\nid: a\nfitler: {segment: x}\n",
			"f.yaml:1:1: filter: is missing\nf.yaml:3:1: fitler: unknown field \"fitler\"; did you mean \"filter\"?"},
		"unknown kind":      {"kind: Banner\nid: b\n", `f.yaml:1:7: kind: unknown value "Banner"; expected ImportSpec, Audience, Template, Campaign or Export`},
		"misspelt kind":     {"kind: Campain\nid: b\n", `f.yaml:1:7: kind: unknown value "Campain"; did you mean "Campaign"?`},
		"no kind":           {"id: b\n", `f.yaml:1:1: kind: is missing; expected ImportSpec, Audience, Template, Campaign or Export`},
		"kind comes first":  {"id: a\nkind: Audience\nfilter: {segment: x}\n", `f.yaml:1:1: kind: kind and id come first, in this order`},
		"id comes second":   {"kind: Audience\nfilter: {segment: x}\nid: a\n", `f.yaml:1:1: id: kind and id come first, in this order`},
		"a condition to be": {audience("  message: {campaign: x, outcome: opened}\n"), `f.yaml:4:3: filter.message: unknown field "message"; expected all, any, not, attribute, event or segment`},
		"id":                {"kind: Audience\nid: Big One\nfilter: {segment: x}\n", `f.yaml:2:5: id: "Big One" is not an id; expected 1 to 63 of a-z, 0-9 and -, not beginning with -`},
		"id is a number":    {"kind: Audience\nid: 2011\nfilter: {segment: x}\n", `f.yaml:2:5: id: 2011 is a number; expected text; put it in quotes`},
		"not a map":         {"- a\n", `f.yaml:1:1: a list; expected a document that begins with kind and id`},
		"twice":             {"kind: Audience\nid: a\nid: b\n", `f.yaml:3:1: not YAML: mapping key "id" already defined at [2:1]`},
		"not YAML":          {"kind: [Audience\n", `f.yaml:1:7: not YAML: sequence end token ']' not found`},
		"anchor":            {audience("  any: [&x {segment: y}]\n"), `f.yaml:4:9: anchors, aliases and merges are not read; write the value out`},
		"empty value":       {"kind: Audience\nid: a\nfilter:\n", `f.yaml:3:1: filter: nothing is written here; expected a value, or no filter`},

		"two conditions": {audience("  segment: x\n  not: {segment: y}\n"), `f.yaml:5:3: filter: segment and not in one condition; expected one condition; join several in a list under all or any`},
		"list as filter": {audience("  - segment: x\n"), `f.yaml:4:3: filter: a list; expected one condition: all, any, not, attribute, event or segment`},
		"map under all":  {audience("  all: {segment: x}\n"), `f.yaml:4:9: filter.all: a map; expected a list of conditions`},
		"empty all":      {audience("  all: []\n"), `f.yaml:4:8: filter.all: an empty list; expected at least one condition`},
		"in is a number": {audience("  attribute: {name: n, in: 3}\n"), `f.yaml:4:28: filter.attribute.in: 3 is a number; expected a list, such as [gold, platinum]`},
		"empty in":       {audience("  attribute: {name: n, in: []}\n"), `f.yaml:4:28: filter.attribute.in: an empty list; no value could satisfy it`},
		"mixed in":       {audience("  attribute: {name: n, in: [a, 3]}\n"), `f.yaml:4:28: filter.attribute.in: a string and a number in one list; a value has one type`},
		"nothing to compare": {audience("  attribute: {name: n}\n"),
			`f.yaml:4:15: filter.attribute: nothing to compare with; expected one of eq, in, gte, gt, lte, lt, exists`},
		"in and gte":           {audience("  attribute: {name: n, in: [3], gte: 3}\n"), `f.yaml:4:15: filter.attribute: eq, in and exists stand alone; they cannot be combined with another comparison`},
		"eq and in":            {audience("  attribute: {name: n, in: [3], eq: 3}\n"), `f.yaml:4:15: filter.attribute: eq and in together; expected one of them`},
		"impossible range":     {audience("  attribute: {name: age, gte: 30, lt: 20}\n"), `f.yaml:4:39: filter.attribute.lt: no value could satisfy gte 30 and lt 20`},
		"empty range":          {audience("  attribute: {name: age, gt: 30, lte: 30}\n"), `f.yaml:4:39: filter.attribute.lte: no value could satisfy gt 30 and lte 30`},
		"range of two types":   {audience("  attribute: {name: age, gte: 30, lt: x}\n"), `f.yaml:4:39: filter.attribute.lt: gte is a number and lt a string; no value could satisfy both`},
		"order of booleans":    {audience("  attribute: {name: vip, gte: true}\n"), `f.yaml:4:31: filter.attribute.gte: booleans have no order; expected a number, a string or {time: …}`},
		"a bare date":          {audience("  attribute: {name: d, gte: 2011-06-01}\n"), `f.yaml:4:29: filter.attribute.gte: 2011-06-01 is text here, and never equals or exceeds a time; expected {time: 2011-06-01} for an instant, or quotes around it for text`},
		"a time not a time":    {audience("  attribute: {name: d, gte: {time: yesterday}}\n"), `f.yaml:4:36: filter.attribute.gte.time: "yesterday" is not an instant; expected a date such as 2011-06-01 (UTC midnight) or a time with a zone such as 2011-06-01T09:00:00+09:00`},
		"count below zero":     {audience("  event: {name: e, count: {gte: -1}}\n"), `f.yaml:4:33: filter.event.count.gte: -1 events; a count is never below 0`},
		"count is a number":    {audience("  event: {name: e, count: 5}\n"), `f.yaml:4:27: filter.event.count: 5 is a number; expected a map with eq, gte, gt, lte or lt`},
		"count is a fraction":  {audience("  event: {name: e, count: {gte: 1.5}}\n"), `f.yaml:4:33: filter.event.count.gte: 1.5 is a number; expected a whole number`},
		"count below none":     {audience("  event: {name: e, count: {lt: 0}}\n"), `f.yaml:4:32: filter.event.count.lt: fewer than 0 events; no count could satisfy it`},
		"impossible count":     {audience("  event: {name: e, count: {gte: 5, lt: 5}}\n"), `f.yaml:4:40: filter.event.count.lt: no count could be at least 5 and at most 4`},
		"empty count":          {audience("  event: {name: e, count: {}}\n"), `f.yaml:4:27: filter.event.count: nothing to compare with; expected one of eq, gte, gt, lte or lt`},
		"two windows":          {audience("  event: {name: e, within: 3d, since: 2011-06-01}\n"), `f.yaml:4:28: filter.event.within: within and since or until are two windows; expected one of them`},
		"window turned around": {audience("  event: {name: e, since: 2011-06-02, until: 2011-06-01}\n"), `f.yaml:4:46: filter.event.until: no time is both since 2011-06-02 and until 2011-06-01`},
		"within a number":      {audience("  event: {name: e, within: 3}\n"), `f.yaml:4:28: filter.event.within: 3 is a number; expected a whole number and a unit, such as 90s, 30m, 12h, 3d or 2w`},
		"within nothing":       {audience("  event: {name: e, within: 0d}\n"), `f.yaml:4:28: filter.event.within: "0d" is not a duration; expected a whole number and a unit, such as 90s, 30m, 12h, 3d or 2w`},
		"within for ever":      {audience("  event: {name: e, within: 40000d}\n"), `f.yaml:4:28: filter.event.within: 40000d is longer than a hundred years`},
		"since nonsense":       {audience("  event: {name: e, since: 2011-06-31}\n"), `f.yaml:4:27: filter.event.since: "2011-06-31" is not in the calendar; expected a date such as 2011-06-01 (UTC midnight) or a time with a zone such as 2011-06-01T09:00:00+09:00`},
		"where a map":          {audience("  event: {name: e, where: {property: p, eq: 1}}\n"), `f.yaml:4:28: filter.event.where: a map; expected a list of {property: NAME, …}`},
		"where without":        {audience("  event: {name: e, where: [{eq: 1}]}\n"), `f.yaml:4:29: filter.event.where[0].property: is missing`},
		"where misspelt":       {audience("  event: {name: e, where: [{property: p, gt: 1, betwen: 3}]}\n"), `f.yaml:4:49: filter.event.where[0].betwen: unknown field "betwen"; expected property, eq, in, gte, gt, lte, lt or exists`},

		"at without zone":   {campaign("at: 2026-12-01T09:00:00\n"), `f.yaml:6:5: at: "2026-12-01T09:00:00" is not a time; expected now, a time with a zone such as 2026-12-01T09:00:00+09:00, or {segment: ID}`},
		"at an audience":    {campaign("at: {audience: x}\n"), "f.yaml:6:6: at.audience: unknown field \"audience\"; expected segment\nf.yaml:6:6: at.segment: is missing"},
		"at tomorrow":       {campaign("at: tomorrow\n"), `f.yaml:6:5: at: "tomorrow" is not a time; expected now, a time with a zone such as 2026-12-01T09:00:00+09:00, or {segment: ID}`},
		"policy":            {campaign("policy: at_mostonce\n"), `f.yaml:6:9: policy: unknown value "at_mostonce"; did you mean "at_most_once"?`},
		"consent":           {campaign("consent: all\n"), `f.yaml:6:10: consent: unknown value "all"; expected not_unsubscribed or subscribed`},
		"from text":         {"kind: Campaign\nid: c\naudience: a\ntemplate: t\nfrom: me@example.test\n", `f.yaml:5:7: from: "me@example.test" is text; expected a map with name or address`},
		"address":           {campaign("reply_to: nobody\n"), `f.yaml:6:11: reply_to: "nobody" is not an e-mail address; expected an address such as hello@example.test`},
		"goal":              {campaign("goal: {event: purchase}\n"), `f.yaml:6:8: goal.within: is missing`},
		"import of nothing": {spec(""), `f.yaml:1:1: an import that makes nothing of its rows; expected profile, segment or event`},
		"segment mode":      {spec("segment: {id: x, mode: append}\n"), `f.yaml:5:24: segment.mode: unknown value "append"; expected replace, add or remove`},
		"removed with":      {spec("segment: {id: x, mode: remove, attributes: {a: {column: A}}}\n"), `f.yaml:5:45: segment.attributes: whoever is removed from a segment has none there; expected mode add or replace`},
		"format":            {strings.Replace(spec("segment: {id: x}\n"), "csv", "xlsx", 1), `f.yaml:3:30: source.format: unknown value "xlsx"; expected csv, tsv, jsonl, avro or parquet`},
		"encoding of avro":  {strings.Replace(spec("segment: {id: x}\n"), "csv", "avro, encoding: utf-8", 1), `f.yaml:3:46: source.encoding: files of format avro have none; expected format csv, tsv or jsonl`},
		"delimiter of json": {strings.Replace(spec("segment: {id: x}\n"), "csv", "jsonl, delimiter: ;", 1), `f.yaml:3:48: source.delimiter: files of format jsonl have none; expected format csv or tsv`},
		"bytes":             {strings.Replace(spec("segment: {id: x}\n"), "csv", "csv, max_decompressed_bytes: 1GB", 1), `f.yaml:3:59: source.max_decompressed_bytes: "1GB" is text; expected a number of bytes from 1`},
		"max_rejects":       {spec("segment: {id: x}\nmax_rejects: 5 %\n"), `f.yaml:6:14: max_rejects: "5 %" is text; expected a number of rows such as 100, or a share of them such as 0.5%`},
		"comma of an int":   {spec("profile: {attributes: {a: {column: A, type: int, decimal_comma: true}}}\n"), `f.yaml:5:65: profile.attributes.a.decimal_comma: only a value of type decimal has one; expected type: decimal beside it`},
		"type":              {spec("profile: {attributes: {a: {column: A, type: integer}}}\n"), `f.yaml:5:45: profile.attributes.a.type: unknown value "integer"; expected string, int, decimal, bool or time`},
		"layout of text":    {spec("profile: {attributes: {a: {column: A, layout: \"2006-01-02\"}}}\n"), `f.yaml:5:47: profile.attributes.a.layout: only a value of type time has a layout; expected type: time beside it`},
		"layout":            {spec("event: {name: e, occurred_at: {column: D, layout: YYYY-MM-DD}}\n"), `f.yaml:5:51: event.occurred_at.layout: "YYYY-MM-DD" does not hold year, month and day; expected the time 2006-01-02 15:04:05 written in the file's way`},
		"zone":              {spec("event: {name: e, occurred_at: {column: D, zone: Mars}}\n"), `f.yaml:5:49: event.occurred_at.zone: unknown time zone "Mars"; expected an IANA name such as Europe/London`},
		"channel":           {spec("profile: {addresses: {sms: {column: A}}}\n"), `f.yaml:5:23: profile.addresses.sms: unknown channel "sms"; expected email`},
		"value":             {spec("profile: {attributes: {a: 3}}\n"), `f.yaml:5:27: profile.attributes.a: 3 is a number; expected a Liquid text, or {column: NAME}`},
		"no content":        {template(""), `f.yaml:1:1: a message without content; expected html, text or both`},
		"no file":           {template("html: {file: none.html}\n"), `f.yaml:5:14: html.file: cannot be read: open none.html: no such file or directory; expected a file beside this document`},
		"file elsewhere":    {template("html: {file: ../x.html}\n"), `f.yaml:5:14: html.file: "../x.html" leaves the directory of this document; expected a file beside it`},
		"two line subject":  {"kind: Template\nid: t\nchannel: email\nsubject: \"a\\nb\"\ntext: x\n", `f.yaml:4:10: subject: a subject is one line`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			docs, errs := definition.Parse("f.yaml", []byte(c.yaml), definition.Options{})
			require.Empty(t, docs)
			var got []string
			for _, e := range errs {
				got = append(got, e.Error())
			}
			require.ElementsMatch(t, strings.Split(c.want, "\n"), got)
		})
	}
}

// badTemplate refuses texts that hold "BAD", naming its line.
type badTemplate int

func (e badTemplate) Error() string   { return "bad word" }
func (e badTemplate) LineNumber() int { return int(e) }

func refuseBad(src string, _, _ bool) error {
	if i := strings.Index(src, "BAD"); i >= 0 {
		return badTemplate(1 + strings.Count(src[:i], "\n"))
	}
	return nil
}

func TestALiquidErrorPointsAtTheLineInTheFileThatHoldsTheText(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "t.html"), []byte("<p>\n\nBAD"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "t.yaml"), []byte(
		"kind: Template\nid: t\nchannel: email\nsubject: BAD\nhtml: {file: t.html}\ntext: |\n  one\n  two BAD\n"), 0o600))
	_, err := definition.Load(dir, definition.Options{ParseTemplate: refuseBad})
	var errs definition.Errors
	require.ErrorAs(t, err, &errs)
	require.Equal(t, strings.Join([]string{
		"DIR/t.html:3: html: not Liquid: bad word",
		"DIR/t.yaml:4:10: subject: not Liquid: bad word",
		"DIR/t.yaml:8: text: not Liquid: bad word",
	}, "\n"), strings.ReplaceAll(errs.Error(), dir, "DIR"))
}

func TestEveryErrorOfEveryFileIsReportedAtOnceAndNothingIsReturned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	for name, text := range map[string]string{
		"b.yaml":     "kind: Audience\nid: A\nfilter: {sgment: x}\n---\nkind: Nothing\nid: n\n",
		"a.yml":      "kind: Audience\nid: good\nfilter: {segment: x}\n",
		"sub/c.yaml": "{",
		"notes.txt":  "not a definition",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	docs, err := definition.Load(dir, definition.Options{})
	require.Empty(t, docs)
	var errs definition.Errors
	require.ErrorAs(t, err, &errs)
	require.Len(t, errs, 4)
	require.Equal(t, []int{2, 3, 5, 1}, []int{errs[0].Line, errs[1].Line, errs[2].Line, errs[3].Line})

	_, err = definition.Load(filepath.Join(dir, "nowhere"), definition.Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.False(t, errors.As(err, &errs))
	_, err = definition.Load(t.TempDir(), definition.Options{})
	require.ErrorContains(t, err, "no definitions here")
}

func TestDocumentsMayOnlyNameWhatIsThere(t *testing.T) {
	t.Parallel()
	docs, errs := definition.Parse("f.yaml", []byte(audience("  segment: tasters\n")+"---\n"+campaign("")+"---\n"+
		strings.Replace(campaign(""), "audience: a", "audience: aa", 1)), definition.Options{})
	require.Empty(t, errs)
	err := definition.Validate(docs, func(kind, id string) bool { return kind == definition.KindTemplate && id == "t" })
	require.Equal(t, strings.Join([]string{
		`f.yaml:4:12: filter.segment: there is no Segment "tasters"; expected the segment.id of an ImportSpec`,
		`f.yaml:12:1: id: Campaign/c is already in f.yaml:6`,
		`f.yaml:14:11: audience: there is no Audience "aa"; did you mean "a"?`,
	}, "\n"), err.Error())
	require.NoError(t, definition.Validate(docs[:2], func(string, string) bool { return true }))

	docs, errs = definition.Parse("f.yaml", []byte(audience("  segment: tasters\n")+"---\n"+spec("segment: {id: tasters}\n")), definition.Options{})
	require.Empty(t, errs)
	require.NoError(t, definition.Validate(docs, nil), "an import spec in the batch makes the segment")
}

func TestLiteralsCompareExactly(t *testing.T) {
	t.Parallel()
	const big = 1<<53 + 1
	for _, c := range []struct {
		a, b filter.Value
		want int
	}{
		{filter.IntValue(5), filter.FloatValue(5), 0},
		{filter.IntValue(5), filter.FloatValue(5.5), -1},
		{filter.IntValue(-5), filter.FloatValue(-5.5), 1},
		{filter.IntValue(big), filter.Value{Kind: filter.Float, Float: 1 << 53}, 1},
		{filter.IntValue(1<<63 - 1), filter.Value{Kind: filter.Float, Float: 1 << 63}, -1},
		{filter.StringValue("Z"), filter.StringValue("a"), -1},
		{filter.TimeValue(time.Unix(0, 0)), filter.TimeValue(time.Unix(0, 1_000)), -1},
	} {
		got, ok := filter.Compare(c.a, c.b)
		require.True(t, ok)
		require.Equal(t, c.want, got, "%s and %s", c.a, c.b)
		got, _ = filter.Compare(c.b, c.a)
		require.Equal(t, -c.want, got, "%s and %s", c.b, c.a)
	}
	_, ok := filter.Compare(filter.StringValue("5"), filter.IntValue(5))
	require.False(t, ok)
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"design.yaml", "everything.yaml"} {
		src, err := os.ReadFile(filepath.Join("testdata/valid", name))
		require.NoError(f, err)
		for _, doc := range bytes.Split(src, []byte("---\n")) {
			f.Add(doc)
		}
	}
	f.Add([]byte("kind: Audience\nid: a\nfilter: {any: [{not: }]}"))
	f.Add([]byte("? [a]\n: b"))
	f.Add([]byte("<<: {a: b}"))
	f.Fuzz(func(t *testing.T, src []byte) {
		docs, errs := definition.Parse("testdata/valid/f.yaml", src, definition.Options{})
		for _, e := range errs {
			if e.Message == "" || e.File == "" {
				t.Fatalf("an error that says nothing: %#v", e)
			}
		}
		for _, d := range docs {
			read, err := definition.Decode(d.Kind, d.Body)
			if err != nil {
				t.Fatalf("%s does not read back: %v\n%s", d.Ref, err, d.Body)
			}
			again, err := definition.Encode(read)
			if err != nil || !bytes.Equal(again, d.Body) {
				t.Fatalf("%s changed: %s\n%s", d.Ref, d.Body, again)
			}
			if !json.Valid(d.Body) {
				t.Fatalf("not JSON: %s", d.Body)
			}
		}
	})
}

func TestRejectsAreTooMany(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		most           definition.MaxRejects
		rejected, rows int64
		soon, atTheEnd bool
	}{
		{"", 1000, 1000, false, false},
		{"0", 0, 10, false, false}, {"0", 1, 10, true, true},
		{"5", 5, 10, false, false}, {"5", 6, 10, true, true},
		{"10%", 1, 10, false, false}, {"10%", 2, 10, false, true},
		{"0.5%", 1, 200, false, false}, {"0.5%", 1, 199, false, true},
		{"100%", 10, 10, false, false}, {"0%", 0, 0, false, false},
	} {
		require.Equal(t, c.soon, c.most.Exceeded(c.rejected, c.rows, false), "%+v", c)
		require.Equal(t, c.atTheEnd, c.most.Exceeded(c.rejected, c.rows, true), "%+v", c)
	}
}
