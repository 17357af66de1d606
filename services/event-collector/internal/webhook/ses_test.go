package webhook

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // signature version 1 of SNS
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

const (
	ours   = "arn:aws:sns:eu-central-1:123456789012:ses-events"
	others = "arn:aws:sns:eu-central-1:999999999999:theirs"
	host   = "https://sns.eu-central-1.amazonaws.com"
	certOK = host + "/SimpleNotificationService-0123456789abcdef.pem"
)

// about is the message that the samples are about.
var about = token.Token{Purpose: token.Echo, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "thanks-2011", UserID: "12347"}

// desk is a handler with everything around it.
type desk struct {
	*Handler
	t       *testing.T
	mux     *http.ServeMux
	key     *rsa.PrivateKey
	pages   map[string][]byte // of SNS
	mu      sync.Mutex
	fetched []string
	written []output.Entry
	away    error // Write's answer
}

// signer is what SNS signs with in these tests: making a key takes a while.
var signer = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func certificate(t *testing.T, key *rsa.PrivateKey, name string, until time.Time) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: noon.AddDate(-1, 0, 0), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newDesk(t *testing.T, change func(*Options)) *desk {
	d := &desk{t: t, mux: http.NewServeMux(), key: signer()}
	d.pages = map[string][]byte{certOK: certificate(t, d.key, "sns.amazonaws.com", noon.AddDate(1, 0, 0))}
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte("the secret of these tests")})
	require.NoError(t, err)
	o := Options{Keys: keys, AckTimeout: 5 * time.Second, Topics: []string{ours}, LINE: [][]byte{[]byte("the old secret of LINE"), []byte(lineSecret)},
		Sources: Sources{"acme": {[]byte("an old secret of the courier"), []byte(acmeSecret)}},
		Log:     telemetry.New(topic.Collector, telemetry.Config{}, testWriter{t}).Log, Registry: prometheus.NewRegistry(),
		Write: func(_ context.Context, entries ...output.Entry) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.away != nil {
				return d.away
			}
			d.written = append(d.written, entries...)
			return nil
		},
		Fetch: func(_ context.Context, page string) ([]byte, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.fetched = append(d.fetched, page)
			if b, ok := d.pages[page]; ok {
				return b, nil
			}
			if strings.Contains(page, "ConfirmSubscription") {
				return []byte("<ConfirmSubscriptionResponse/>"), nil
			}
			return nil, errGone
		}}
	if change != nil {
		change(&o)
	}
	d.Handler = New(o)
	d.now = func() time.Time { return noon }
	d.Register(d.mux)
	return d
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (d *desk) post(path string, body []byte, header map[string]string) *httptest.ResponseRecorder {
	d.t.Helper()
	r := httptest.NewRequestWithContext(d.t.Context(), http.MethodPost, path, bytes.NewReader(body))
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	d.mux.ServeHTTP(w, r)
	return w
}

// take returns what was written since the last time.
func (d *desk) take() []output.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.written
	d.written = nil
	return w
}

func (d *desk) echo(change func(*token.Token)) string {
	d.t.Helper()
	t := about
	if change != nil {
		change(&t)
	}
	b, err := d.Keys.Append(nil, "1", &t)
	require.NoError(d.t, err)
	return string(b)
}

// sample is a body from testdata about our message.
func (d *desk) sample(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	require.NoError(d.t, err)
	return []byte(strings.NewReplacer("TOKEN", d.echo(nil), "LINK", d.echo(func(t *token.Token) { t.Purpose = token.Unsubscribe })).Replace(string(b)))
}

// notification is SNS's envelope around a message, signed.
func (d *desk) notification(message []byte, change func(*envelope)) []byte {
	return d.sign(&envelope{Type: typeNotification, MessageID: "da41e39f-ea4d-435a-b922-c6aae3915ebe", TopicARN: ours, Message: string(message), Timestamp: "2026-11-20T11:59:58.123Z",
		SignatureVersion: "2", SigningCertURL: certOK}, change)
}

func (d *desk) sign(e *envelope, change func(*envelope)) []byte {
	d.t.Helper()
	if change != nil {
		change(e)
	}
	text := []byte(e.signed())
	hash, sum := crypto.SHA256, sha256.Sum256(text)
	digest := sum[:]
	if e.SignatureVersion == "1" {
		s := sha1.Sum(text) //nolint:gosec // as above
		hash, digest = crypto.SHA1, s[:]
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, d.key, hash, digest)
	require.NoError(d.t, err)
	e.Signature = base64.StdEncoding.EncodeToString(signature)
	b, err := json.Marshal(e)
	require.NoError(d.t, err)
	return b
}

