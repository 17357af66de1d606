package collector

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// site is a collector whose intake runs.
type site struct {
	*kafkatest.Kafka
	t    *testing.T
	base string
	tel  *telemetry.Telemetry
	keys *token.Keys
	stop func()

	spoolDir string
}

// intakeConfig is for tests that look into Kafka: a busy broker is waited for as long as may
// be, for what goes into the spool comes later. Tests of the spool set another time.
func intakeConfig(k kafka.Config) Config {
	return Config{Kafka: k, Roles: []string{RoleIntake},
		Tracking: render.Config{URL: "http://127.0.0.1", Secret: "a secret for these tests", KeyID: "1"},
		Intake:   IntakeConfig{Addr: "127.0.0.1:0", WriteKeys: "web:k1,app:k2", AckTimeout: 20 * time.Second, HitTimeout: time.Second, Concurrency: 8, MemoryMiB: 4, Connections: 100, Origins: []string{"*"}},
		Spool:    SpoolConfig{MaxMiB: 64}, Hits: HitsConfig{Address: "truncated"}}
}

func startIntake(t *testing.T, change func(*Config)) *site {
	return startIntakeOn(t, kafkatest.Start(t), change)
}

func startIntakeOn(t *testing.T, k *kafkatest.Kafka, change func(*Config)) *site {
	cfg := intakeConfig(k.Config())
	cfg.Spool.Dir = t.TempDir()
	if change != nil {
		change(&cfg)
	}
	s := &site{Kafka: k, t: t, tel: kafkatest.Telemetry(t, topic.Collector), spoolDir: cfg.Spool.Dir}
	service, err := New(cfg, s.tel)
	require.NoError(t, err)
	// Who sends slowly here is only as slow as the machine is busy.
	service.front.server.ReadTimeout, service.front.server.WriteTimeout = kafkatest.Patience, kafkatest.Patience
	s.keys, err = cfg.Tracking.Keys()
	require.NoError(t, err)
	require.NoError(t, service.front.listen())
	s.base = "http://" + service.front.listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	stopped := false
	s.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			err := <-ended
			if errors.Is(err, context.Canceled) {
				err = nil // it was still waiting for Kafka
			}
			require.NoError(t, err, "an intake that is told to stop stops in good order")
		}
	}
	t.Cleanup(s.stop)
	return s
}

// reply is an answer that has been read.
type reply struct {
	*http.Response
	body string
}

// noRedirect is a client that shows redirects instead of following them.
var noRedirect = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: kafkatest.Patience}

func (s *site) do(method, path string, body io.Reader, change func(*http.Request)) reply {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, body)
	require.NoError(s.t, err)
	if change != nil {
		change(r)
	}
	resp, err := noRedirect.Do(r)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return reply{resp, string(b)}
}

func withKey(r *http.Request) { r.SetBasicAuth("k1", "") }

// started waits until the intake has found Kafka and has written to it, and nothing of that is in the spool.
func (s *site) started() *site {
	s.t.Helper()
	s.direct()
	require.Equal(s.t, http.StatusOK, s.do("POST", "/v1/identify", strings.NewReader(`{"userId":"warm-up"}`), withKey).StatusCode)
	s.direct()
	return s
}

// direct waits until nothing is in the spool, and nothing goes there.
func (s *site) direct() {
	s.t.Helper()
	kafkatest.Eventually(s.t, func() bool { return metric(s.t, s.tel, "intake_state", "direct") == 1 }, "the intake does not write to Kafka")
}

// metric is one value of /metrics: of the series whose label has this value, or that has no label.
func metric(t testing.TB, tel *telemetry.Telemetry, name, label string) float64 {
	t.Helper()
	families, err := tel.Registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestSegmentsLibrariesAreUnderstood(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	pack := func(body string) io.Reader {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write([]byte(body))
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return &b
	}
	for name, c := range map[string]struct {
		path   string
		body   io.Reader
		change func(*http.Request)
		source string
		users  []string // of events
	}{
		"the documentation's curl": {"/v1/track", strings.NewReader(`{"userId":"curl","event":"Item Purchased","properties":{"name":"Leap to Conclusions","revenue":14.99},"context":{"ip":"24.5.68.47"},"timestamp":"2012-12-02T00:30:12.984Z"}`), withKey, "api:web", []string{"curl"}},
		"analytics.js": {"/v1/track", strings.NewReader(`{"timestamp":"2026-05-17T12:00:00.000Z","integrations":{},"type":"track","properties":{"plan":"pro"},"event":"Signed Up","context":{"page":{"path":"/"},"userAgent":"Mozilla/5.0"},"messageId":"ajs-next-1","userId":"js","anonymousId":"7a2c","writeKey":"k2","sentAt":"2026-05-17T12:00:00.500Z","_metadata":{"bundled":["Segment.io"]}}`),
			func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, "api:app", []string{"js"}},
		"analytics-node": {"/v1/batch", strings.NewReader(`{"batch":[{"messageId":"node-next-1","timestamp":"2026-05-17T12:00:00.000Z","type":"track","userId":"node","event":"a","properties":{},"integrations":{},"context":{"library":{"name":"@segment/analytics-node","version":"2.1.0"}},"_metadata":{"nodeVersion":"22.0.0"}},{"messageId":"node-next-2","type":"identify","userId":"node","traits":{"email":"n@example.test"},"timestamp":"2026-05-17T12:00:00.000Z"}],"writeKey":"k1","sentAt":"2026-05-17T12:00:01.000Z"}`),
			func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }, "api:web", []string{"node"}},
		"analytics-python, packed": {"/v1/batch", pack(`{"batch":[{"type":"track","timestamp":"2026-05-17T12:00:00.123456+00:00","context":{},"userId":"python","event":"x","messageId":"p-1","properties":{"n":1}},{"type":"track","anonymousId":"python2","event":"y","messageId":"p-2"}],"sentAt":"2026-05-17T12:00:01.000000+00:00"}`),
			func(r *http.Request) { withKey(r); r.Header.Set("Content-Encoding", "gzip") }, "api:web", []string{"python", "python2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.do("POST", c.path, c.body, c.change)
			require.Equal(t, http.StatusOK, got.StatusCode, got.body)
			require.Contains(t, got.body, `"success":true`)
			found := map[string]string{}
			for _, r := range s.All(t, topic.Events) {
				var e event.Event
				s.Decode(t, r, &e)
				require.Equal(t, e.UserID, string(r.Key))
				require.Equal(t, topic.Partition(e.UserID, 4), r.Partition)
				found[e.UserID] = e.Source
			}
			for _, user := range c.users {
				require.Equal(t, c.source, found[user])
			}
		})
	}
	var patches []event.ProfilePatch
	for _, r := range s.All(t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		s.Decode(t, r, &p)
		if p.UserID == "node" {
			patches = append(patches, p)
		}
	}
	require.Len(t, patches, 1)
	require.Equal(t, []event.AddressPatch{{Channel: "email", Address: "n@example.test"}}, patches[0].Addresses)
}

