package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/token"
)

const sourceSES = "ses"

// EchoTag is the name of the message tag, and EchoHeader that of the header, whose
// value SES gives back with each event: a token.Echo.
const (
	EchoTag    = "hikyaku"
	EchoHeader = "X-Hikyaku-Message"
)

// sesEvent is what SES publishes through a configuration set (eventType), and
// sends as feedback about an identity (notificationType).
type sesEvent struct {
	EventType        string `json:"eventType"`
	NotificationType string `json:"notificationType"`
	Mail             struct {
		Timestamp   time.Time `json:"timestamp"`
		MessageID   string    `json:"messageId"`
		Destination []string  `json:"destination"`
		Headers     []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"headers"`
		Tags map[string][]string `json:"tags"`
	} `json:"mail"`
	Bounce *struct {
		BounceType        string    `json:"bounceType"`
		BounceSubType     string    `json:"bounceSubType"`
		Timestamp         time.Time `json:"timestamp"`
		FeedbackID        string    `json:"feedbackId"`
		BouncedRecipients []struct {
			EmailAddress   string `json:"emailAddress"`
			Status         string `json:"status"`
			DiagnosticCode string `json:"diagnosticCode"`
		} `json:"bouncedRecipients"`
	} `json:"bounce"`
	Complaint *struct {
		ComplaintSubType      string    `json:"complaintSubType"`
		ComplaintFeedbackType string    `json:"complaintFeedbackType"`
		Timestamp             time.Time `json:"timestamp"`
		FeedbackID            string    `json:"feedbackId"`
		UserAgent             string    `json:"userAgent"`
	} `json:"complaint"`
	Delivery *struct {
		Timestamp    time.Time `json:"timestamp"`
		SMTPResponse string    `json:"smtpResponse"`
	} `json:"delivery"`
	DeliveryDelay *struct {
		DelayType         string    `json:"delayType"`
		Timestamp         time.Time `json:"timestamp"`
		DelayedRecipients []struct {
			DiagnosticCode string `json:"diagnosticCode"`
		} `json:"delayedRecipients"`
	} `json:"deliveryDelay"`
	Reject *struct {
		Reason string `json:"reason"`
	} `json:"reject"`
	Failure *struct {
		ErrorMessage string `json:"errorMessage"`
	} `json:"failure"`

	// EventBridge puts the event into one of its own.
	DetailType string          `json:"detail-type"`
	Detail     json.RawMessage `json:"detail"`
}

// decideSNS is /w/ses.
func (h *Handler) decideSNS(ctx context.Context, _ http.Header, body []byte, now time.Time) (verdict, error) {
	e, err := h.sns.open(body, now)
	if err != nil {
		return verdict{}, err
	}
	if err := h.sns.verify(ctx, e, now); err != nil {
		return verdict{}, err
	}
	switch e.Type {
	case typeSubscription:
		return verdict{result: resultConfirmed, then: func(ctx context.Context) error { return h.sns.confirm(ctx, e) }}, nil
	case typeUnsubscribed:
		return verdict{result: resultIgnored, note: "the subscription to " + e.TopicARN + " has ended: SES reports no more through it"}, nil
	}
	return h.decideSES([]byte(e.Message), now), nil
}

// decideQueued is what a message of the queue is worth: an event as it is, in
// SNS's envelope, or in EventBridge's. Who may write to the queue is for the
// queue's policy to say: nothing in it is signed.
func (h *Handler) decideQueued(body []byte, now time.Time) verdict {
	var e envelope
	if json.Unmarshal(body, &e) == nil && e.Type == typeNotification && e.TopicARN != "" {
		return h.decideSES([]byte(e.Message), now)
	}
	return h.decideSES(body, now)
}

// decideSES is what an authentic event is worth.
func (h *Handler) decideSES(body []byte, now time.Time) verdict {
	var e sesEvent
	if body := bytes.TrimSpace(body); len(body) == 0 || body[0] != '{' {
		// "Successfully validated SNS topic for Amazon SES event publishing."
		return verdict{result: resultIgnored}
	}
	err := json.Unmarshal(body, &e)
	if err == nil && len(e.Detail) > 0 && e.DetailType != "" {
		detail := e.Detail
		e = sesEvent{}
		err = json.Unmarshal(detail, &e)
	}
	if err != nil {
		return park(sourceSES, "", body, now, fmt.Sprintf("the event of SES cannot be read: %v", err))
	}
	r, ok := e.report()
	if !ok {
		return verdict{result: resultIgnored}
	}
	t, ours, err := e.message(h.Keys)
	switch {
	case err != nil:
		return park(sourceSES, "", body, now, "what SES gives back was not signed by us, or with a key that TRACKING_SECRET has no more")
	case !ours:
		return verdict{result: resultIgnored} // other mail goes through the account
	case !possible(r.at, now):
		return park(sourceSES, t.UserID, body, now, fmt.Sprintf("the event is of %s", r.at.Format(time.RFC3339)))
	}
	return verdict{result: resultTaken, entries: r.entries(t, now)}
}

// report is what an event says, false if it is nothing to us: of opens and clicks
// we know more ourselves, and that SES took the mail the sender has said.
func (e *sesEvent) report() (r report, ok bool) {
	kind := e.EventType
	if kind == "" {
		kind = e.NotificationType
	}
	r = report{source: sourceSES, providerID: e.Mail.MessageID}
	feedback := ""
	switch {
	case kind == "Delivery" && e.Delivery != nil:
		r.outcome, r.at, r.detail = delivered, e.Delivery.Timestamp, e.Delivery.SMTPResponse
	case kind == "DeliveryDelay" && e.DeliveryDelay != nil:
		r.outcome, r.at, r.reason = delayed, e.DeliveryDelay.Timestamp, words(e.DeliveryDelay.DelayType)
		for _, d := range e.DeliveryDelay.DelayedRecipients {
			r.detail = d.DiagnosticCode
		}
	case kind == "Bounce" && e.Bounce != nil:
		b := e.Bounce
		r.outcome, r.at, feedback = bounced, b.Timestamp, b.FeedbackID
		r.reason = words(b.BounceType) + "_" + words(b.BounceSubType)
		address := ""
		for _, who := range b.BouncedRecipients {
			address, r.detail = who.EmailAddress, strings.TrimSpace(who.Status+" "+who.DiagnosticCode)
		}
		// Only this is for good: a full mailbox empties, and an undetermined bounce may
		// be an out-of-office note.
		if b.BounceType == "Permanent" {
			r.suppress = e.address(address)
		}
	case kind == "Complaint" && e.Complaint != nil:
		c := e.Complaint
		r.at, feedback = c.Timestamp, c.FeedbackID
		switch {
		case c.ComplaintFeedbackType == "not-spam":
			return r, false // somebody took it out of the spam folder
		case c.ComplaintSubType != "":
			// Not handed on, since the address has complained at another time.
			r.outcome, r.reason, r.suppress = bounced, words(c.ComplaintSubType), e.address("")
		default:
			r.outcome, r.reason, r.detail = complained, words(c.ComplaintFeedbackType), c.UserAgent
			r.suppress, r.consent = e.address(""), unsubscribed
		}
	case kind == "Reject":
		// SES had taken the mail, found a virus in it, and did not hand it on.
		r.outcome, r.at, r.reason = bounced, e.Mail.Timestamp, "provider_rejected"
		if e.Reject != nil {
			r.detail = e.Reject.Reason
		}
	case kind == "Rendering Failure":
		r.outcome, r.at, r.reason = bounced, e.Mail.Timestamp, "provider_rendering_failure"
		if e.Failure != nil {
			r.detail = e.Failure.ErrorMessage
		}
	default:
		return r, false
	}
	if feedback == "" {
		feedback = r.at.UTC().Format(time.RFC3339Nano)
	}
	r.eventID = e.Mail.MessageID + "/" + feedback
	return r, true
}

// address is the one that the mail was sent to. A bounce may name another, the one
// that it was forwarded to.
func (e *sesEvent) address(reported string) string {
	if len(e.Mail.Destination) == 1 {
		reported = e.Mail.Destination[0]
	}
	if a, err := mail.ParseAddress(reported); err == nil {
		return a.Address
	}
	return strings.TrimSpace(reported)
}

// message returns the message that an event is about: of the tag, of the header,
// or of the link in List-Unsubscribe, which every mail of ours has and SES gives
// back like all headers. It is ours if one of them is there.
func (e *sesEvent) message(keys *token.Keys) (t *token.Token, ours bool, err error) {
	if tag := e.Mail.Tags[EchoTag]; len(tag) > 0 {
		t, err = keys.Parse(token.Echo, tag[0])
		return t, true, err
	}
	link := ""
	for _, header := range e.Mail.Headers {
		switch {
		case strings.EqualFold(header.Name, EchoHeader):
			t, err = keys.Parse(token.Echo, strings.TrimSpace(header.Value))
			return t, true, err
		case strings.EqualFold(header.Name, "List-Unsubscribe"):
			link = header.Value
		}
	}
	for part := range strings.SplitSeq(link, ",") {
		u, err := url.Parse(strings.Trim(strings.TrimSpace(part), "<>"))
		if err != nil {
			continue
		}
		at := strings.LastIndex(u.Path, "/u/")
		if at < 0 {
			continue
		}
		// Other mail may have links that look like ours.
		if t, err := keys.Parse(token.Unsubscribe, u.Path[at+len("/u/"):]); err == nil {
			return t, true, nil
		}
	}
	return nil, false, nil
}