// told is an outcome and what it means for the person, in short.
func told(entries []output.Entry) (lines []string) {
	for _, e := range entries {
		switch r := e.Record.(type) {
		case *event.Outcome:
			lines = append(lines, strings.TrimSuffix(r.Outcome+" "+r.Reason, " ")+" at "+r.OccurredAt.Format("15:04:05.000"))
		case *event.ProfilePatch:
			for _, s := range r.Suppressions {
				lines = append(lines, r.UserID+": "+s.Address+" suppressed, "+s.Reason)
			}
			for _, a := range r.Addresses {
				lines = append(lines, r.UserID+": address "+a.Channel+" "+a.Address)
			}
			for _, c := range r.Consents {
				lines = append(lines, r.UserID+": "+c.Channel+" "+c.Consent)
			}
		case *event.DeadLetter:
			lines = append(lines, "dead letter of "+string(r.Headers[0].Value))
		case *event.Event:
			lines = append(lines, r.UserID+": "+r.Name)
		case *event.Engagement:
			lines = append(lines, r.UserID+": "+r.Kind)
		}
	}
	return lines
}

// Each event that SES documents, by its sample.
func TestWhatSESReportsBecomesOutcomesAndSuppressions(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	const suppressed = "12347: Recipient@example.com suppressed, "
	for name, want := range map[string][]string{
		"delivery":            {"delivered at 09:00:05.123"},
		"delay":               {"delayed transient_communication_failure at 09:01:05.123"},
		"bounce":              {suppressed + "bounced", "bounced permanent_general at 09:00:42.669"},
		"bounce-notification": {suppressed + "bounced", "bounced permanent_no_email at 09:00:42.669"},
		"bounce-transient":    {"bounced transient_mailbox_full at 21:00:42.669"},
		"bounce-undetermined": {"bounced undetermined_undetermined at 09:10:00.000"},
		"complaint":           {suppressed + "complained", "12347: email unsubscribed", "complained abuse at 10:00:41.123"},
		"complaint-listed":    {suppressed + "bounced", "bounced on_account_suppression_list at 09:00:03.123"},
		"complaint-not-spam":  nil,
		"reject":              {"bounced provider_rejected at 09:00:02.012"},
		"rendering-failure":   {"bounced provider_rendering_failure at 09:00:02.012"},
		"send":                nil, "open": nil, "click": nil, "subscription": nil, "others": nil,
		"eventbridge": {"delivered at 09:00:05.123"},
	} {
		v := d.decideSES(d.sample("ses-"+name), noon.Add(12*time.Hour))
		require.Equal(t, want, told(v.entries), name)
		require.Equal(t, want == nil, v.result == resultIgnored, name)
		for _, e := range v.entries {
			require.Equal(t, "12347", e.Key, name)
			if o, ok := e.Record.(*event.Outcome); ok {
				require.Equal(t, []any{about.MessageID, about.RunID, about.CampaignID, "email", "ses"}, []any{o.MessageID, o.RunID, o.CampaignID, o.Channel, o.Provider}, name)
			}
		}
	}
	o := d.decideSES(d.sample("ses-bounce"), noon).entries[1].Record.(*event.Outcome)
	require.Equal(t, "5.1.1 smtp; 550 5.1.1 user unknown", o.Detail)
	require.Equal(t, "EXAMPLE7c191be45-e9aedb9a-02f9-4d12-a87d-dd0099a07f8a-000000", o.ProviderID)
}

func TestSESIsTakenAtItsWordWhenSNSHasSigned(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	for name, change := range map[string]func(*envelope){
		"version 1":      func(e *envelope) { e.SignatureVersion = "1" },
		"version 2":      nil,
		"with a subject": func(e *envelope) { s := "Amazon SES Email Event Notification"; e.Subject = &s },
	} {
		got := d.post("/w/ses", d.notification(d.sample("ses-bounce"), change), nil)
		require.Equal(t, http.StatusOK, got.Code, name+": "+got.Body.String())
		require.Len(t, d.take(), 2, name)
	}
	require.Equal(t, []string{certOK}, d.fetched, "the certificate is kept")
	require.EqualValues(t, 3, testutil.ToFloat64(d.results.WithLabelValues("ses", resultTaken)))
	require.EqualValues(t, 3, testutil.ToFloat64(d.reports.WithLabelValues("ses", "bounced")))

	got := d.post("/w/ses", d.notification([]byte("Successfully validated SNS topic for Amazon SES event publishing."), nil), nil)
	require.Equal(t, http.StatusOK, got.Code, "SES tries the topic with a sentence")
	require.Empty(t, d.take())
}