type answered struct {
	Success  bool
	Accepted int
	Errors   []struct {
		Index               int
		Field, Code, Reason string
	}
}

func read(t *testing.T, r reply) answered {
	t.Helper()
	var a answered
	require.NoError(t, json.Unmarshal([]byte(r.body), &a), r.body)
	return a
}

func TestOfABatchTheGoodEventsAreKept(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	big := strings.Repeat("x", 33<<10)
	got := s.do("POST", "/v1/batch", strings.NewReader(`{"batch":[
		{"type":"track","userId":"u1","event":"a","messageId":"1"}, {"type":"track","userId":"u1","messageId":"2"}, {"type":"alias","userId":"u1","previousId":"a1"}, 17,
		{"type":"track","userId":"u1","event":"b","messageId":"5","properties":{"x":"`+big+`"}}, {"type":"track","userId":"u1","event":"c","messageId":"6"}]}`), withKey)
	require.Equal(t, http.StatusOK, got.StatusCode, got.body)
	a := read(t, got)
	require.True(t, a.Success)
	require.Equal(t, 2, a.Accepted)
	var problems []string
	for _, e := range a.Errors {
		require.NotEmpty(t, e.Reason)
		problems = append(problems, strings.Join([]string{string(rune('0' + e.Index)), e.Field, e.Code}, " "))
	}
	require.Equal(t, []string{"1 event missing", "2 type unsupported", "3  type", "4  too_large"}, problems)
	events := kafkatest.Consume[event.Event](t, s.Kafka, topic.Events, 2)
	require.Equal(t, []string{"1", "6"}, []string{events[0].EventID, events[1].EventID})
	require.Len(t, s.All(t, topic.Events), 2)

	for body, field := range map[string]string{`{"batch":[{"type":"track"}]}`: "userId", `{"batch":[]}`: "batch", `{}`: "batch", `{"batch":{}}`: "batch", `not json`: ""} {
		got := s.do("POST", "/v1/batch", strings.NewReader(body), withKey)
		require.Equal(t, http.StatusBadRequest, got.StatusCode, body)
		a := read(t, got)
		require.False(t, a.Success)
		require.Len(t, a.Errors, 1)
		require.Equal(t, field, a.Errors[0].Field, body)
	}
	require.Equal(t, http.StatusBadRequest, s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u1"}`), withKey).StatusCode)
	require.Len(t, s.All(t, topic.Events), 2)

	letters := s.All(t, topic.DeadLetters(topic.Collector))
	require.Len(t, letters, 4, "what was answered with 400 was not recorded")
	seen := map[int64]bool{}
	for i, r := range letters {
		var d event.DeadLetter
		s.Decode(t, r, &d)
		require.Equal(t, []string{topic.Collector, kafka.OriginHTTP}, []string{d.Service, d.Topic})
		require.Equal(t, []string{"u1", "u1", "", "u1"}[i], d.UserID)
		require.Equal(t, []event.Header{{Key: "source", Value: []byte("api:web")}}, d.Headers)
		seen[d.Offset] = true
		if i == 0 {
			require.Equal(t, `{"type":"track","userId":"u1","messageId":"2"}`, string(d.Value))
			require.Equal(t, "event: missing: the name of the event is missing", d.Reason)
		}
	}
	require.Len(t, seen, 4, "each is one of its own")

	mixed := `{"batch":[{"type":"track","userId":"u1","event":"a","messageId":"7"},{"type":"track"}]}`
	got = s.do("POST", "/v1/batch?strict=1", strings.NewReader(mixed), withKey)
	require.Equal(t, http.StatusBadRequest, got.StatusCode)
	require.Equal(t, 1, read(t, got).Errors[0].Index)
	require.Len(t, s.All(t, topic.Events), 2)
	require.Len(t, s.All(t, topic.DeadLetters(topic.Collector)), 4)
	require.Equal(t, http.StatusOK, s.do("POST", "/v1/batch", strings.NewReader(mixed), withKey).StatusCode)
	require.Equal(t, http.StatusOK, s.do("POST", "/v1/batch", strings.NewReader(mixed), withKey).StatusCode)
	seen = map[int64]bool{}
	for _, r := range s.All(t, topic.DeadLetters(topic.Collector)) {
		var d event.DeadLetter
		s.Decode(t, r, &d)
		seen[d.Offset] = true
	}
	require.Len(t, seen, 5, "sent again it is the same dead letter")
}

func TestPathsOfAllLibraries(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) {
		c.Intake.WriteKeys = "web:k1,narrow:k2:events"
		c.Intake.Origins = []string{"https://shop.example"}
	}).started()
	for path, body := range map[string]string{
		"/v1/track": `{"userId":"u","event":"e1"}`, "/v1/t": `{"userId":"u","event":"e2"}`, "/v1/page": `{"userId":"u"}`, "/v1/p": `{"userId":"u"}`, "/v1/screen": `{"userId":"u"}`, "/v1/s": `{"userId":"u"}`,
		"/v1/identify": `{"userId":"u"}`, "/v1/i": `{"userId":"u"}`, "/v1/group": `{"userId":"u","groupId":"acme"}`, "/v1/g": `{"userId":"u","groupId":"acme"}`,
		"/v1/batch": `{"batch":[{"type":"track","userId":"u","event":"e3"}]}`, "/v1/b": `{"batch":[{"type":"page","userId":"u"}]}`, "/v1/import": `{"batch":[{"type":"track","userId":"u","event":"e4"}]}`,
		"/beacon/v1/batch?writeKey=k1": `{"batch":[{"type":"track","userId":"u","event":"e5"}]}`, "/v1/m": `{"series":[]}`,
	} {
		got := s.do("POST", path, strings.NewReader(body), func(r *http.Request) {
			if !strings.Contains(path, "writeKey") {
				withKey(r)
			}
			r.Header.Set("Content-Type", "text/plain;charset=UTF-8") // as sendBeacon has it
		})
		require.Equal(t, http.StatusOK, got.StatusCode, path+got.body)
	}
	names := map[string]int{}
	for _, r := range s.All(t, topic.Events) {
		var e event.Event
		s.Decode(t, r, &e)
		names[e.Name]++
	}
	require.Equal(t, map[string]int{"e1": 1, "e2": 1, "e3": 1, "e4": 1, "e5": 1, "page": 3, "screen": 2, "group": 2}, names)
	accounts := 0
	for _, r := range s.All(t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		if s.Decode(t, r, &p); p.AccountID != nil {
			require.Equal(t, "acme", *p.AccountID)
			accounts++
		}
	}
	require.Equal(t, 2, accounts)

	narrow := func(r *http.Request) { r.SetBasicAuth("k2", "") }
	for name, c := range map[string]struct {
		method, path, body string
		change             func(*http.Request)
		status             int
		code, says         string
	}{
		"alias":                          {"POST", "/v1/alias", `{"userId":"u","previousId":"a"}`, withKey, 501, "unsupported", "people are not merged yet"},
		"alias, short":                   {"POST", "/v1/a", `{}`, withKey, 501, "unsupported", ""},
		"GET":                            {"GET", "/v1/track", ``, withKey, 405, "method", "POST is"},
		"no such path":                   {"POST", "/v1/merge", `{}`, withKey, 404, "path", "POST /v1/{track"},
		"no such link method":            {"DELETE", "/c/x", ``, nil, 405, "method", "GET is"},
		"a key without the scope":        {"POST", "/v1/identify", `{"userId":"u"}`, narrow, 403, "scope", "lacks the scope profiles"},
		"a key without the scope, batch": {"POST", "/v1/batch", `{"batch":[{"type":"group","groupId":"g","userId":"u"}]}`, narrow, 403, "scope", "lacks the scope profiles"},
		"a page of another's":            {"POST", "/v1/track", `{"userId":"u","event":"x"}`, func(r *http.Request) { withKey(r); r.Header.Set("Origin", "https://evil.example") }, 403, "origin", ""},
		"deep":                           {"POST", "/v1/batch", strings.Repeat("[", 400_000), withKey, 400, "json", ""},
	} {
		got := s.do(c.method, c.path, strings.NewReader(c.body), c.change)
		require.Equal(t, c.status, got.StatusCode, name)
		require.Equal(t, "application/json", got.Header.Get("Content-Type"), name)
		require.Equal(t, "no-store", got.Header.Get("Cache-Control"), name)
		a := read(t, got)
		require.False(t, a.Success)
		require.Equal(t, c.code, a.Errors[0].Code, name)
		require.Contains(t, a.Errors[0].Reason, c.says, name)
	}

	from := func(origin string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Origin", origin)
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Access-Control-Request-Headers", "anonymousid,authorization,content-type")
		}
	}
	preflight := s.do("OPTIONS", "/v1/batch", nil, from("https://shop.example"))
	require.Equal(t, http.StatusNoContent, preflight.StatusCode)
	require.Equal(t, "https://shop.example", preflight.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "Origin", preflight.Header.Get("Vary"))
	require.Contains(t, preflight.Header.Get("Access-Control-Allow-Methods"), "POST")
	require.Equal(t, "anonymousid,authorization,content-type", preflight.Header.Get("Access-Control-Allow-Headers"))
	refused := s.do("OPTIONS", "/v1/batch", nil, from("https://evil.example"))
	require.Equal(t, http.StatusForbidden, refused.StatusCode)
	require.Empty(t, refused.Header.Get("Access-Control-Allow-Origin"))
}

