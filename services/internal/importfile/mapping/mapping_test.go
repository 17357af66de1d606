package mapping

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

var (
	started  = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	modified = started.Add(-time.Hour)
	imp      = Import{ID: identity.Hash("an import"), StartedAt: started, LastModified: modified}
)

func column(name string, typ ...string) definition.Value {
	v := definition.Value{Column: name, Type: definition.TypeString}
	if len(typ) > 0 {
		v.Type = typ[0]
	}
	return v
}

func text(liquid string) definition.Value {
	return definition.Value{Liquid: liquid, Type: definition.TypeString}
}

func at(v definition.Value, layout, zone string) definition.Value {
	v.Type, v.Layout, v.Zone = definition.TypeTime, layout, zone
	return v
}

func pointer[T any](v T) *T { return &v }

func everything() *definition.ImportSpec {
	trimmed := column("country")
	trimmed.Trim = true
	return &definition.ImportSpec{
		ID:     "all",
		Source: definition.Source{Prefix: "p/", Format: "csv", Delimiter: ","},
		UserID: text("{{ user_id | split: '.' | first }}"),
		Profile: &definition.Profile{
			Addresses:  map[string]definition.Value{"email": text("{{ row['E-Mail'] }}")},
			Attributes: map[string]definition.Value{"country": trimmed, "age": column("age", definition.TypeInt), "vip": column("vip", definition.TypeBool), "born": at(column("born"), "2006-01-02", "UTC"), "key": text("{{ user_id }}!")},
			Consents:   map[string]definition.Value{"email": column("consent")},
			Locale:     pointer(column("locale")),
			TimeZone:   pointer(column("zone")),
		},
		Segment: &definition.Segment{ID: "seg", Attributes: map[string]definition.Value{"coupon": column("coupon")}},
		Event: &definition.Event{
			Name:       text("bought"),
			OccurredAt: at(column("when"), "2006-01-02 15:04", "Europe/London"),
			Properties: map[string]definition.Value{"price": column("price", definition.TypeDecimal)},
		},
	}
}

var header = []string{"user_id", "E-Mail", "country", "age", "vip", "born", "consent", "locale", "zone", "coupon", "when", "price"}

func good() []string {
	return []string{"7.0", "a@example.test", "  UK ", "-3", "Yes", "1999-12-31", "subscribed", "en", "Asia/Tokyo", "X1", "2025-07-01 10:00", "4.15"}
}

func TestARowBecomesEverythingTheSpecHas(t *testing.T) {
	t.Parallel()
	m, err := Compile(liquid.New(liquid.Options{}), everything(), header, imp)
	require.NoError(t, err)
	for range 2 { // reused buffers leave nothing behind
		empty := good()
		for i := 1; i < len(empty)-2; i++ {
			empty[i] = ""
		}
		empty[0] = "8"
		out, rej := m.Row(empty, 9, 8)
		require.Nil(t, rej)
		// As bytes: an empty list and none are the same.
		require.Equal(t, (&event.ProfilePatch{
			UserID: "8", OccurredAt: modified, SetAt: started, SetBy: "import:" + imp.ID.String(),
			Set: []event.NamedValue{{Name: "key", Value: event.String("8!")}},
		}).AppendAvro(nil), out.Patch.AppendAvro(nil))

		out, rej = m.Row(good(), 10, 9)
		require.Nil(t, rej)
		require.Equal(t, "7", out.UserID)
		require.Equal(t, &event.ProfilePatch{
			UserID: "7", OccurredAt: modified, SetAt: started, SetBy: "import:" + imp.ID.String(),
			Set: []event.NamedValue{
				{Name: "age", Value: event.Int(-3)}, {Name: "born", Value: event.Time(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC))},
				{Name: "country", Value: event.String("UK")}, {Name: "key", Value: event.String("7!")}, {Name: "vip", Value: event.Bool(true)},
			},
			Addresses: []event.AddressPatch{{Channel: "email", Address: "a@example.test"}},
			Consents:  []event.ConsentPatch{{Channel: "email", Consent: "subscribed"}},
			Locale:    pointer("en"), TimeZone: pointer("Asia/Tokyo"),
		}, out.Patch)
		require.Equal(t, &event.SegmentMember{
			SegmentID: "seg", ImportID: imp.ID, UserID: "7", OccurredAt: started, Line: 10,
			Attributes: []event.NamedValue{{Name: "coupon", Value: event.String("X1")}},
		}, out.Member)
		require.Equal(t, &event.Event{
			EventID: identity.ImportedEvent(imp.ID, 9), UserID: "7", Name: "bought", Source: "import:" + imp.ID.String(),
			OccurredAt: time.Date(2025, 7, 1, 9, 0, 0, 0, time.UTC), ReceivedAt: started,
			Properties: []event.NamedValue{{Name: "price", Value: event.Float(4.15)}},
		}, out.Event)
	}
}

