package webhook

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/token"
)

// Sources are those who may deliver signed webhooks (Standard Webhooks), each with
// the secrets it may sign with: while one is replaced, two.
type Sources map[string][][]byte

var sourceName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// ParseSources reads "source:whsec_…,source:whsec_…".
func ParseSources(text string) (Sources, error) {
	sources := Sources{}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, encoded, ok := strings.Cut(part, ":")
		if !ok || !sourceName.MatchString(name) || name == sourceSES || name == sourceLINE {
			return nil, errors.New("a source is a name of lower-case letters, digits, - and _, other than ses and line, and a colon before its secret")
		}
		encoded, prefixed := strings.CutPrefix(encoded, "whsec_")
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if !prefixed || err != nil || len(secret) < 24 || len(secret) > 64 {
			return nil, fmt.Errorf("the secret of %s is not whsec_ and 24 to 64 bytes in base64", name)
		}
		sources[name] = append(sources[name], secret)
	}
	return sources, nil
}

// ParseLINE reads the channel secrets, one or several with commas between.
func ParseLINE(text string) (secrets [][]byte, _ error) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if len(part) < 16 {
			return nil, errors.New("a channel secret has 16 bytes or more")
		}
		secrets = append(secrets, []byte(part))
	}
	return secrets, nil
}

// tolerance is how far a delivery's time may be from ours.
const tolerance = 5 * time.Minute

// signedReport is the body of a signed webhook.
type signedReport struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Data      struct {
		Message    string `json:"message"` // a token.Echo
		Reason     string `json:"reason"`
		Detail     string `json:"detail"`
		Permanent  bool   `json:"permanent"`
		Address    string `json:"address"`
		ProviderID string `json:"provider_id"`
	} `json:"data"`
}

// The types of signed webhooks that mean something to us.
const typePrefix = "message."

// decideSigned is /w/hooks/{source}.
func (h *Handler) decideSigned(source string, secrets [][]byte, header http.Header, body []byte, now time.Time) (verdict, error) {
	id := header.Get("webhook-id")
	if !signed(secrets, id, header.Get("webhook-timestamp"), header.Values("webhook-signature"), body) || id == "" || len(id) > maxIDBytes {
		return verdict{}, forged("the signature does not fit")
	}
	seconds, err := strconv.ParseInt(header.Get("webhook-timestamp"), 10, 64)
	if at := time.Unix(seconds, 0); err != nil || now.Sub(at) > tolerance || at.Sub(now) > tolerance {
		return verdict{}, forged("webhook-timestamp is more than 5 minutes off")
	}
	var b signedReport
	if err := json.Unmarshal(body, &b); err != nil {
		return verdict{}, invalid("the body is not a webhook: " + err.Error())
	}
	r := report{source: source, reason: words(b.Data.Reason), detail: b.Data.Detail, providerID: b.Data.ProviderID, eventID: id}
	switch outcome := strings.TrimPrefix(b.Type, typePrefix); b.Type {
	case typePrefix + delivered, typePrefix + delayed:
		r.outcome = outcome
	case typePrefix + bounced:
		if r.outcome = outcome; b.Data.Permanent {
			r.suppress = strings.TrimSpace(b.Data.Address)
		}
	case typePrefix + complained:
		r.outcome, r.suppress, r.consent = outcome, strings.TrimSpace(b.Data.Address), unsubscribed
	case typePrefix + unsubscribed:
		r.consent = unsubscribed
	default:
		return verdict{result: resultIgnored}, nil
	}
	t, err := h.Keys.Parse(token.Echo, b.Data.Message)
	if err != nil {
		return verdict{}, invalid("data.message is not what was given with the message")
	}
	if r.at, err = time.Parse(time.RFC3339, b.Timestamp); err != nil || !possible(r.at, now) {
		return verdict{}, invalid("timestamp is not a time such as 2026-05-17T12:00:00Z, or an impossible one")
	}
	return verdict{result: resultTaken, entries: r.entries(t, now)}, nil
}

// signed reports whether one of the signatures was made with one of the secrets.
// It takes as long for one that is almost right as for any other.
func signed(secrets [][]byte, id, timestamp string, lists []string, body []byte) (ok bool) {
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write(bytes.Join([][]byte{[]byte(id), []byte(timestamp), body}, []byte{'.'}))
		want := mac.Sum(nil)
		for _, list := range lists {
			for _, s := range strings.Fields(list) {
				encoded, v1 := strings.CutPrefix(s, "v1,")
				got, err := base64.StdEncoding.DecodeString(encoded)
				if v1 && err == nil && hmac.Equal(got, want) {
					ok = true
				}
			}
		}
	}
	return ok
}