func TestAKeyThatSendsTooMuchIsToldWhenToComeAgain(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.WriteKeyRate = 0.01 }).started() // whose first event is paid for after 100 s
	for _, change := range []func(*http.Request){withKey, nil} {
		got := s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x","writeKey":"k1"}`), change)
		require.Equal(t, http.StatusTooManyRequests, got.StatusCode)
		after, err := strconv.Atoi(got.Header.Get("Retry-After"))
		require.NoError(t, err)
		require.True(t, after > 100 && after <= 200, after)
		require.Equal(t, "rate", read(t, got).Errors[0].Code)
	}
	require.Equal(t, http.StatusOK, s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x"}`), func(r *http.Request) { r.SetBasicAuth("k2", "") }).StatusCode, "another key's rate is its own")
	require.Len(t, s.All(t, topic.Events), 1)
}

func TestOnlyKnownWriteKeysAreTaken(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	basic := func(user string) func(*http.Request) { return func(r *http.Request) { r.SetBasicAuth(user, "") } }
	const good, inBody = `{"userId":"u","event":"x"}`, `{"userId":"u","event":"x","writeKey":"k1"}`
	for name, c := range map[string]struct {
		path, body string
		change     func(*http.Request)
		want       int
	}{
		"none": {"/v1/track", good, nil, 401}, "unknown": {"/v1/track", good, basic("k"), 401}, "unknown in the body": {"/v1/track", `{"userId":"u","event":"x","writeKey":"dev"}`, nil, 401},
		"the default": {"/v1/track", good, basic("dev"), 401}, "Basic goes first": {"/v1/track", inBody, basic("k"), 401}, "not JSON and no key": {"/v1/track", `{`, nil, 401},
		"a number": {"/v1/track", `{"userId":"u","event":"x","writeKey":5}`, nil, 401}, "none, batch": {"/v1/batch", `{"batch":[` + good + `]}`, nil, 401},
		"of an item, batch": {"/v1/batch", `{"batch":[{"type":"track","userId":"u","event":"x","writeKey":"k1"}]}`, nil, 401},
		"known":             {"/v1/track", good, basic("k2"), 200}, "known in the body": {"/v1/track", inBody, nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.do("POST", c.path, strings.NewReader(c.body), c.change)
			require.Equal(t, c.want, got.StatusCode, got.body)
			if c.want == 401 {
				require.Contains(t, got.Header.Get("WWW-Authenticate"), "Basic")
				require.Equal(t, "write_key", read(t, got).Errors[0].Code)
			}
		})
	}
	require.Len(t, s.All(t, topic.Events), 2)
}

