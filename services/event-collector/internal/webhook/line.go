package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// sourceLINE is who reports, and the channel.
const sourceLINE = "line"

// EchoField is the parameter of a postback's data whose value is a token.Echo:
// hikyaku=<token>, with or without others, as in a query string.
const EchoField = "hikyaku"

// lineEvent is one of the events of a delivery.
type lineEvent struct {
	Type           string `json:"type"`
	Timestamp      int64  `json:"timestamp"`      // milliseconds since 1970
	WebhookEventID string `json:"webhookEventId"` // the same when it is delivered again
	Source         struct {
		Type   string `json:"type"`
		UserID string `json:"userId"`
	} `json:"source"`
	Follow *struct {
		IsUnblocked bool `json:"isUnblocked"`
	} `json:"follow"`
	Postback *struct {
		Data string `json:"data"`
	} `json:"postback"`
	Message *struct {
		ID   string `json:"id"`
		Type string `json:"type"`
	} `json:"message"`
}

// decideLINE is /w/line.
func (h *Handler) decideLINE(_ context.Context, header http.Header, body []byte, now time.Time) (verdict, error) {
	if !signedByLINE(header.Get("X-Line-Signature"), body, h.LINE) {
		return verdict{}, forged("the signature does not fit the body and LINE_CHANNEL_SECRETS")
	}
	var delivery struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := json.Unmarshal(body, &delivery); err != nil {
		return verdict{}, invalid("the body is not what LINE sends")
	}
	v := verdict{result: resultIgnored} // no events: LINE looks whether anybody is here
	for _, raw := range delivery.Events {
		var e lineEvent
		if err := json.Unmarshal(raw, &e); err != nil {
			p := park(sourceLINE, "", raw, now, fmt.Sprintf("the event of LINE cannot be read: %v", err))
			v.entries, v.result, v.note = append(v.entries, p.entries...), p.result, p.note
			continue
		}
		if entries := h.decideLINEEvent(&e, now); len(entries) > 0 {
			v.entries = append(v.entries, entries...)
			if v.result == resultIgnored {
				v.result = resultTaken
			}
		}
	}
	return v, nil
}

// signedByLINE compares with every secret, each in constant time.
func signedByLINE(signature string, body []byte, secrets [][]byte) (ok bool) {
	got, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return false
	}
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write(body)
		if hmac.Equal(got, mac.Sum(nil)) {
			ok = true
		}
	}
	return ok
}

// lineUser is the user_id of somebody whom LINE names, where nothing says who that
// is to us.
func lineUser(id string) string { return sourceLINE + ":" + id }

// decideLINEEvent returns the records of an event of one person; of groups and
// rooms there are none.
func (h *Handler) decideLINEEvent(e *lineEvent, now time.Time) []output.Entry {
	at := time.UnixMilli(e.Timestamp)
	if e.Source.UserID == "" || len(e.Source.UserID) > maxIDBytes || e.Source.Type != "user" || e.WebhookEventID == "" || !possible(at, now) {
		return nil
	}
	at = happened(at, now)
	who := lineUser(e.Source.UserID)
	patch := &event.ProfilePatch{OccurredAt: at, SetAt: now, SetBy: "webhook:" + sourceLINE}
	did := &event.Event{OccurredAt: at, ReceivedAt: now, Source: "webhook:" + sourceLINE}
	var more []output.Entry
	switch {
	case e.Type == "follow":
		did.Name = "line_followed"
		did.Properties = append(did.Properties, event.NamedValue{Name: "unblocked", Value: event.Bool(e.Follow != nil && e.Follow.IsUnblocked)})
		patch.Addresses = []event.AddressPatch{{Channel: sourceLINE, Address: e.Source.UserID}}
		patch.Consents = []event.ConsentPatch{{Channel: sourceLINE, Consent: subscribed}}
	case e.Type == "unfollow":
		did.Name = "line_unfollowed"
		patch.Consents = []event.ConsentPatch{{Channel: sourceLINE, Consent: unsubscribed}}
	case e.Type == "postback" && e.Postback != nil:
		did.Name = "line_postback"
		did.Properties = append(did.Properties, event.NamedValue{Name: "data", Value: event.String(cut(e.Postback.Data, maxDetailBytes))})
		if t := h.echoed(e.Postback.Data); t != nil {
			// Now it is known who that is: LINE says that its user has tapped on what was
			// sent to ours.
			who = t.UserID
			patch.Addresses = []event.AddressPatch{{Channel: sourceLINE, Address: e.Source.UserID}}
			more = append(more, output.Entry{Topic: topic.Engagements, Key: who, Record: &event.Engagement{
				EngagementID: identity.Hash("postback", string(t.MessageID[:]), e.WebhookEventID), MessageID: t.MessageID, RunID: t.RunID, CampaignID: t.CampaignID,
				UserID: who, Channel: sourceLINE, Kind: "clicked", OccurredAt: at, Method: http.MethodPost, LatencyMs: latency(t, at),
				// LINE does not say with what; without any agent it would be a machine.
				UserAgent: "LINE postback",
			}})
			did.Properties = nil // the token is nobody's business
		}
	case e.Type == "message" && e.Message != nil:
		// What people write to us is theirs: that they did is enough.
		did.Name = "line_message"
		did.Properties = append(did.Properties, event.NamedValue{Name: "type", Value: event.String(cut(e.Message.Type, maxReasonBytes))})
	default:
		return nil
	}
	did.EventID, did.UserID, patch.UserID = "line:"+cut(e.WebhookEventID, maxIDBytes), who, who
	var out []output.Entry
	if len(patch.Addresses)+len(patch.Consents) > 0 {
		out = append(out, output.Entry{Topic: topic.ProfileUpdates, Key: who, Record: patch})
	}
	return append(append(out, output.Entry{Topic: topic.Events, Key: who, Record: did}), more...)
}

// latency is how long after its message was asked for something happened, in
// milliseconds; -1 if the token does not say.
func latency(t *token.Token, at time.Time) int64 {
	if t.RequestedAt.IsZero() {
		return -1
	}
	return max(0, at.Sub(t.RequestedAt).Milliseconds())
}

// echoed returns the token that a postback gives back, nil if there is none.
func (h *Handler) echoed(data string) *token.Token {
	values, err := url.ParseQuery(data)
	if err != nil {
		return nil
	}
	t, err := h.Keys.Parse(token.Echo, values.Get(EchoField))
	if err != nil || t.Channel != sourceLINE {
		return nil
	}
	return t
}