// Whatever was not signed by SNS, for a topic of ours and of late, is refused, and
// nothing is asked of any host but SNS's of that region.
func TestForgedSNSIsRefused(t *testing.T) {
	t.Parallel()
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	d := newDesk(t, nil)
	expired, foreign, stolen, noCert := host+"/expired.pem", host+"/foreign.pem", host+"/stolen.pem", host+"/none.pem"
	d.pages[expired] = certificate(t, d.key, "sns.amazonaws.com", noon.Add(-time.Hour))
	d.pages[foreign] = certificate(t, d.key, "evil.example.com", noon.AddDate(1, 0, 0))
	d.pages[stolen] = certificate(t, stranger, "sns.amazonaws.com", noon.AddDate(1, 0, 0))
	d.pages[noCert] = []byte("not a certificate")
	bounce := d.sample("ses-bounce")
	after := func(do func(*envelope)) func(*testing.T) []byte { // changed after it was signed
		return func(t *testing.T) []byte {
			var e envelope
			require.NoError(t, json.Unmarshal(d.notification(bounce, nil), &e))
			do(&e)
			b, err := json.Marshal(&e)
			require.NoError(t, err)
			return b
		}
	}
	signed := func(do func(*envelope)) func(*testing.T) []byte { // and signed so
		return func(*testing.T) []byte { return d.notification(bounce, do) }
	}
	cert := func(u string) func(*testing.T) []byte { return signed(func(e *envelope) { e.SigningCertURL = u }) }
	for name, c := range map[string]struct {
		body   func(*testing.T) []byte
		status int
		asks   bool // for a certificate
	}{
		"another message":                {after(func(e *envelope) { e.Message = strings.Replace(e.Message, "Permanent", "permanent", 1) }), 401, true},
		"another time":                   {after(func(e *envelope) { e.Timestamp = "2026-11-20T11:59:59.123Z" }), 401, true},
		"another id":                     {after(func(e *envelope) { e.MessageID += "0" }), 401, true},
		"a subject added":                {after(func(e *envelope) { s := ""; e.Subject = &s }), 401, true},
		"another type":                   {after(func(e *envelope) { e.Type = typeSubscription }), 401, true},
		"no signature":                   {after(func(e *envelope) { e.Signature = "" }), 401, true},
		"a signature that is none":       {after(func(e *envelope) { e.Signature = "EXAMPLE!" }), 401, false},
		"another version":                {after(func(e *envelope) { e.SignatureVersion = "1" }), 401, true},
		"no version":                     {after(func(e *envelope) { e.SignatureVersion = "" }), 401, false},
		"signed with another key":        {cert(stolen), 401, true},
		"a topic of ours, after signing": {after(func(e *envelope) { e.TopicARN = strings.Replace(ours, "ses-events", "others", 1) }), 401, false},
		"somebody else's topic":          {signed(func(e *envelope) { e.TopicARN = others }), 401, false},
		"too old":                        {signed(func(e *envelope) { e.Timestamp = "2026-11-20T10:44:00.000Z" }), 401, false},
		"from the future":                {signed(func(e *envelope) { e.Timestamp = "2026-11-20T12:16:00.000Z" }), 401, false},
		"no time":                        {signed(func(e *envelope) { e.Timestamp = "" }), 401, false},
		"another host":                   {cert("https://sns.eu-central-1.amazonaws.com.evil.example/x.pem"), 401, false},
		"another region":                 {cert("https://sns.us-east-1.amazonaws.com/x.pem"), 401, false},
		"a bucket of AWS":                {cert("https://sns.eu-central-1.s3.amazonaws.com/x.pem"), 401, false},
		"http":                           {cert("http://sns.eu-central-1.amazonaws.com/x.pem"), 401, false},
		"a user":                         {cert("https://sns.eu-central-1.amazonaws.com@evil.example/x.pem"), 401, false},
		"a user of SNS":                  {cert("https://evil@sns.eu-central-1.amazonaws.com/x.pem"), 401, false},
		"a port":                         {cert("https://sns.eu-central-1.amazonaws.com:8443/x.pem"), 401, false},
		"a query":                        {cert(host + "/x.pem?redirect=evil"), 401, false},
		"another page":                   {cert(host + "/x.txt"), 401, false},
		"up and away":                    {cert(host + "/../x.pem"), 401, false},
		"a certificate that expired":     {cert(expired), 401, true},
		"a certificate of another":       {cert(foreign), 401, true},
		"a page that is no certificate":  {cert(noCert), 401, true},
		"a certificate there is not":     {cert(host + "/gone.pem"), 401, true},
		"raw":                            {func(*testing.T) []byte { return bounce }, 401, false},
		"not JSON":                       {func(*testing.T) []byte { return []byte("hello") }, 400, false},
		"nothing":                        {func(*testing.T) []byte { return nil }, 400, false},
		"too large":                      {func(*testing.T) []byte { return bytes.Repeat([]byte(" "), maxBytes+1) }, 413, false},
	} {
		d.fetched = nil
		clear(d.sns.certs)
		d.sns.fetched = nil
		got := d.post("/w/ses", c.body(t), nil)
		require.Equal(t, c.status, got.Code, name+": "+got.Body.String())
		require.Equal(t, c.asks, len(d.fetched) > 0, name)
	}
	require.Empty(t, d.take())
	require.Zero(t, testutil.ToFloat64(d.results.WithLabelValues("ses", resultTaken)))
}

