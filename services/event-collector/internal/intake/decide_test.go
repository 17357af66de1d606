package intake

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

var received = time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)

func got() *receipt {
	return &receipt{at: received, source: "api:web", scopes: allScopes, newID: func() string { return "made-here" }}
}

// all is what one event becomes.
func all(body, kind string, got *receipt) ([]output.Entry, *Problem) {
	var r request
	r.readSingle(body)
	if r.problem != nil {
		return nil, r.problem
	}
	return decide(nil, &r.calls[0], kind, got)
}

// one is for what becomes one record.
func one(body, kind string, got *receipt) (output.Entry, *Problem) {
	entries, p := all(body, kind, got)
	if len(entries) != 1 {
		return output.Entry{}, p
	}
	return entries[0], p
}

func TestATrackBecomesAnEvent(t *testing.T) {
	t.Parallel()
	e, p := one((`{
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
		`{"event":"x","userId":"u","properties":[ ],"context":[]}`: {"u", "", "made-here"},
		`{"event":"x","userId":"u","name":5,"category":{},"groupId":[1],"traits":"x","context":{"traits":{"n":1e999},"hikyaku":7}}`: {"u", "", "made-here"},
		`{"event":"x","userId":"u","anonymousId":"a"}`:             {"u", "a", "made-here"},
		`{"event":"x","userId":"\u0000\ud800","anonymousId":null}`: {"\x00\uFFFD", "", "made-here"},
	} {
		e, p := one(body, "track", got())
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
		`{"userId":"u","context":{"traits":{"plan":"gold"}}}`:                  {Set: []event.NamedValue{{Name: "plan", Value: event.String("gold")}}},
		`{"userId":"u","traits":{"a":1},"context":{"traits":{"plan":"gold"}}}`: {Set: []event.NamedValue{{Name: "a", Value: event.Int(1)}}},
		`{"userId":"u","context":{"hikyaku":{"addresses":{"email":null}}}}`:    {Addresses: []event.AddressPatch{{Channel: "email"}}},
	} {
		e, p := one(body, "identify", got())
		require.Nil(t, p, body)
		require.Equal(t, topic.ProfileUpdates, e.Topic)
		want.UserID, want.OccurredAt, want.SetAt, want.SetBy = "u", received, received, "api:web"
		require.Equal(t, want, e.Record, body)
	}
}

func TestPagesScreensAndGroups(t *testing.T) {
	t.Parallel()
	acme := "acme"
	text := func(name, value string) event.NamedValue {
		return event.NamedValue{Name: name, Value: event.String(value)}
	}
	for body, want := range map[string]*event.Event{
		`{"type":"page","userId":"u","name":"Home","properties":{"url":"/","name":"other"}}`:            {Name: "page", Properties: []event.NamedValue{text("name", "Home"), text("url", "/")}},
		`{"type":"page","userId":"u","properties":{"title":"T"}}`:                                       {Name: "page", Properties: []event.NamedValue{text("title", "T")}},
		`{"type":"screen","userId":"u","name":"Cart","category":"Shop"}`:                                {Name: "screen", Properties: []event.NamedValue{text("category", "Shop"), text("name", "Cart")}},
		`{"type":"group","userId":"u","groupId":"acme","traits":{"plan":"gold","email":"office@test"}}`: {Name: "group", Properties: []event.NamedValue{text("email", "office@test"), text("group_id", "acme"), text("plan", "gold")}},
	} {
		entries, p := all(body, "", got())
		require.Nil(t, p, body)
		want.EventID, want.UserID, want.OccurredAt, want.ReceivedAt, want.Source = "made-here", "u", received, received, "api:web"
		last := entries[len(entries)-1]
		require.Equal(t, output.Entry{Topic: topic.Events, Key: "u", Record: want}, last, body)
		if want.Name != "group" {
			require.Len(t, entries, 1)
			continue
		}
		require.Equal(t, []output.Entry{{Topic: topic.ProfileUpdates, Key: "u", Record: &event.ProfilePatch{
			UserID: "u", OccurredAt: received, SetAt: received, SetBy: "api:web", AccountID: &acme}}}, entries[:1], "the account's traits are not the person's")
	}
}

// A writer may keep records for long after their request was answered.
// Not beside others: what it spoils after it let go of it may be the next one's.
func TestRecordsOutliveTheirRequest(t *testing.T) {
	const body = `{"batch":[{"type":"group","userId":"u","groupId":"acme","traits":{"a":"x","b":[1]}},{"type":"track","userId":"u","event":"e","properties":{"c":"y"}},
		{"type":"identify","userId":"u","traits":{"email":"a@example.test"},"context":{"hikyaku":{"account_id":"acme","locale":"ja"}}},{"type":"dance"}]}`
	bytes := func(entries []output.Entry) (out []string) {
		for _, e := range entries {
			out = append(out, e.Key+" "+string(e.Record.AppendAvro(nil)))
		}
		return out
	}
	var r request
	r.readBatch(body)
	entries, a := (&Handler{}).decide(&r, batch, got())
	require.Equal(t, 3, a.Accepted)
	require.Len(t, entries, 5)
	before := bytes(entries)
	calls := r.calls
	r.values = r.values[:cap(r.values)]
	r.release()
	for i := range calls { // as the next request would
		calls[i] = call{groupID: "other", userID: "other", event: "other"}
	}
	require.Equal(t, before, bytes(entries))
}

func TestAKeySendsWhatItsScopesAllow(t *testing.T) {
	t.Parallel()
	for kind, needs := range map[string]string{"track": "events", "page": "events", "screen": "events", "identify": "profiles", "group": "events+profiles"} {
		for _, has := range []Scopes{ScopeEvents, ScopeProfiles, allScopes} {
			g := got()
			g.scopes = has
			entries, p := all(`{"userId":"u","event":"x","groupId":"g"}`, kind, g)
			if want, err := parseScopes(needs); err != nil || want&^has == 0 {
				require.Nil(t, p, "%s with %s", kind, has)
				continue
			}
			require.Empty(t, entries)
			require.Equal(t, "scope", p.Code)
			require.Contains(t, p.Reason, "lacks the scope "+(allScopes&^has).String())
		}
	}
}

func TestWhatCannotBeUsedSaysWhy(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 513)
	for body, want := range map[string][2]string{
		`{"type":"track","event":"x"}`:                                                                                             {"userId", "missing"},
		`{"type":"track","event":"x","userId":{"a":1}}`:                                                                            {"userId", "type"},
		`{"type":"track","event":"x","userId":"` + long + `"}`:                                                                     {"userId", "too_long"},
		`{"type":"track","event":"x","anonymousId":true}`:                                                                          {"anonymousId", "type"},
		`{"type":"track","userId":"u"}`:                                                                                            {"event", "missing"},
		`{"type":"track","userId":"u","event":5}`:                                                                                  {"event", "type"},
		`{"type":"track","userId":"u","event":"` + long + `"}`:                                                                     {"event", "too_long"},
		`{"type":"track","userId":"u","event":"x","messageId":"` + long + `"}`:                                                     {"messageId", "too_long"},
		`{"type":"track","userId":"u","event":"x","properties":[1]}`:                                                               {"properties", "type"},
		`{"type":"track","userId":"u","event":"x","properties":{"n":1e999}}`:                                                       {"properties.n", "value"},
		`{"type":"track","userId":"u","event":"x","timestamp":1700000000}`:                                                         {"timestamp", "type"},
		`{"type":"track","userId":"u","event":"x","timestamp":"yesterday"}`:                                                        {"timestamp", "value"},
		`{"type":"track","userId":"u","event":"x","timestamp":"1999-12-31T23:59:59Z"}`:                                             {"timestamp", "out_of_range"},
		`{"type":"track","userId":"u","event":"x","timestamp":"2026-05-18T12:00:01Z"}`:                                             {"timestamp", "out_of_range"},
		`{"type":"track","userId":"u","event":"x","sentAt":"now"}`:                                                                 {"sentAt", "value"},
		`{"type":"track","userId":"u","event":"x","originalTimestamp":"1999-01-01"}`:                                               {"originalTimestamp", "out_of_range"},
		`{"userId":"u","event":"x"}`:                                                                                               {"type", "missing"},
		`{"type":"dance","userId":"u"}`:                                                                                            {"type", "unsupported"},
		`{"type":"group","userId":"u"}`:                                                                                            {"groupId", "missing"},
		`{"type":"group","userId":"u","groupId":[]}`:                                                                               {"groupId", "type"},
		`{"type":"page","userId":"u","name":"` + long + `"}`:                                                                       {"name", "too_long"},
		`{"type":"page","userId":"u","name":7}`:                                                                                    {"name", "type"},
		`{"type":"identify","userId":"u","context":{"traits":{"n":1e999}}}`:                                                        {"context.traits.n", "value"},
		`{"type":"identify","userId":"u","context":[1]}`:                                                                           {"context", "type"},
		`{"type":"identify","userId":"u","context":[[]]}`:                                                                          {"context", "type"},
		`{"type":"identify","userId":"u","traits":7,"context":{"traits":{"a":1}}}`:                                                 {"traits", "type"},
		`{"type":"track","userId":"u","event":"x","properties":{"d":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}}`:   {"properties.d", "depth"},
		`{"type":"track","userId":"u","event":"x","integrations":` + strings.Repeat("[", 12000) + strings.Repeat("]", 12000) + `}`: {"", "json"},
		`{"type":"alias","userId":"u","previousId":"x"}`:                                                                           {"type", "unsupported"},
		`{"type":"identify","userId":"u","traits":{"email":5}}`:                                                                    {"traits.email", "type"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"consents":{"email":"maybe"}}}}`:                                    {"context.hikyaku.consents.email", "value"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"consents":{"emial":"subscribed"}}}}`:                               {"context.hikyaku.consents", "channel"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"addresses":{"fax":"1"}}}}`:                                         {"context.hikyaku.addresses", "channel"},
		`{"type":"identify","userId":"u","context":{"hikyaku":{"locale":7}}}`:                                                      {"context.hikyaku.locale", "type"},
		`{"type":"identify","userId":"u","traits":{"email":"` + long + `"}}`:                                                       {"context.hikyaku.addresses.email", "too_long"},
		`[]`:   {"", "type"},
		`{"a"`: {"", "json"},
		``:     {"", "json"},
		`{"type":"track","userId":"u","event":"x","properties":{"x":"` + strings.Repeat("x", MaxEventBytes) + `"}}`: {"", "too_large"},
	} {
		_, p := one(body, "", got())
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
			g.sentAt = sentAt(t, c.batchSentAt)
			e, p := one(body+"}", "track", g)
			require.Nil(t, p)
			require.Equal(t, c.want.UTC(), e.Record.(*event.Event).OccurredAt)
			require.Equal(t, received, e.Record.(*event.Event).ReceivedAt)
		})
	}
}

