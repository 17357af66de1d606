package intake

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

var received = time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)

func got() receipt {
	return receipt{at: received, source: "api:web", newID: func() string { return "made-here" }}
}

func TestATrackBecomesAnEvent(t *testing.T) {
	t.Parallel()
	e, p := decide([]byte(`{
		"type": "track", "messageId": "m-1", "userId": "u1", "anonymousId": "a1", "event": "Order Completed",
		"timestamp": "2026-05-17T11:59:00.123456789+00:00", "context": {"ip": "203.0.113.7", "library": {"name": "x"}}, "integrations": {"All": true},
		"properties": {"total": 30.5, "quantity": 3, "gift": true, "coupon": null, "currency": "JPY", "at": "2026-05-17T00:00:00Z", "items": [{"sku": "tea", "n": 1}], "big": 9007199254740993, "note": "\u98db\u811a"}
	}`), "track", got())
	require.Nil(t, p)
	require.Equal(t, topic.Events, e.Topic)
	require.Equal(t, "u1", e.Key)
	require.Equal(t, &event.Event{EventID: "m-1", UserID: "u1", AnonymousID: "a1", Name: "Order Completed", OccurredAt: received.Add(-time.Minute + 123456*time.Microsecond),
		ReceivedAt: received, Source: "api:web", Properties: []event.NamedValue{
			{Name: "at", Value: event.String("2026-05-17T00:00:00Z")}, {Name: "big", Value: event.Int(9007199254740993)}, {Name: "coupon", Value: event.Null()},
			{Name: "currency", Value: event.String("JPY")}, {Name: "gift", Value: event.Bool(true)}, {Name: "items", Value: event.JSON(`[{"n":1,"sku":"tea"}]`)},
			{Name: "note", Value: event.String("飛脚")}, {Name: "quantity", Value: event.Int(3)}, {Name: "total", Value: event.Float(30.5)},
		}}, e.Record)
}

func TestWhoIsMeant(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][3]string{
		`{"event":"x","userId":"u"}`:                               {"u", "", "made-here"},
		`{"event":"x","userId":97234974}`:                          {"97234974", "", "made-here"},
		`{"event":"x","anonymousId":"a","messageId":"m"}`:          {"a", "a", "m"},
		`{"event":"x","userId":null,"anonymousId":"a"}`:            {"a", "a", "made-here"},
		`{"event":"x","userId":"u","anonymousId":"a"}`:             {"u", "a", "made-here"},
		`{"event":"x","userId":"\u0000\ud800","anonymousId":null}`: {"\x00\uFFFD", "", "made-here"},
	} {
		e, p := decide([]byte(body), "track", got())
		require.Nil(t, p, body)
		rec := e.Record.(*event.Event)
		require.Equal(t, want, [3]string{rec.UserID, rec.AnonymousID, rec.EventID}, body)
		require.Equal(t, rec.UserID, e.Key)
	}
}

func TestAnIdentifyBecomesAPatch(t *testing.T) {
	t.Parallel()
	ja, tokyo, acme := "ja", "Asia/Tokyo", "acme"
	for body, want := range map[string]*event.ProfilePatch{
		`{"userId":"u","traits":{"plan":"gold","age":41,"email":" u@example.test ","old":null}}`: {
			Set:   []event.NamedValue{{Name: "age", Value: event.Int(41)}, {Name: "email", Value: event.String(" u@example.test ")}, {Name: "plan", Value: event.String("gold")}},
			Unset: []string{"old"}, Addresses: []event.AddressPatch{{Channel: "email", Address: "u@example.test"}}},
		`{"userId":"u","traits":{"email":null}}`: {Unset: []string{"email"}, Addresses: []event.AddressPatch{{Channel: "email"}}},
		`{"userId":"u","traits":null}`:           {},
		`{"userId":"u","traits":{"email":"a@example.test"},"context":{"locale":"en-US","ip":"::1","hikyaku":{"addresses":{"email":"b@example.test"},"consents":{"email":"subscribed"},"locale":"ja","time_zone":"Asia/Tokyo","account_id":"acme"}}}`: {
			Set: []event.NamedValue{{Name: "email", Value: event.String("a@example.test")}}, Addresses: []event.AddressPatch{{Channel: "email", Address: "b@example.test"}},
			Consents: []event.ConsentPatch{{Channel: "email", Consent: "subscribed"}}, Locale: &ja, TimeZone: &tokyo, AccountID: &acme},
		`{"userId":"u","context":{"hikyaku":{"addresses":{"email":null}}}}`: {Addresses: []event.AddressPatch{{Channel: "email"}}},
	} {
		e, p := decide([]byte(body), "identify", got())
		require.Nil(t, p, body)
		require.Equal(t, topic.ProfileUpdates, e.Topic)
		want.UserID, want.OccurredAt, want.SetAt, want.SetBy = "u", received, received, "api:web"
		require.Equal(t, want, e.Record, body)
	}
}

