package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/services/internal/classify"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

const lineSecret = "0123456789abcdef0123456789abcdef"

func signLINE(secret string, body []byte) map[string]string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return map[string]string{"x-line-signature": base64.StdEncoding.EncodeToString(mac.Sum(nil))}
}

func (d *desk) line(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "line-"+name+".json"))
	require.NoError(d.t, err)
	return []byte(strings.ReplaceAll(string(b), "TOKEN", d.echo(func(t *token.Token) { t.Channel = "line" })))
}

// Each kind of event, by a sample.
func TestWhatLINEReportsBecomesConsentsAndEvents(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	const who = "line:U4af4980629f1a3b8c1d2e3f405162738"
	for name, want := range map[string][]string{
		"follow":         {who + ": address line U4af4980629f1a3b8c1d2e3f405162738", who + ": line subscribed", who + ": line_followed"},
		"unfollow":       {who + ": line unsubscribed", who + ": line_unfollowed"},
		"postback":       {who + ": line_postback"},
		"postback-ours":  {"12347: address line U4af4980629f1a3b8c1d2e3f405162738", "12347: line_postback", "12347: clicked"},
		"message":        {who + ": line_message"},
		"group":          nil,
		"unknown":        nil,
		"ping":           nil,
		"several":        {who + ": line unsubscribed", who + ": line_unfollowed", who + ": address line U4af4980629f1a3b8c1d2e3f405162738", who + ": line subscribed", who + ": line_followed"},
		"partly-strange": {"dead letter of webhook:line", who + ": line unsubscribed", who + ": line_unfollowed"},
	} {
		body := d.line(name)
		for _, secret := range []string{lineSecret, "the old secret of LINE"} {
			got := d.post("/w/line", body, signLINE(secret, body))
			require.Equal(t, http.StatusOK, got.Code, name)
			require.Equal(t, want, told(d.take()), name)
		}
	}
	body := d.line("postback-ours")
	d.post("/w/line", body, signLINE(lineSecret, body))
	for _, e := range d.take() {
		if did, ok := e.Record.(*event.Event); ok {
			require.Empty(t, did.Properties, "the token is not kept")
		}
		if hit, ok := e.Record.(*event.Engagement); ok {
			require.EqualValues(t, -1, hit.LatencyMs, "a token without a time does not make a tap a machine's")
			rules, err := classify.All()
			require.NoError(t, err)
			label, _ := rules[len(rules)-1].Classify(classify.Hit{Kind: hit.Kind, Method: hit.Method, UserAgent: hit.UserAgent, LatencyMs: hit.LatencyMs})
			require.Equal(t, "unknown", label)
		}
	}
	body = []byte(strings.ReplaceAll(string(body), d.echo(func(t *token.Token) { t.Channel = "line" }), d.echo(func(t *token.Token) {
		t.Channel, t.RequestedAt = "line", time.Date(2026, 11, 20, 8, 59, 0, 0, time.UTC)
	})))
	d.post("/w/line", body, signLINE(lineSecret, body))
	require.EqualValues(t, 63_000, d.take()[2].Record.(*event.Engagement).LatencyMs)
	body = d.line("message")
	d.post("/w/line", body, signLINE(lineSecret, body))
	for _, e := range d.take() {
		require.NotContains(t, string(e.Record.AppendAvro(nil)), "Hello, world", "nor what somebody wrote")
	}
}

// The same event, delivered again by LINE, is the same records; and the later one
// of two wins by its time, whichever comes last.
func TestALINEEventDeliveredAgainIsTheSame(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	take := func(name string) []output.Entry {
		body := d.line(name)
		require.Equal(t, http.StatusOK, d.post("/w/line", body, signLINE(lineSecret, body)).Code)
		return d.take()
	}
	first, again := take("unfollow"), take("unfollow-again")
	require.Equal(t, first[1].Record.(*event.Event).EventID, again[1].Record.(*event.Event).EventID)
	require.Equal(t, first[0].Record.(*event.ProfilePatch).OccurredAt, again[0].Record.(*event.ProfilePatch).OccurredAt)
	require.True(t, take("follow")[0].Record.(*event.ProfilePatch).OccurredAt.Before(first[0].Record.(*event.ProfilePatch).OccurredAt))
	one, two := take("postback-ours"), take("postback-ours")
	require.Equal(t, one[2].Record, two[2].Record)
}

func TestForgedLINEIsRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	body := d.line("unfollow")
	right := signLINE(lineSecret, body)
	for name, c := range map[string]struct {
		body   []byte
		header map[string]string
	}{
		"no signature":             {body, nil},
		"an empty one":             {body, map[string]string{"x-line-signature": ""}},
		"one that is none":         {body, map[string]string{"x-line-signature": "!"}},
		"of another secret":        {body, signLINE("another secret", body)},
		"of no secret":             {body, signLINE("", body)},
		"of another body":          {append(body[:len(body):len(body)], ' '), right},
		"of another person":        {[]byte(strings.Replace(string(body), "U4af", "U4ae", 1)), right},
		"cut":                      {body, map[string]string{"x-line-signature": right["x-line-signature"][:20]}},
		"the one of another event": {d.line("follow"), right},
		"nothing signed":           {nil, right},
	} {
		require.Equal(t, http.StatusUnauthorized, d.post("/w/line", c.body, c.header).Code, name)
	}
	require.Empty(t, d.take())
	require.EqualValues(t, 10, testutil.ToFloat64(d.results.WithLabelValues("line", resultForged)))

	// What comes through a signed postback is a person's word: only what we signed
	// says more than that.
	for name, echo := range map[string]string{"not ours": "AAAA", "of another channel": d.echo(nil), "a link": d.echo(func(t *token.Token) { t.Channel, t.Purpose = "line", token.Click })} {
		body := []byte(strings.ReplaceAll(string(d.line("postback-ours")), d.echo(func(t *token.Token) { t.Channel = "line" }), echo))
		require.Equal(t, http.StatusOK, d.post("/w/line", body, signLINE(lineSecret, body)).Code)
		require.Equal(t, []string{"line:U4af4980629f1a3b8c1d2e3f405162738: line_postback"}, told(d.take()), name)
	}
}