func TestOnlyOurTopicsAreSubscribedTo(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	ask := func(change func(*envelope)) *httptest.ResponseRecorder {
		return d.post("/w/ses", d.sign(&envelope{Type: typeSubscription, MessageID: "165545c9", TopicARN: ours, Message: "You have chosen to subscribe", Timestamp: "2026-11-20T11:59:58.123Z", Token: "2336412f37",
			SubscribeURL: "https://evil.example/?Action=ConfirmSubscription", SignatureVersion: "2", SigningCertURL: certOK}, change), nil)
	}
	require.Equal(t, http.StatusUnauthorized, ask(func(e *envelope) { e.TopicARN = others }).Code)
	require.Empty(t, d.fetched)
	require.Equal(t, http.StatusOK, ask(nil).Code)
	require.Len(t, d.fetched, 2)
	u, err := url.Parse(d.fetched[1])
	require.NoError(t, err)
	require.Equal(t, "sns.eu-central-1.amazonaws.com", u.Host, "whatever the message says")
	require.Equal(t, url.Values{"Action": {"ConfirmSubscription"}, "TopicArn": {ours}, "Token": {"2336412f37"}}, u.Query())
	require.Empty(t, d.take())

	d.Handler.sns.fetch = func(context.Context, string) ([]byte, error) { return nil, errors.New("away") }
	require.Equal(t, http.StatusServiceUnavailable, ask(nil).Code, "SNS asks again")
}

// Nobody is told that something is stored before it is, nor that a message is
// forged because its certificate cannot be had now.
func TestSNSIsToldToRepeatWhatCouldNotBeStoredOrChecked(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	body := d.notification(d.sample("ses-bounce"), nil)
	d.away = output.ErrAway
	got := d.post("/w/ses", body, nil)
	require.Equal(t, http.StatusServiceUnavailable, got.Code)
	require.NotEmpty(t, got.Header().Get("Retry-After"))
	d.away = nil
	require.Equal(t, http.StatusOK, d.post("/w/ses", body, nil).Code)
	require.Len(t, d.take(), 2)

	d = newDesk(t, func(o *Options) {
		o.Fetch = func(context.Context, string) ([]byte, error) { return nil, errors.New("away") }
	})
	for range maxFetches {
		require.Equal(t, http.StatusServiceUnavailable, d.post("/w/ses", d.notification(nil, nil), nil).Code)
	}
	d.sns.fetch = func(context.Context, string) ([]byte, error) { t.Fatal("asked too often"); return nil, nil }
	require.Equal(t, http.StatusServiceUnavailable, d.post("/w/ses", d.notification(nil, nil), nil).Code, "forgers do not make us ask without end")
}