func TestWhatCannotBeUsedSaysWhy(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 513)
	for body, want := range map[string][2]string{
		`{"type":"track","event":"x"}`:                                                               {"userId", "missing"},
		`{"type":"track","event":"x","userId":{"a":1}}`:                                              {"userId", "type"},
		`{"type":"track","event":"x","userId":"` + long + `"}`:                                       {"userId", "too_long"},
		`{"type":"track","event":"x","anonymousId":true}`:                                            {"anonymousId", "type"},
		`{"type":"track","userId":"u"}`:                                                              {"event", "missing"},
		`{"type":"track","userId":"u","event":5}`:                                                    {"event", "type"},
		`{"type":"track","userId":"u","event":"` + long + `"}`:                                       {"event", "too_long"},
		`{"type":"track","userId":"u","event":"x","messageId":"` + long + `"}`:                       {"messageId", "too_long"},
		`{"type":"track","userId":"u","event":"x","properties":[1]}`:                                 {"properties", "type"},
		`{"type":"track","userId":"u","event":"x","properties":{"n":1e999}}`:                         {"properties.n", "value"},
		`{"type":"track","userId":"u","event":"x","timestamp":1700000000}`:                           {"timestamp", "type"},
		`{"type":"track","userId":"u","event":"x","timestamp":"yesterday"}`:                          {"timestamp", "value"},
		`{"type":"track","userId":"u","event":"x","timestamp":"1999-12-31T23:59:59Z"}`:               {"timestamp", "out_of_range"},
		`{"type":"track","userId":"u","event":"x","timestamp":"2026-05-18T12:00:01Z"}`:               {"timestamp", "out_of_range"},
		`{"type":"track","userId":"u","event":"x","sentAt":"now"}`:                                   {"sentAt", "value"},
		`{"type":"track","userId":"u","event":"x","originalTimestamp":"1999-01-01"}`:                 {"originalTimestamp", "out_of_range"},
		`{"userId":"u","event":"x"}`:                                                                 {"type", "missing"},
		`{"type":"alias","userId":"u","previousId":"x"}`:                                             {"type", "unsupported"},
		`{"type":"identify","userId":"u","traits":{"email":5}}`:                                      {"traits.email", "type"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"consents":{"email":"maybe"}}}}`:      {"context.hikyaku.consents.email", "value"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"consents":{"emial":"subscribed"}}}}`: {"context.hikyaku.consents", "channel"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"addresses":{"fax":"1"}}}}`:           {"context.hikyaku.addresses", "channel"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"locale":7}}}`:                        {"context.hikyaku.locale", "type"},
		`{"type":"identify","userId":"u","traits":{"email":"` + long + `"}}`:                         {"context.hikyaku.addresses.email", "too_long"},
		`[]`:   {"", "type"},
		`{"a"`: {"", "json"},
		``:     {"", "json"},
		`{"type":"track","userId":"u","event":"x","properties":{"x":"` + strings.Repeat("x", MaxEventBytes) + `"}}`: {"", "too_large"},
	} {
		_, p := decide([]byte(body), "", got())
		require.NotNil(t, p, body[:min(len(body), 200)])
		require.Equal(t, want, [2]string{p.Field, p.Code}, body[:min(len(body), 200)])
		require.NotEmpty(t, p.Reason)
	}
}