func TestABadRowIsRejectedWithColumnAndReason(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		column int
		value  string
		where  string
		reason string
	}{
		"no id":         {0, "", "user_id", "no user_id"},
		"long id":       {0, strings.Repeat("x", 513), "user_id", "longer than 512"},
		"int":           {3, "3.5", "age", "whole number"},
		"int too large": {3, "9223372036854775808", "age", "whole number"},
		"bool":          {4, "maybe", "vip", "neither true"},
		"time":          {5, "31.12.1999", "born", "2006-01-02"},
		"consent":       {6, "yes", "consent", "neither subscribed"},
		"zone":          {8, "Mars/Olympus", "zone", "time zone"},
		"no time":       {10, "", "when", "no time"},
		"broken date":   {10, "2025-02-30 10:00", "when", "2006-01-02 15:04"},
		"too early":     {10, "1999-12-31 23:59", "when", "before 2000-01-01"},
		"too late":      {10, "2026-03-05 05:07", "when", "a day after"},
		"decimal":       {11, "4,15", "price", "decimal"},
		"not a number":  {11, "NaN", "price", "decimal"},
		"hex":           {11, "0x10", "price", "decimal"},
		"too big":       {11, "1e999", "price", "decimal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := Compile(liquid.New(liquid.Options{}), everything(), header, imp)
			require.NoError(t, err)
			row := good()
			row[c.column] = c.value
			_, rej := m.Row(row, 2, 1)
			require.NotNil(t, rej)
			require.Equal(t, c.where, rej.Column)
			require.Contains(t, rej.Reason, c.reason)
		})
	}
	m, err := Compile(liquid.New(liquid.Options{}), everything(), header, imp)
	require.NoError(t, err)
	for _, fields := range [][]string{good()[1:], append(good(), "")} {
		_, rej := m.Row(fields, 2, 1)
		require.NotNil(t, rej)
		require.Empty(t, rej.Column)
		require.Contains(t, rej.Reason, "columns, the header has 12")
	}
	// Ahead of receipt by less than a day is receipt.
	row := good()
	row[10] = "2026-03-05 05:06"
	out, rej := m.Row(row, 2, 1)
	require.Nil(t, rej)
	require.Equal(t, started, out.Event.OccurredAt)
}

func TestALiquidTextThatFailsRejectsTheRow(t *testing.T) {
	t.Parallel()
	spec := everything()
	spec.Event.Name = text("{{ price | divided_by: 0 }}")
	m, err := Compile(liquid.New(liquid.Options{}), spec, header, imp)
	require.NoError(t, err)
	_, rej := m.Row(good(), 2, 1)
	require.NotNil(t, rej)
	require.Equal(t, "event.name", rej.Column)
	require.NotContains(t, rej.Reason, "4.15")
}

func TestAHeaderThatDoesNotFitNamesEverythingItLacks(t *testing.T) {
	t.Parallel()
	_, err := Compile(liquid.New(liquid.Options{}), everything(), []string{"user_id", "country", "country", "age", "vip", "born", "consent", "locale", "zone", "coupon", "price"}, imp)
	require.EqualError(t, err, `the header lacks the column "E-Mail" that the spec names; the header has the column "country" more than once; the header lacks the column "when" that the spec names`)

	spec := everything()
	spec.UserID = text("{{ customer }}")
	_, err = Compile(liquid.New(liquid.Options{}), spec, header, imp)
	require.EqualError(t, err, `the header lacks the column "customer" that the spec names`)
}

// The file speaks for the moment it was written, and never for the future.
func TestAPatchIsAsOldAsItsFile(t *testing.T) {
	t.Parallel()
	for given, want := range map[time.Time]time.Time{
		modified:                         modified,
		started.Add(time.Hour):           started,
		time.Unix(0, 0).UTC():            time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		started.Add(-3 * 24 * time.Hour): started.Add(-3 * 24 * time.Hour),
	} {
		m, err := Compile(liquid.New(liquid.Options{}), everything(), header, Import{ID: imp.ID, StartedAt: started, LastModified: given})
		require.NoError(t, err)
		out, rej := m.Row(good(), 2, 1)
		require.Nil(t, rej)
		require.Equal(t, want, out.Patch.OccurredAt)
	}
}

// Eight attributes and a member, plain columns: the aim of DESIGN §14.
func BenchmarkRow(b *testing.B) {
	spec := &definition.ImportSpec{
		UserID:  column("c0"),
		Profile: &definition.Profile{Attributes: map[string]definition.Value{}},
		Segment: &definition.Segment{ID: "s"},
	}
	names := []string{"c0"}
	fields := []string{"12345678"}
	for _, n := range []string{"c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"} {
		names, fields = append(names, n), append(fields, "value-"+n)
		spec.Profile.Attributes[n] = column(n)
	}
	m, err := Compile(liquid.New(liquid.Options{}), spec, names, imp)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		m.Row(fields, 1, 1)
	}
}

func TestDecimalsWithAComma(t *testing.T) {
	t.Parallel()
	v := &value{kind: definition.TypeDecimal, comma: true}
	for in, want := range map[string]float64{
		"1,5": 1.5, "-0,25": -0.25, "+3": 3, "1.234,5": 1234.5, "1.234.567": 1234567, "12 345,00": 12345, "1\u00a0234\u202f567,8": 1234567.8, ",5": 0.5,
	} {
		got, rej := v.typed(in)
		require.Nil(t, rej, in)
		require.Equal(t, want, got.Float(), in)
	}
	for _, in := range []string{"1,234.5", "1.5", "12.34,5", "1,2,3", "1.2345", "x", ",", "NaN"} {
		_, rej := v.typed(in)
		require.NotNil(t, rej, in)
	}
}

func TestColumnsAreWhatASpecReads(t *testing.T) {
	t.Parallel()
	engine := liquid.New(liquid.Options{})
	got, err := Columns(engine, everything())
	require.NoError(t, err)
	m, err := Compile(engine, everything(), got, imp)
	require.NoError(t, err, "a file with these columns lacks none")
	require.Equal(t, len(got), m.columns)
	require.ElementsMatch(t, []string{"user_id", "E-Mail", "country", "age", "vip", "born", "consent", "locale", "zone", "coupon", "when", "price"}, got)

	computed := &definition.ImportSpec{Source: definition.Source{Format: definition.FormatJSONL}, UserID: text("{{ row[key] }}"), Segment: &definition.Segment{ID: "s"}}
	_, err = Columns(engine, computed)
	require.ErrorContains(t, err, "computes which column")
}