// endless is a body that says nothing about its length and does not end.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestBodiesAreLimitedWhileTheyAreRead(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := io.CopyN(z, &endless{}, 200<<20)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.Less(t, bomb.Len(), 400<<10)
	packed := func(r *http.Request) { withKey(r); r.Header.Set("Content-Encoding", "gzip") }

	require.Equal(t, 413, s.do("POST", "/v1/batch", bytes.NewReader(bomb.Bytes()), packed).StatusCode)
	require.Equal(t, 413, s.do("POST", "/v1/batch", strings.NewReader(strings.Repeat(" ", 500<<10+1)), withKey).StatusCode)
	require.Equal(t, 413, s.do("POST", "/v1/track", strings.NewReader(strings.Repeat(" ", 32<<10+1)), withKey).StatusCode)
	require.Equal(t, 400, s.do("POST", "/v1/batch", strings.NewReader("no gzip"), packed).StatusCode)
	require.Equal(t, 415, s.do("POST", "/v1/batch", strings.NewReader("{}"), func(r *http.Request) { withKey(r); r.Header.Set("Content-Encoding", "br") }).StatusCode)

	without := &endless{}
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.base+"/v1/batch", without)
	require.NoError(t, err)
	withKey(r)
	resp, err := noRedirect.Do(r)
	if err == nil { // the server may also have hung up while the client still wrote
		require.Equal(t, 413, resp.StatusCode)
		resp.Body.Close()
	}
	require.Less(t, without.read.Load(), int64(64<<20), "far more than is on its way in the buffers of a connection")

	fits := `{"batch":[{"type":"track","userId":"u","event":"x"}` + strings.Repeat(" ", 499<<10) + `]}`
	require.Equal(t, 200, s.do("POST", "/v1/batch", strings.NewReader(fits), withKey).StatusCode)
}

const target = "https://shop.example/tea?size=100g&ref=飛脚#top"

var link = token.Token{MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "autumn", UserID: "u-1",
	RequestedAt: time.Now().Add(-100 * time.Second)}

func (s *site) token(purpose token.Purpose, to string) string {
	s.t.Helper()
	t := link
	t.Purpose, t.Target = purpose, to
	b, err := s.keys.Append(nil, "1", &t)
	require.NoError(s.t, err)
	return string(b)
}

func pixelOf(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/pixel.gif")
	require.NoError(t, err)
	return string(b)
}