// sentAt reads a batch's sentAt.
func sentAt(t testing.TB, raw string) moment {
	if raw == "" {
		return moment{}
	}
	var r request
	r.readBatch(`{"batch":[],"sentAt":` + raw + `}`)
	require.Nil(t, r.problem)
	return r.sentAt
}

func TestABatchIsReadWhateverIsInIt(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"writeKey":"k","batch":[{"type":"track"},17,null,"x",[],{}],"sentAt":"2026-05-17T10:00:00Z","context":{"a":[1]}}`: "6",
		`{"batch":[{}],"batch":[{},{}]}`: "2", ` {"batch" : [ ] } `: "0", `{"batch":[{"x":1},]}`: " json", `{"batch":[{"type":"track"}}`: " json", `{"batch":{}}`: "batch type",
		`{}`: "0", `[]`: " type", `17`: " type", ``: " json", `{"batch":[{"type":"tr` + "\n" + `ack"}]}`: " json", `{"batch":[],"sentAt":5}`: "sentAt type", `{"batch":[],"writeKey":5}`: "writeKey type",
		`{"batch":[` + strings.Repeat("{},", maxBatchEvents) + `{}]}`: "batch too_many", `{"batch":[` + strings.Repeat("{},", maxBatchEvents-1) + `{}]}`: "5000",
	} {
		var r request
		r.readBatch(body)
		got := strconv.Itoa(len(r.calls))
		if r.problem != nil {
			got = r.problem.Field + " " + r.problem.Code
		}
		require.Equal(t, want, got, body[:min(len(body), 100)])
		r.release()
	}
	// Nothing of one request is found in the next one.
	r := requestsKept.Get().(*request)
	r.readBatch(`{"batch":[{}]}`)
	require.Equal(t, []call{{raw: "{}"}}, r.calls)
	require.Empty(t, r.writeKey)
}

func TestWriteKeys(t *testing.T) {
	t.Parallel()
	keys, err := ParseKeys("web:k1, web:k2:events,app:k3:profiles+events,crm:k4:profiles", 0)
	require.NoError(t, err)
	for text, want := range map[string]string{"k1": "web events+profiles", "k2": "web events", "k3": "app events+profiles", "k4": "crm profiles", "k": "", "": "", "web:k1": "", "K1": "", "k2:events": ""} {
		got := ""
		if key := keys.Find(text); key != nil {
			got = key.Name + " " + key.Scopes.String()
		}
		require.Equal(t, want, got, text)
	}
	keys, err = ParseKeys("dev", 0)
	require.NoError(t, err)
	require.Equal(t, DefaultKeyName, keys.Find("dev").Name)
	for _, bad := range []string{"", "a:,b:c", ":x", "a:b,", strings.Repeat("n", 65) + ":k", "a:b:", "a:b:admin", "a:b:events+"} {
		_, err := ParseKeys(bad, 0)
		require.Error(t, err, bad)
		require.NotContains(t, err.Error(), "b:c")
	}
}

func TestAKeyPaysForWhatItHasSent(t *testing.T) {
	t.Parallel()
	p, now := pace{perSecond: 100}, received
	require.Zero(t, p.wait(now))
	p.pay(40)
	require.Zero(t, p.wait(now), "a second's worth may come at once")
	p.pay(260)
	require.Equal(t, 2010*time.Millisecond, p.wait(now).Round(time.Millisecond), "a batch is taken whole, and paid for after it")
	require.Equal(t, 1010*time.Millisecond, p.wait(now.Add(time.Second)).Round(time.Millisecond))
	require.Zero(t, p.wait(now.Add(2020*time.Millisecond)))
	require.Zero(t, p.wait(now.Add(time.Hour)))
	p.pay(101)
	require.NotZero(t, p.wait(now.Add(time.Hour)), "who was silent has a second's worth, not an hour's")
	free := pace{}
	free.pay(1e6)
	require.Zero(t, free.wait(now))
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
		f.Add(seed, `"2026-05-17T10:00:00Z"`)
	}
	f.Fuzz(func(t *testing.T, body, sent string) {
		g := got()
		var p *Problem
		r := request{scanner: scanner{s: sent}}
		g.sentAt = r.moment("sentAt", &p)
		entries, p := all(body, "", g)
		if p != nil {
			require.NotEmpty(t, p.Code)
			require.NotEmpty(t, p.Reason)
			_, err := json.Marshal(p)
			require.NoError(t, err)
			return
		}
		require.True(t, json.Valid([]byte(body)))
		require.NotEmpty(t, entries)
		for _, e := range entries {
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
		}
	})
}
