package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/token"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

const acmeSecret = "a secret of the courier, today"

func signAcme(secret, id string, at time.Time, body []byte) map[string]string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s.%s.%s", id, seconds, body)
	return map[string]string{"webhook-id": id, "webhook-timestamp": seconds, "webhook-signature": "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}
}

// The specification's own example: with its secret, its headers verify its body.
func TestStandardWebhooksExampleVerifies(t *testing.T) {
	t.Parallel()
	sources, err := ParseSources("acme:whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(t, err)
	body := []byte(`{"test": 2432232314}`)
	const signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	require.True(t, signed(sources["acme"], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []string{signature}, body))
	require.True(t, signed(sources["acme"], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []string{"v1a,AAAA v1,AAAA " + signature}, body), "among others")
	require.False(t, signed(sources["acme"], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265331", []string{signature}, body))
	require.False(t, signed(sources["acme"], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []string{strings.Replace(signature, "v1,", "v2,", 1)}, body))
	require.False(t, signed(sources["acme"], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []string{strings.TrimPrefix(signature, "v1,")}, body), "of no version")
}

func (d *desk) report(kind, more string) []byte {
	return fmt.Appendf(nil, `{"type":%q,"timestamp":"2026-11-20T11:00:00Z","data":{"message":%q%s}}`, kind, d.echo(nil), more)
}

func TestWhatASignedWebhookReports(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	for _, c := range []struct {
		kind, more string
		want       []string
	}{
		{"message.delivered", ``, []string{"delivered at 11:00:00.000"}},
		{"message.delayed", `,"reason":"QueueFull"`, []string{"delayed queue_full at 11:00:00.000"}},
		{"message.bounced", `,"reason":"no_such_user","permanent":true,"address":" A@example.com "`, []string{"12347: A@example.com suppressed, bounced", "bounced no_such_user at 11:00:00.000"}},
		{"message.bounced", `,"address":"a@example.com"`, []string{"bounced at 11:00:00.000"}},
		{"message.complained", `,"address":"a@example.com"`, []string{"12347: a@example.com suppressed, complained", "12347: email unsubscribed", "complained at 11:00:00.000"}},
		{"message.complained", ``, []string{"12347: email unsubscribed", "complained at 11:00:00.000"}},
		{"message.unsubscribed", ``, []string{"12347: email unsubscribed"}},
		{"message.accepted", ``, nil},
		{"invoice.paid", ``, nil},
	} {
		body := d.report(c.kind, c.more)
		got := d.post("/w/hooks/acme", body, signAcme(acmeSecret, "msg_1", noon, body))
		require.Equal(t, http.StatusOK, got.Code, got.Body.String())
		require.Equal(t, c.want, told(d.take()), c.kind+c.more)
	}
	body := d.report("message.delivered", "")
	ids := map[string]bool{}
	for _, id := range []string{"msg_1", "msg_1", "msg_2"} {
		require.Equal(t, http.StatusOK, d.post("/w/hooks/acme", body, signAcme("an old secret of the courier", id, noon, body)).Code, "while a secret is replaced both are good")
		ids[d.take()[0].Record.(*event.Outcome).OutcomeID.String()] = true
	}
	require.Len(t, ids, 2, "webhook-id tells a repetition from another report")
}

func TestForgedAndUnusableSignedWebhooksAreRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	body := d.report("message.bounced", `,"permanent":true,"address":"a@example.com"`)
	header := func(change map[string]string) map[string]string {
		h := signAcme(acmeSecret, "msg_1", noon, body)
		for k, v := range change {
			h[k] = v
		}
		return h
	}
	at := func(d time.Duration) map[string]string { return signAcme(acmeSecret, "msg_1", noon.Add(d), body) }
	for name, c := range map[string]struct {
		path   string
		body   []byte
		header map[string]string
		status int
	}{
		"right":                    {"/w/hooks/acme", body, header(nil), 200},
		"no headers":               {"/w/hooks/acme", body, nil, 401},
		"another secret":           {"/w/hooks/acme", body, signAcme("another secret", "msg_1", noon, body), 401},
		"no secret":                {"/w/hooks/acme", body, signAcme("", "msg_1", noon, body), 401},
		"another source":           {"/w/hooks/nobody", body, header(nil), 401},
		"another body":             {"/w/hooks/acme", append(body[:len(body):len(body)], ' '), header(nil), 401},
		"another id":               {"/w/hooks/acme", body, header(map[string]string{"webhook-id": "msg_2"}), 401},
		"another time":             {"/w/hooks/acme", body, header(map[string]string{"webhook-timestamp": strconv.FormatInt(noon.Unix()+1, 10)}), 401},
		"no time":                  {"/w/hooks/acme", body, header(map[string]string{"webhook-timestamp": ""}), 401},
		"no id":                    {"/w/hooks/acme", body, signAcme(acmeSecret, "", noon, body), 401},
		"another scheme":           {"/w/hooks/acme", body, header(map[string]string{"webhook-signature": "v1a," + header(nil)["webhook-signature"][3:]}), 401},
		"old":                      {"/w/hooks/acme", body, at(-5*time.Minute - time.Second), 401},
		"almost old":               {"/w/hooks/acme", body, at(-5 * time.Minute), 200},
		"from the future":          {"/w/hooks/acme", body, at(5*time.Minute + time.Second), 401},
		"not JSON":                 {"/w/hooks/acme", []byte("{"), signAcme(acmeSecret, "msg_1", noon, []byte("{")), 400},
		"GET is nothing to record": {"/w/hooks/acme/more", body, header(nil), 404},
	} {
		got := d.post(c.path, c.body, c.header)
		require.Equal(t, c.status, got.Code, name+": "+got.Body.String())
		require.Equal(t, c.status == 200, len(d.take()) > 0, name)
	}
	for name, body := range map[string]string{
		"no token":       `{"type":"message.bounced","timestamp":"2026-11-20T11:00:00Z","data":{}}`,
		"a forged token": strings.Replace(string(body), d.echo(nil), d.echo(nil)[1:], 1),
		"a link":         strings.Replace(string(body), d.echo(nil), d.echo(func(t *token.Token) { t.Purpose = token.Unsubscribe }), 1),
		"no time":        strings.Replace(string(body), "2026-11-20T11:00:00Z", "yesterday", 1),
		"of 1999":        strings.Replace(string(body), "2026-", "1999-", 1),
	} {
		require.Equal(t, http.StatusBadRequest, d.post("/w/hooks/acme", []byte(body), signAcme(acmeSecret, "msg_1", noon, []byte(body))).Code, name)
		require.Empty(t, d.take(), name)
	}
	d.away = output.ErrAway
	require.Equal(t, http.StatusServiceUnavailable, d.post("/w/hooks/acme", body, header(nil)).Code)
}