func private(t *testing.T, r reply) {
	t.Helper()
	require.Contains(t, r.Header.Get("Cache-Control"), "no-store")
	require.Equal(t, []string{"no-cache", "0"}, []string{r.Header.Get("Pragma"), r.Header.Get("Expires")}, "caches of HTTP/1.0 too")
	require.Empty(t, r.Header.Get("ETag")+r.Header.Get("Last-Modified"), "nothing to ask by whether it changed")
	require.Equal(t, "no-referrer", r.Header.Get("Referrer-Policy"))
	require.Contains(t, r.Header.Get("X-Robots-Tag"), "noindex")
}

func TestAClickIsRecordedAndLeadsToItsTarget(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	path := "/c/" + s.token(token.Click, target)
	before := time.Now().Add(-time.Millisecond)
	head := s.do("HEAD", path, nil, nil)
	require.Equal(t, http.StatusFound, head.StatusCode)
	first := kafkatest.Consume[event.Engagement](t, s.Kafka, topic.Engagements, 1)[0]
	require.Equal(t, "HEAD", first.Method, "who looks before anything is opened is kept too")
	got := s.do("GET", path, nil, func(r *http.Request) {
		r.Header.Set("Sec-Purpose", "prefetch;prerender")
		r.Header.Set("X-Forwarded-For", "198.51.100.9") // nobody is trusted
		r.Header.Set("User-Agent", "Mail/1.0 "+strings.Repeat("x", 2000))
		r.Header.Set("Referer", "https://mail.example/\xff")
	})
	require.Equal(t, http.StatusFound, got.StatusCode)
	location, err := url.QueryUnescape(got.Header.Get("Location"))
	require.NoError(t, err)
	require.Equal(t, target, location)
	require.Equal(t, head.Header.Get("Location"), got.Header.Get("Location"), "everybody is led to the same place")
	require.Empty(t, got.body)
	private(t, got)
	e := kafkatest.Consume[event.Engagement](t, s.Kafka, topic.Engagements, 2)[1]
	require.False(t, e.EngagementID.IsZero())
	require.True(t, e.OccurredAt.After(before) && !e.OccurredAt.After(time.Now()))
	require.Len(t, e.UserAgent, 512)
	require.GreaterOrEqual(t, e.LatencyMs, before.Sub(link.RequestedAt).Milliseconds(), "since the message was asked for")
	require.LessOrEqual(t, e.LatencyMs, time.Since(link.RequestedAt).Milliseconds())
	e.EngagementID, e.OccurredAt, e.UserAgent, e.LatencyMs = identity.ID{}, time.Time{}, "", 0
	require.Equal(t, event.Engagement{MessageID: link.MessageID, RunID: link.RunID, CampaignID: "autumn", UserID: "u-1", Channel: "email",
		Kind: "clicked", URL: target, Method: "GET", Network: "127.0.0.0/24", Referer: "https://mail.example/", Purpose: "prerender"}, e)

	// The same link again is another hit.
	require.Equal(t, http.StatusFound, s.do("GET", path, nil, nil).StatusCode)
	hits := kafkatest.Consume[event.Engagement](t, s.Kafka, topic.Engagements, 3)
	require.NotEqual(t, hits[1].EngagementID, hits[2].EngagementID)
}