// The same event is the same records, by whatever way it comes and however often.
func TestTheSameEventIsTheSameRecord(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	bounce := d.sample("ses-bounce")
	first := d.decideSES(bounce, noon).entries
	again := d.decideSES(bounce, noon.Add(time.Hour)).entries
	queued := d.decideQueued(d.notification(bounce, nil), noon.Add(2*time.Hour)).entries
	require.Equal(t, first[1], again[1])
	require.Equal(t, first[1], queued[1])
	for _, e := range [][]output.Entry{again, queued} {
		p, q := *first[0].Record.(*event.ProfilePatch), *e[0].Record.(*event.ProfilePatch)
		q.SetAt = p.SetAt
		require.Equal(t, p, q, "but for when it was received")
	}
	ids := map[identity.ID]string{}
	for _, name := range []string{"bounce", "bounce-transient", "complaint", "delivery", "delay"} {
		for _, e := range d.decideSES(d.sample("ses-"+name), noon).entries {
			if o, ok := e.Record.(*event.Outcome); ok {
				require.Empty(t, ids[o.OutcomeID], name)
				ids[o.OutcomeID] = name
			}
		}
	}
}

// An event that nobody can use is kept, said, and not asked for again.
func TestAnAuthenticEventThatCannotBeUsedIsADeadLetter(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	bounce := string(d.sample("ses-bounce"))
	type place struct {
		topic  string
		offset int64
	}
	places := map[place]bool{}
	for name, body := range map[string]string{
		"signed by another":       strings.Replace(bounce, d.echo(nil), d.echo(nil)[:40]+"A"+d.echo(nil)[41:], 1),
		"a link where an echo is": strings.Replace(bounce, d.echo(nil), d.echo(func(t *token.Token) { t.Purpose = token.Click }), 1),
		"of the year 1999":        strings.Replace(bounce, "2026-11-20T09:00:42.669Z", "1999-11-20T09:00:42.669Z", 1),
		"of next week":            strings.Replace(bounce, "2026-11-20T09:00:42.669Z", "2026-11-27T09:00:42.669Z", 1),
		"of another shape":        strings.Replace(bounce, `"destination": [`, `"destination": ["x"], "messageId": [`, 1),
		"cut":                     bounce[:100],
	} {
		require.NotEqual(t, bounce, body, name)
		// One that is dropped must not take the others with it, nor come back when it is delivered again.
		d.post("/w/ses", d.notification([]byte(body), nil), nil)
		first := d.take()[0].Record.(*event.DeadLetter)
		require.NotContains(t, places, place{first.Topic, first.Offset}, name)
		places[place{first.Topic, first.Offset}] = true
		got := d.post("/w/ses", d.notification([]byte(body), nil), nil)
		require.Equal(t, http.StatusOK, got.Code, name)
		entries := d.take()
		require.Equal(t, []string{"dead letter of webhook:ses"}, told(entries), name)
		again := entries[0].Record.(*event.DeadLetter)
		require.Equal(t, body, string(again.Value))
		require.Equal(t, place{first.Topic, first.Offset}, place{again.Topic, again.Offset}, name)
	}
	// SQS carries more than a record may hold.
	large := d.decideSES([]byte("{"+strings.Repeat("x", 1<<20)), noon)
	_, err := spool.Encode(nil, large.entries)
	require.NoError(t, err)
	require.Contains(t, large.entries[0].Record.(*event.DeadLetter).Reason, "(value of 1048577 bytes cut) ")
	v := d.decideSES([]byte(strings.Replace(bounce, "2026-11-20T09:00:42.669Z", "2026-11-20T13:00:42.669Z", 1)), noon)
	require.Equal(t, noon, v.entries[0].Record.(*event.ProfilePatch).OccurredAt, "a clock that is ahead does not have the last word")
}

func FuzzSES(f *testing.F) {
	for _, name := range []string{"bounce", "complaint", "eventbridge", "bounce-notification"} {
		b, err := os.ReadFile(filepath.Join("testdata", "ses-"+name+".json"))
		require.NoError(f, err)
		f.Add(b)
	}
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte("the secret of these tests")})
	require.NoError(f, err)
	h := New(Options{Keys: keys, Registry: prometheus.NewRegistry()})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, e := range h.decideQueued(body, noon).entries {
			require.Equal(t, topic.DeadLettersCollector, e.Topic, "nothing is said of anybody without a token of ours")
		}
	})
}
