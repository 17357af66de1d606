package event_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// edited is a record's schema as another version might have it.
func edited(t testing.TB, r event.Record, edit func(field map[string]any) (keep bool), more ...map[string]any) string {
	t.Helper()
	var schema map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.Schema()), &schema))
	var fields []any
	for _, f := range schema["fields"].([]any) {
		if edit(f.(map[string]any)) {
			fields = append(fields, f)
		}
	}
	for _, f := range more {
		fields = append(fields, f)
	}
	schema["fields"] = fields
	text, err := json.Marshal(schema)
	require.NoError(t, err)
	return string(text)
}

func written(t testing.TB, schema string, native map[string]any) []byte {
	t.Helper()
	codec, err := event.Compile(schema)
	require.NoError(t, err)
	b, err := codec.BinaryFromNative(nil, native)
	require.NoError(t, err)
	return b
}

func nativeOf(t testing.TB, r event.Record) map[string]any {
	t.Helper()
	schema, _ := judge(t, r)
	return toNative(schema, reflect.ValueOf(r).Elem()).(map[string]any)
}

// An older writer did not know some fields and had a narrower number.
func TestDecodeWithAnOlderSchema(t *testing.T) {
	t.Parallel()
	want := request()
	older := edited(t, want, func(f map[string]any) bool {
		if f["name"] == "campaign_version" {
			f["type"] = "int"
		}
		return f["name"] != "variant" && f["name"] != "lane" && f["name"] != "time_zone"
	})
	native := nativeOf(t, want)
	native["campaign_version"] = int32(3)
	want.Variant, want.Lane, want.TimeZone = "", "bulk", "" // the defaults
	var got event.MessageRequest
	got.Variant, got.Lane = "left", "over"
	b := written(t, older, native)
	require.NoError(t, event.DecodeWith(older, b, &got))
	require.Equal(t, want, &got)
	require.NoError(t, event.DecodeWith(older, b, &got), "with what was remembered")
	require.Equal(t, want, &got)
	require.Error(t, event.DecodeWith(older, b[:len(b)-1], &got))
	require.Error(t, event.DecodeWith(older, append(b, 0), &got))
}

// A newer writer knows fields that we do not, at any depth, and may say
// nothing where we say something only.
func TestDecodeWithANewerSchema(t *testing.T) {
	t.Parallel()
	want := request()
	newer := edited(t, want, func(f map[string]any) bool {
		switch f["name"] {
		case "locale":
			f["type"] = []any{"null", "string"}
			f["default"] = nil
		case "segments":
			item := f["type"].(map[string]any)["items"].(map[string]any)
			item["fields"] = append([]any{map[string]any{"name": "rank", "type": "int"}}, item["fields"].([]any)...)
		}
		return true
	}, map[string]any{"name": "subject_hint", "type": []any{"null", "string"}, "default": nil}, map[string]any{"name": "priority", "type": "int", "default": 0})
	native := nativeOf(t, want)
	native["locale"] = map[string]any{"string": "ja-JP"}
	native["subject_hint"] = map[string]any{"string": "hint"}
	native["segments"].([]any)[0].(map[string]any)["rank"] = int32(7)
	var got event.MessageRequest
	require.NoError(t, event.DecodeWith(newer, written(t, newer, native), &got))
	require.Equal(t, want, &got)

	native["locale"] = nil
	require.ErrorContains(t, event.DecodeWith(newer, written(t, newer, native), &got), "locale")
}

// Every nullable kind crosses versions: with a field dropped in front of them,
// goavro does all the work.
func TestDecodeWithKeepsEverythingElse(t *testing.T) {
	t.Parallel()
	for _, name := range event.Names() {
		want := sample(name)
		newer := edited(t, want, func(map[string]any) bool { return true }, map[string]any{"name": "novelty", "type": "string", "default": ""})
		native := nativeOf(t, want)
		native["novelty"] = "new"
		got := fresh(name)
		require.NoError(t, event.DecodeWith(newer, written(t, newer, native), got), name)
		require.Equal(t, want, got)
		require.NoError(t, event.DecodeWith(newer, written(t, newer, nativeOf(t, fresh(name))), got), name)
		require.Equal(t, fresh(name), got, "what is null or empty stays so")
	}
}

// A registry may hand out the schema reformatted or with other words in it;
// that must not cost the slow way, nor fail.
func TestDecodeWithTheSameBytesOtherwiseWritten(t *testing.T) {
	want := request()
	same := edited(t, want, func(f map[string]any) bool { delete(f, "doc"); delete(f, "default"); return true })
	require.NotEqual(t, want.Schema(), same)
	var got event.MessageRequest
	b := want.AppendAvro(nil)
	require.NoError(t, event.DecodeWith(same, b, &got))
	require.Equal(t, want, &got)
	allocs := testing.AllocsPerRun(10, func() { require.NoError(t, event.DecodeWith(same, b, &got)) })
	require.Less(t, allocs, 20.0)
}

// A difference that is nowhere but inside an array's items is one.
func TestDecodeWithAnotherItem(t *testing.T) {
	t.Parallel()
	want := request()
	newer := edited(t, want, func(f map[string]any) bool {
		if f["name"] == "segments" {
			item := f["type"].(map[string]any)["items"].(map[string]any)
			item["fields"] = append(item["fields"].([]any), map[string]any{"name": "rank", "type": "int", "default": 0})
		}
		return true
	})
	var got event.MessageRequest
	require.NoError(t, event.DecodeWith(newer, written(t, newer, nativeOf(t, want)), &got))
	require.Equal(t, want, &got)
}

func TestDecodeWithRefusesWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	r := request()
	missing := edited(t, r, func(f map[string]any) bool { return f["name"] != "user_id" })
	native := nativeOf(t, r)
	require.ErrorContains(t, event.DecodeWith(missing, written(t, missing, native), r), "user_id")
	other := edited(t, r, func(f map[string]any) bool {
		if f["name"] == "user_id" {
			f["type"] = "long"
		}
		return true
	})
	native["user_id"] = int64(1)
	require.ErrorContains(t, event.DecodeWith(other, written(t, other, native), r), "user_id")
	for _, schema := range []string{``, `{`, `"string"`, (&event.Tick{}).Schema(), `{"type":"record","name":"MessageRequest","fields":[{"name":"m","type":"MessageRequest"}]}`} {
		require.Error(t, event.DecodeWith(schema, []byte{0}, r), schema)
	}
}

func FuzzDecodeWith(f *testing.F) {
	newer := edited(f, request(), func(map[string]any) bool { return true }, map[string]any{"name": "novelty", "type": "string", "default": ""})
	f.Add(request().AppendAvro([]byte{}))
	f.Add(append(request().AppendAvro(nil), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got event.MessageRequest
		if err := event.DecodeWith(newer, b, &got); err == nil {
			var again event.MessageRequest
			require.NoError(t, again.DecodeAvro(got.AppendAvro(nil)))
		}
	})
}