func TestAnOpenIsRecordedAndIsAPixel(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	require.Len(t, pixelOf(t), 43)
	for _, path := range []string{"/o/" + s.token(token.Open, ""), "/o/" + s.token(token.Open, "") + ".gif"} {
		got := s.do("GET", path, nil, func(r *http.Request) {
			r.Header.Set("If-None-Match", "*")
			r.Header.Set("If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
			r.Header.Set("Range", "bytes=0-0")
		})
		require.Equal(t, http.StatusOK, got.StatusCode, "never 304 or a part: a hit that a cache answers is not seen")
		require.Equal(t, "image/gif", got.Header.Get("Content-Type"))
		require.Equal(t, pixelOf(t), got.body)
		private(t, got)
	}
	for _, e := range kafkatest.Consume[event.Engagement](t, s.Kafka, topic.Engagements, 2) {
		require.Equal(t, "opened", e.Kind)
		require.Equal(t, link.MessageID, e.MessageID)
	}
}

func TestUnsubscribingTakesAPost(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	path := "/u/" + s.token(token.Unsubscribe, "")
	ask := s.do("GET", path, nil, nil)
	require.Equal(t, http.StatusOK, ask.StatusCode)
	require.Contains(t, ask.body, `<form method="post">`)
	require.Contains(t, ask.Header.Get("Content-Security-Policy"), "default-src 'none'")
	private(t, ask)
	require.Equal(t, http.StatusOK, s.do("HEAD", path, nil, nil).StatusCode)
	require.Empty(t, s.All(t, topic.Engagements), "scanners follow every link")

	form := func(kind string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Content-Type", kind) }
	}
	before := time.Now().Truncate(time.Microsecond)
	var parts bytes.Buffer
	m := multipart.NewWriter(&parts)
	require.NoError(t, m.WriteField("List-Unsubscribe", "One-Click"))
	require.NoError(t, m.Close())
	for name, got := range map[string]reply{
		"the page's button":    s.do("POST", path, strings.NewReader("confirm=yes"), form("application/x-www-form-urlencoded")),
		"one-click":            s.do("POST", path, strings.NewReader("List-Unsubscribe=One-Click"), form("application/x-www-form-urlencoded")),
		"one-click, multipart": s.do("POST", path, &parts, form(m.FormDataContentType())),
	} {
		require.Equal(t, http.StatusOK, got.StatusCode, name)
		require.Contains(t, got.body, "You are unsubscribed", name)
		private(t, got)
	}
	ids := map[identity.ID]bool{}
	for _, e := range kafkatest.Consume[event.Engagement](t, s.Kafka, topic.Engagements, 3) {
		require.Equal(t, []string{"unsubscribed", "POST", "u-1"}, []string{e.Kind, e.Method, e.UserID})
		ids[e.EngagementID] = true
	}
	require.Len(t, ids, 1, "asked three times, it is one unsubscription")
	patches := 0
	for _, r := range s.All(t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		s.Decode(t, r, &p)
		if p.UserID != link.UserID {
			continue
		}
		patches++
		require.Equal(t, []event.ConsentPatch{{Channel: "email", Consent: "unsubscribed"}}, p.Consents)
		require.Equal(t, "unsubscribe:"+link.MessageID.String(), p.SetBy)
		require.False(t, p.OccurredAt.Before(before) || p.OccurredAt.After(time.Now()), p.OccurredAt)
		require.Empty(t, p.Set)
	}
	require.Equal(t, 3, patches)
}

func TestATamperedLinkIsRefusedAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	s := startIntake(t, nil).started()
	good := s.token(token.Click, target)
	other := &site{t: t}
	var err error
	other.keys, err = token.NewKeys("1", map[string][]byte{"1": []byte("somebody else's secret")})
	require.NoError(t, err)
	foreign := other.token(token.Click, target)
	// Said to be of the version without a time, so that it would be read otherwise.
	b, err := base64.RawURLEncoding.DecodeString(good)
	require.NoError(t, err)
	b[0]--
	relabelled := base64.RawURLEncoding.EncodeToString(b)
	swapped := []byte(good)
	swapped[len(swapped)/2] ^= 1
	for _, c := range [][2]string{
		{"GET", "/c/" + string(swapped)}, {"GET", "/c/" + good[:len(good)-1]}, {"GET", "/c/" + good + "A"}, {"GET", "/c/x"}, {"GET", "/c/https:%2F%2Fevil.example"},
		{"GET", "/o/" + good}, {"GET", "/u/" + good}, {"POST", "/u/" + good}, {"POST", "/u/x"}, {"HEAD", "/c/x"},
		{"HEAD", "/c/" + string(swapped)}, {"HEAD", "/c/" + good[:len(good)-1]}, {"HEAD", "/o/" + good}, {"HEAD", "/u/" + good}, {"POST", "/u/" + s.token(token.Open, "")},
		{"POST", "/u/" + s.token(token.Unsubscribe, "")[:40]}, {"POST", "/u/" + foreign}, {"GET", "/c/" + foreign}, {"GET", "/c/" + relabelled},
		{"GET", "/c/" + s.token(token.Open, "")}, {"GET", "/o/x.gif"}, {"GET", "/c/" + s.token(token.Click, "javascript:alert(1)")}, {"GET", "/c/" + s.token(token.Click, "//evil.example")},
	} {
		got := s.do(c[0], c[1], nil, nil)
		require.Equal(t, http.StatusBadRequest, got.StatusCode, c[1])
		require.Empty(t, got.Header.Get("Location"))
	}
	require.Empty(t, s.All(t, topic.Engagements))
	require.Len(t, s.All(t, topic.ProfileUpdates), 1, "the one that started wrote")
}

// begin sends the first part of a request and returns when the server reads it.
func (s *site) begin(first string) (rest func(string), ended chan reply) {
	s.t.Helper()
	before := s.reading()
	body, feed := io.Pipe()
	ended = make(chan reply, 1)
	go func() {
		defer close(ended)
		ended <- s.do("POST", "/v1/track", body, withKey)
	}()
	send := func(text string) {
		_, err := feed.Write([]byte(text))
		require.NoError(s.t, err)
	}
	send(first)
	kafkatest.Eventually(s.t, func() bool { return s.reading() > before }, "the request does not begin")
	return func(text string) {
		send(text)
		feed.Close()
	}, ended
}

// reading is how many requests' bodies are on their way.
func (s *site) reading() float64 {
	s.t.Helper()
	families, err := s.tel.Registry.Gather()
	require.NoError(s.t, err)
	for _, f := range families {
		if f.GetName() == "intake_reading" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	s.t.Fatal("no intake_reading")
	return 0
}

func TestASlowSenderTakesNobodysTurn(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.Concurrency = 1 }).started()
	rest, ended := s.begin(`{"userId":"u",`)
	require.Equal(t, http.StatusOK, s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x"}`), withKey).StatusCode)
	require.Equal(t, http.StatusFound, s.do("GET", "/c/"+s.token(token.Click, target), nil, nil).StatusCode)
	rest(`"event":"x"}`)
	require.Equal(t, http.StatusOK, (<-ended).StatusCode)
}