func TestWhenItHappened(t *testing.T) {
	t.Parallel()
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		require.NoError(t, err)
		return v
	}
	for name, c := range map[string]struct {
		fields, batchSentAt string
		want                time.Time
	}{
		"nothing is said":               {``, ``, received},
		"the source says":               {`"timestamp":"2026-05-01T10:00:00+09:00"`, ``, at("2026-05-01T01:00:00Z")},
		"a date is UTC midnight":        {`"timestamp":"2026-05-01"`, ``, at("2026-05-01T00:00:00Z")},
		"without a zone it is UTC":      {`"timestamp":"2026-05-01T10:00:00"`, ``, at("2026-05-01T10:00:00Z")},
		"the first moment":              {`"timestamp":"2000-01-01T00:00:00Z"`, ``, at("2000-01-01T00:00:00Z")},
		"a little ahead":                {`"timestamp":"2026-05-18T12:00:00Z"`, ``, received},
		"a clock two hours slow":        {`"timestamp":"2026-05-17T09:59:30Z","sentAt":"2026-05-17T10:00:00Z"`, ``, at("2026-05-17T11:59:30Z")},
		"a clock that knows no date":    {`"originalTimestamp":"1970-01-01T00:00:10Z","sentAt":"1970-01-01T00:00:40Z"`, ``, at("2026-05-17T11:59:30Z")},
		"a clock years ahead":           {`"timestamp":"2031-05-17T11:59:30Z","sentAt":"2031-05-17T12:00:00Z"`, ``, at("2026-05-17T11:59:30Z")},
		"the batch was sent":            {`"timestamp":"2026-05-17T09:59:30Z"`, `"2026-05-17T10:00:00Z"`, at("2026-05-17T11:59:30Z")},
		"the event was sent":            {`"timestamp":"2026-05-17T09:59:30Z","sentAt":"2026-05-17T12:00:00Z"`, `"2026-05-17T10:00:00Z"`, at("2026-05-17T09:59:30Z")},
		"sent only":                     {`"sentAt":"2026-05-17T10:00:00Z"`, ``, received},
		"corrected before it came here": {`"originalTimestamp":"2020-01-01T00:00:00Z","timestamp":"2026-05-17T08:00:00Z","sentAt":"2020-01-01T00:00:05Z"`, ``, at("2026-05-17T08:00:00Z")},
		"happened after it was sent":    {`"timestamp":"2026-05-17T10:00:30Z","sentAt":"2026-05-17T10:00:00Z"`, ``, received},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"event":"x","userId":"u"`
			if c.fields != "" {
				body += "," + c.fields
			}
			g := got()
			g.sentAt = json.RawMessage(c.batchSentAt)
			e, p := decide([]byte(body+"}"), "track", g)
			require.Nil(t, p)
			require.Equal(t, c.want.UTC(), e.Record.(*event.Event).OccurredAt)
			require.Equal(t, received, e.Record.(*event.Event).ReceivedAt)
		})
	}
}

func TestWriteKeys(t *testing.T) {
	t.Parallel()
	keys, err := ParseKeys("web:k1, web:k2,app:k3")
	require.NoError(t, err)
	for text, want := range map[string]string{"k1": "web", "k2": "web", "k3": "app", "k": "", "": "", "web:k1": "", "K1": ""} {
		name, ok := keys.Name(text)
		require.Equal(t, want, name, text)
		require.Equal(t, want != "", ok, text)
	}
	keys, err = ParseKeys("dev")
	require.NoError(t, err)
	name, ok := keys.Name("dev")
	require.True(t, ok)
	require.Equal(t, DefaultKeyName, name)
	for _, bad := range []string{"", "a:,b:c", ":x", "a:b,", strings.Repeat("n", 65) + ":k"} {
		_, err := ParseKeys(bad)
		require.Error(t, err, bad)
		require.NotContains(t, err.Error(), "b:c")
	}
}

// FuzzDecide: whatever is sent, it is a record that can be stored and read again,
// or a problem with a reason.
func FuzzDecide(f *testing.F) {
	for _, seed := range []string{
		`{"type":"track","event":"x","userId":"u","properties":{"a":[1,{"b":null}],"c":1e5}}`,
		`{"type":"identify","userId":1.50,"traits":{"email":"a@b","x":{}},"context":{"hikyaku":{"consents":{"email":"subscribed"}}}}`,
		`{"type":"track","event":"x","anonymousId":"a","timestamp":"9999-12-31T23:59:59Z","sentAt":"0000-01-01T00:00:00Z"}`,
		`{"type":"track","event":"\ud800","userId":"u","timestamp":"2026-05-17"}`, `[`, `null`, `{"userId":-}`,
	} {
		f.Add([]byte(seed), `"2026-05-17T10:00:00Z"`)
	}
	f.Fuzz(func(t *testing.T, body []byte, sentAt string) {
		g := got()
		g.sentAt = json.RawMessage(sentAt)
		e, p := decide(body, "", g)
		if p != nil {
			require.NotEmpty(t, p.Code)
			require.NotEmpty(t, p.Reason)
			_, err := json.Marshal(p)
			require.NoError(t, err)
			return
		}
		require.NotEmpty(t, e.Key)
		bytes := e.Record.AppendAvro(nil)
		switch rec := e.Record.(type) {
		case *event.Event:
			require.False(t, rec.OccurredAt.Before(earliest) || rec.OccurredAt.After(received))
			require.NoError(t, new(event.Event).DecodeAvro(bytes))
		case *event.ProfilePatch:
			require.NoError(t, new(event.ProfilePatch).DecodeAvro(bytes))
		default:
			t.Fatalf("%T", rec)
		}
	})
}
