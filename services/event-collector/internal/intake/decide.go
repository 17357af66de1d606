package intake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Problem is why one event of a request cannot be used.
type Problem struct {
	Index  int    `json:"index"`
	Field  string `json:"field,omitempty"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

func problem(field, code, reason string, args ...any) *Problem {
	return &Problem{Field: field, Code: code, Reason: fmt.Sprintf(reason, args...)}
}

// receipt is what is known about an event beside itself.
type receipt struct {
	at     time.Time
	source string // api:<write key name>
	// sentAt is the batch's; an event's own wins.
	sentAt json.RawMessage
	newID  func() string
}

// Longest texts, in bytes. The user_id is a key in all that follows.
const (
	maxUserIDBytes = 512
	maxNameBytes   = 512
)

// decide turns one event into its record. Kind is track or identify, or empty if
// the event must say so itself.
func decide(raw json.RawMessage, kind string, got receipt) (output.Entry, *Problem) {
	if len(raw) > MaxEventBytes {
		return output.Entry{}, problem("", "too_large", "the event has %d bytes, at most %d are allowed", len(raw), MaxEventBytes)
	}
	var c call
	if p := parse(raw, &c); p != nil {
		return output.Entry{}, p
	}
	if kind == "" {
		kind = c.Type
	}
	userID, p := idOf("userId", c.UserID)
	if p != nil {
		return output.Entry{}, p
	}
	anonymousID, p := idOf("anonymousId", c.AnonymousID)
	if p != nil {
		return output.Entry{}, p
	}
	if userID == "" {
		// Until ids can be merged, somebody without a user_id is known by the other.
		userID = anonymousID
	}
	if userID == "" {
		return output.Entry{}, problem("userId", "missing", "neither userId nor anonymousId is given")
	}
	occurredAt, p := c.occurredAt(got)
	if p != nil {
		return output.Entry{}, p
	}
	switch kind {
	case "track":
		e, p := c.track(userID, anonymousID, occurredAt, got)
		return output.Entry{Topic: topic.Events, Key: userID, Record: e}, p
	case "identify":
		patch, p := c.identify(userID, occurredAt, got)
		return output.Entry{Topic: topic.ProfileUpdates, Key: userID, Record: patch}, p
	case "":
		return output.Entry{}, problem("type", "missing", "track or identify was expected")
	}
	return output.Entry{}, problem("type", "unsupported", "%.32q is not taken in; track and identify are", kind)
}

func (c *call) track(userID, anonymousID string, occurredAt time.Time, got receipt) (*event.Event, *Problem) {
	switch {
	case c.Event == "":
		return nil, problem("event", "missing", "the name of the event is missing")
	case len(c.Event) > maxNameBytes:
		return nil, problem("event", "too_long", "the name of the event is longer than %d bytes", maxNameBytes)
	case len(c.MessageID) > maxNameBytes:
		return nil, problem("messageId", "too_long", "the messageId is longer than %d bytes", maxNameBytes)
	}
	properties, p := values("properties", c.Properties)
	if p != nil {
		return nil, p
	}
	id := c.MessageID
	if id == "" {
		id = got.newID()
	}
	return &event.Event{EventID: id, UserID: userID, AnonymousID: anonymousID, Name: c.Event, OccurredAt: occurredAt,
		ReceivedAt: got.at, Source: got.source, Properties: properties}, nil
}

// extras is context.hikyaku of an identify: what traits have no place for.
type extras struct {
	Addresses map[string]*string `json:"addresses"`
	Consents  map[string]string  `json:"consents"`
	Locale    *string            `json:"locale"`
	TimeZone  *string            `json:"time_zone"`
	AccountID *string            `json:"account_id"`
}

const (
	subscribed   = "subscribed"
	unsubscribed = "unsubscribed"
)

func (c *call) identify(userID string, occurredAt time.Time, got receipt) (*event.ProfilePatch, *Problem) {
	traits, p := values("traits", c.Traits)
	if p != nil {
		return nil, p
	}
	patch := &event.ProfilePatch{UserID: userID, OccurredAt: occurredAt, SetAt: got.at, SetBy: got.source}
	address, addressGiven := "", false
	for _, t := range traits {
		if t.Value.IsNull() {
			patch.Unset = append(patch.Unset, t.Name)
		} else {
			patch.Set = append(patch.Set, t)
		}
		if t.Name != "email" {
			continue
		}
		if k := t.Value.Kind(); k != event.KindString && k != event.KindNull {
			return nil, problem("traits.email", "type", "a string or null was expected")
		}
		address, addressGiven = strings.TrimSpace(t.Value.Text()), true
	}
	more := struct {
		Hikyaku extras `json:"hikyaku"`
	}{}
	if len(c.Context) > 0 {
		if p := parse(c.Context, &more); p != nil {
			p.Field = strings.TrimSuffix("context."+p.Field, ".")
			return nil, p
		}
	}
	x := more.Hikyaku
	for channel, a := range x.Addresses {
		if channel != definition.ChannelEmail {
			return nil, problem("context.hikyaku.addresses", "channel", "%.32q is not a channel; %s is", channel, definition.ChannelEmail)
		}
		address, addressGiven = "", true
		if a != nil {
			address = strings.TrimSpace(*a)
		}
	}
	if len(address) > maxNameBytes {
		return nil, problem("context.hikyaku.addresses.email", "too_long", "the address is longer than %d bytes", maxNameBytes)
	}
	if addressGiven {
		// An empty one removes it.
		patch.Addresses = []event.AddressPatch{{Channel: definition.ChannelEmail, Address: address}}
	}
	for channel, consent := range x.Consents {
		if channel != definition.ChannelEmail {
			return nil, problem("context.hikyaku.consents", "channel", "%.32q is not a channel; %s is", channel, definition.ChannelEmail)
		}
		if consent != subscribed && consent != unsubscribed {
			return nil, problem("context.hikyaku.consents."+channel, "value", "%.32q is not a consent; %s and %s are", consent, subscribed, unsubscribed)
		}
		patch.Consents = []event.ConsentPatch{{Channel: channel, Consent: consent}}
	}
	patch.Locale, patch.TimeZone, patch.AccountID = x.Locale, x.TimeZone, x.AccountID
	return patch, nil
}

// idOf reads an id: a string, or a number as it is written.
func idOf(field string, raw json.RawMessage) (string, *Problem) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	id := ""
	switch c := raw[0]; {
	case c == '"':
		if p := parse(raw, &id); p != nil {
			return "", problem(field, p.Code, "%s", p.Reason)
		}
	case c == '-' || c >= '0' && c <= '9':
		id = string(raw)
	default:
		return "", problem(field, "type", "a string was expected")
	}
	if len(id) > maxUserIDBytes {
		return "", problem(field, "too_long", "the id is longer than %d bytes", maxUserIDBytes)
	}
	return id, nil
}

// values reads properties or traits, each with the type of its JSON value.
func values(field string, raw map[string]json.RawMessage) ([]event.NamedValue, *Problem) {
	out := make([]event.NamedValue, 0, len(raw))
	for name, r := range raw {
		v, err := event.FromJSON(r)
		if err != nil {
			return nil, problem(field+"."+name, "value", "%v", err)
		}
		out = append(out, event.NamedValue{Name: name, Value: v})
	}
	return event.Sorted(out), nil
}

// earliest is the first moment at which something can have happened.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// ahead is how much later than its receipt something may claim to have happened.
const ahead = 24 * time.Hour

// occurredAt is when it happened. A device's clock may be wrong; what is between
// its event and its sending is right all the same: happened = received − (sent −
// happened by its clock). A sender that gives originalTimestamp and timestamp
// has done this already.
func (c *call) occurredAt(got receipt) (time.Time, *Problem) {
	at, given, p := timeOf("timestamp", c.Timestamp)
	if p != nil {
		return at, p
	}
	original, originalGiven, p := timeOf("originalTimestamp", c.OriginalTimestamp)
	if p != nil {
		return at, p
	}
	sentAt := c.SentAt
	if len(sentAt) == 0 {
		sentAt = got.sentAt
	}
	sent, sentGiven, p := timeOf("sentAt", sentAt)
	if p != nil {
		return at, p
	}
	field := "timestamp"
	switch {
	case given && originalGiven:
	case !given && !originalGiven:
		at = got.at
	default:
		if originalGiven {
			at, field = original, "originalTimestamp"
		}
		if sentGiven {
			at = at.Add(got.at.Sub(sent))
		}
	}
	switch {
	case at.Before(earliest):
		return at, problem(field, "out_of_range", "%s is before the year 2000", at.Format(time.RFC3339))
	case at.After(got.at.Add(ahead)):
		return at, problem(field, "out_of_range", "%s is more than a day ahead", at.Format(time.RFC3339))
	case at.After(got.at):
		at = got.at
	}
	return at.UTC().Truncate(time.Microsecond), nil
}

// timeLayouts are ISO 8601's usual forms; without a zone it is UTC.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", "2006-01-02"}

func timeOf(field string, raw json.RawMessage) (at time.Time, given bool, p *Problem) {
	if len(raw) == 0 || string(raw) == "null" {
		return at, false, nil
	}
	var text string
	if p := parse(raw, &text); p != nil {
		return at, false, problem(field, "type", "a string such as 2026-05-17T12:00:00.000Z was expected")
	}
	if text == "" {
		return at, false, nil
	}
	for _, layout := range timeLayouts {
		if at, err := time.Parse(layout, text); err == nil {
			return at, true, nil
		}
	}
	return at, false, problem(field, "value", "%.40q is not a time such as 2026-05-17T12:00:00.000Z", text)
}