func TestManyWhoSendSlowlyKeepNobodyOut(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.Connections = 20 }).started()
	// On connections of their own, each behind all that were opened before: one that is
	// kept may be the one at rest for longest when many are accepted at once.
	send := func() {
		require.Equal(t, http.StatusOK, s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x"}`), func(r *http.Request) { withKey(r); r.Close = true }).StatusCode)
		require.Equal(t, http.StatusFound, s.do("GET", "/c/"+s.token(token.Click, target), nil, func(r *http.Request) { r.Close = true }).StatusCode)
	}
	var first net.Conn
	for i := range 100 { // each begins a request, or says nothing at all
		c, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
		require.NoError(t, err)
		defer c.Close()
		if i%2 == 0 {
			_, err = io.WriteString(c, "POST /v1/track HTTP/1.1\r\nHost: x\r\nX-Slow: ")
			require.NoError(t, err)
		}
		if first == nil {
			first = c
		}
		if i%5 == 0 {
			send()
		}
	}
	send()
	require.NoError(t, first.SetReadDeadline(time.Now().Add(kafkatest.Patience)))
	_, err := first.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the first of them is closed")
}

func TestSlowSendersOfMuchGiveWayToOthers(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Intake.MemoryMiB = 1 }).started()
	address := strings.TrimPrefix(s.base, "http://")
	const slow, each = 40, 100 << 10 // four times what may be held
	part := strings.Repeat(" ", each)
	var conns []net.Conn
	for i := range slow {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer c.Close()
		conns = append(conns, c)
		_, err = io.WriteString(c, "POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\nAuthorization: Basic azE6\r\nExpect: 100-continue\r\n\r\n")
		require.NoError(t, err)
		said := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
		_, err = io.ReadFull(c, said)
		require.NoError(t, err)
		require.Contains(t, string(said), "100 Continue", "it began before those who come later")
		_, err = io.WriteString(c, part)
		require.NoError(t, err)
		if i%10 == 0 { // between them, and after them, others are taken in
			require.Equal(t, http.StatusOK, s.do("POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x"}`), withKey).StatusCode)
		}
	}
	big := `{"batch":[{"type":"track","userId":"u","event":"x"}` + strings.Repeat(" ", 400<<10) + `]}`
	require.Equal(t, http.StatusOK, s.do("POST", "/v1/batch", strings.NewReader(big), withKey).StatusCode)
	// The first of them has been told; what it had sent is not held any more.
	require.NoError(t, conns[0].SetReadDeadline(time.Now().Add(kafkatest.Patience)))
	resp, err := http.ReadResponse(bufio.NewReader(conns[0]), nil)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "5", resp.Header.Get("Retry-After"))
	kafkatest.Eventually(t, func() bool { return s.reading() <= 11 }, "more go on than there is room for")
}

func TestARequestInHandIsAnsweredAtTheEnd(t *testing.T) {
	t.Parallel()
	s := startIntake(t, func(c *Config) { c.Lifecycle.Drain = kafkatest.Patience }).started()
	rest, ended := s.begin(`{"userId":"last","event":"x","messageId":"last"`)
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	kafkatest.Eventually(t, func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	}, "the port is still open")
	rest(`}`)
	require.Equal(t, http.StatusOK, (<-ended).StatusCode)
	<-stopped
	ids := map[string]bool{}
	for _, r := range s.All(t, topic.Events) {
		var e event.Event
		s.Decode(t, r, &e)
		ids[e.EventID] = true
	}
	require.True(t, ids["last"])
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	cfg := intakeConfig(kafka.Config{Brokers: []string{"127.0.0.1:1"}, RegistryURL: "http://127.0.0.1:1", Namespace: "test", Instance: "0", SessionTimeout: 15 * time.Second, DeadLettersPerMinute: 1, Compression: "none"})
	cfg.Intake.Addr = taken.Addr().String()
	service, err := New(cfg, kafkatest.Telemetry(t, topic.Collector))
	require.NoError(t, err)
	err = service.Run(t.Context())
	require.ErrorContains(t, err, "COLLECTOR_ADDR "+cfg.Intake.Addr)
	require.Equal(t, fault.ClassTransient, fault.ClassOf(err), "which ends the process with 3")
}

func TestSettings(t *testing.T) {
	t.Parallel()
	load := func(env map[string]string) (Config, error) {
		return config.Load[Config](t.Context(), envconfig.MapLookuper(env))
	}
	cfg, err := load(map[string]string{"ALLOW_INSECURE_DEFAULTS": "true"})
	require.NoError(t, err)
	require.True(t, cfg.Has(RoleIntake) && cfg.Has(RoleSink))
	require.Equal(t, "127.0.0.1:8080", cfg.Intake.Addr)
	cfg, err = load(map[string]string{"ROLES": "sink", "TRACKING_SECRET": "a secret for these tests"})
	require.NoError(t, err, "a sink takes no write keys")
	service, err := New(cfg, telemetry.New("x", telemetry.Config{}, io.Discard))
	require.NoError(t, err)
	require.Nil(t, service.front, "and opens no port")
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{nil, "WRITE_KEYS"}, {nil, "TRACKING_SECRET"},
		{map[string]string{"WRITE_KEYS": "web:dev"}, "WRITE_KEYS"},
		{map[string]string{"WRITE_KEYS": "a:,b"}, "WRITE_KEYS"},
		{map[string]string{"ROLES": "intake,dance"}, "ROLES"},
		{map[string]string{"SINK_LINGER": "1h"}, "SINK_LINGER"},
		{map[string]string{"SINK_BATCH_RECORDS": "0"}, "SINK_BATCH_RECORDS"},
		{map[string]string{"INTAKE_ACK_TIMEOUT": "0s"}, "INTAKE_ACK_TIMEOUT"},
		{map[string]string{"INTAKE_CONCURRENCY": "0"}, "INTAKE_CONCURRENCY"},
		{map[string]string{"INTAKE_MEMORY_MIB": "0"}, "INTAKE_MEMORY_MIB"},
		{map[string]string{"COLLECTOR_CONNECTIONS": "0"}, "COLLECTOR_CONNECTIONS"},
		{map[string]string{"INTAKE_ORIGINS": "shop.example"}, "INTAKE_ORIGINS"},
		{map[string]string{"WRITE_KEY_RATE": "-1"}, "WRITE_KEY_RATE"},
		{map[string]string{"WRITE_KEYS": "a:b:admin"}, "WRITE_KEYS"},
		{map[string]string{"SPOOL_MAX_MIB": "0"}, "SPOOL_MAX_MIB"},
	} {
		_, err := load(c.env)
		require.ErrorContains(t, err, c.want)
	}
}

// A provider's report goes the way of everything that comes in: answered once Kafka
// has it, and with 503 while it has not. What is not set is not served.
func TestAProvidersReportIsDurableBeforeItIsAnswered(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{7}, 32)
	s := startIntake(t, func(c *Config) {
		c.Webhooks.Sources = config.Secret("acme:whsec_" + base64.StdEncoding.EncodeToString(secret))
	}).started()
	echo, err := s.keys.Append(nil, "1", &token.Token{Purpose: token.Echo, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "c", UserID: "u1"})
	require.NoError(t, err)
	body := fmt.Sprintf(`{"type":"message.bounced","timestamp":%q,"data":{"message":%q,"permanent":true,"address":"u1@example.test"}}`, time.Now().UTC().Format(time.RFC3339), echo)
	post := func(path string, secret []byte) reply {
		return s.do("POST", path, strings.NewReader(body), func(r *http.Request) {
			at := strconv.FormatInt(time.Now().Unix(), 10)
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte("msg_1." + at + "." + body))
			r.Header.Set("webhook-id", "msg_1")
			r.Header.Set("webhook-timestamp", at)
			r.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		})
	}
	require.Equal(t, http.StatusNotFound, post("/w/ses", secret).StatusCode)
	require.Equal(t, http.StatusNotFound, post("/w/line", secret).StatusCode)
	require.Equal(t, http.StatusUnauthorized, post("/w/hooks/acme", []byte("another")).StatusCode)
	require.Equal(t, http.StatusUnauthorized, post("/w/hooks/nobody", secret).StatusCode)
	require.Empty(t, s.All(t, topic.Outcomes))
	for range 2 {
		got := post("/w/hooks/acme", secret)
		require.Equal(t, http.StatusOK, got.StatusCode, got.body)
	}
	outcomes, patched := kafkatest.Consume[event.Outcome](t, s.Kafka, topic.Outcomes, 2), 0
	require.Equal(t, outcomes[0], outcomes[1], "delivered twice it is one outcome")
	require.Equal(t, []string{"bounced", "u1", "acme"}, []string{outcomes[0].Outcome, outcomes[0].UserID, outcomes[0].Provider})
	for _, r := range s.All(t, topic.ProfileUpdates) {
		if string(r.Key) != "u1" {
			continue
		}
		var p event.ProfilePatch
		s.Decode(t, r, &p)
		require.Equal(t, []event.SuppressionPatch{{Channel: "email", Address: "u1@example.test", Reason: "bounced"}}, p.Suppressions)
		patched++
	}
	require.Equal(t, 2, patched)
}

// Who delivers is known when it is read: more than are worked on at once send slowly, and a provider is heard all the same.
func TestManyWhoDeliverSlowlyKeepNoProviderOut(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	s := startIntake(t, func(c *Config) {
		c.Webhooks.LINE, c.Intake.Connections, c.Intake.AckTimeout = secret, 200, 100*time.Millisecond
	})
	for range 128 {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "POST /w/line HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\nExpect: 100-continue\r\n\r\n")
		require.NoError(t, err)
		line, err := bufio.NewReader(c).ReadString('\n')
		require.NoError(t, err)
		require.Contains(t, line, "100 Continue", "it is being read")
	}
	const body = `{"destination":"U","events":[]}`
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	got := s.do("POST", "/w/line", strings.NewReader(body), func(r *http.Request) {
		r.Header.Set("X-Line-Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	})
	require.Equal(t, http.StatusOK, got.StatusCode, got.body)
}

func TestSettingsOfWebhooksThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]WebhookConfig{
		"a topic that is none": {SESTopics: []string{"ses-events"}}, "a queue for a topic": {SESTopics: []string{"arn:aws:sqs:eu-central-1:123456789012:q"}}, "a queue that is none": {SESQueueURL: "ses-events"},
		"a secret without a source": {Sources: "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}, "a short secret": {Sources: "acme:whsec_MDEyMw=="}, "a secret of another kind": {Sources: "acme:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"},
		"a source called as a provider": {Sources: "ses:whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}, "a short channel secret": {LINE: "short"},
	} {
		require.Error(t, c.Validate(), name)
	}
	require.NoError(t, WebhookConfig{SESTopics: []string{"arn:aws-cn:sns:cn-north-1:123456789012:ses-events"}, Sources: "acme:whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz,acme:whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI0",
		LINE: "0123456789abcdef0123456789abcdef"}.Validate())
}
