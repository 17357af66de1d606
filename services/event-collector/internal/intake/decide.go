package intake

import (
	"fmt"
	"slices"
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
	scopes Scopes
	// sentAt is the batch's; an event's own wins.
	sentAt moment
	newID  func() string
}

// Longest texts, in bytes. The user_id is a key in all that follows.
const (
	maxUserIDBytes = 512
	maxNameBytes   = 512
)

// The kinds of calls. A page and a screen are events of these names, the page's own
// name being a property, as in Segment's warehouses.
const (
	kindTrack    = "track"
	kindIdentify = "identify"
	kindPage     = "page"
	kindScreen   = "screen"
	kindGroup    = "group"
	kindAlias    = "alias"
)

const kindsTaken = "track, page, screen, identify and group are"

// needs are the scopes that a kind of call needs: one for each topic it writes.
func needs(kind string) Scopes {
	switch kind {
	case kindIdentify:
		return ScopeProfiles
	case kindGroup:
		return ScopeProfiles | ScopeEvents
	}
	return ScopeEvents
}

// decide turns one event into its records, appended to out. Kind is the path's, or empty if
// the event must say so itself.
func decide(out []output.Entry, c *call, kind string, got *receipt) ([]output.Entry, *Problem) {
	if kind == "" {
		kind = c.kind
	}
	if p := c.problem(kind); p != nil {
		return out, p
	}
	switch kind {
	case kindTrack, kindPage, kindScreen, kindIdentify, kindGroup:
	case "":
		return out, problem("type", "missing", "it is not said what it is; %s taken in", kindsTaken)
	case kindAlias:
		return out, problem("type", "unsupported", "alias is not taken in: people are not merged yet; send what they do with one userId")
	default:
		return out, problem("type", "unsupported", "%.32q is not taken in; %s", kind, kindsTaken)
	}
	if lacks := needs(kind) &^ got.scopes; lacks != 0 {
		return out, problem("type", "scope", "this write key may not send %s: it lacks the scope %s", kind, lacks)
	}
	userID := c.userID
	if userID == "" {
		// Until ids can be merged, somebody without a user_id is known by the other.
		userID = c.anonymousID
	}
	if userID == "" {
		return out, problem("userId", "missing", "neither userId nor anonymousId is given")
	}
	occurredAt, p := c.occurredAt(got)
	if p != nil {
		return out, p
	}
	if len(c.messageID) > maxNameBytes {
		return out, problem("messageId", "too_long", "the messageId is longer than %d bytes", maxNameBytes)
	}
	if kind == kindIdentify {
		patch, p := c.identify(userID, occurredAt, got)
		if p != nil {
			return out, p
		}
		return append(out, output.Entry{Topic: topic.ProfileUpdates, Key: userID, Record: patch}), nil
	}
	e := &event.Event{EventID: c.messageID, UserID: userID, AnonymousID: c.anonymousID, Name: kind, OccurredAt: occurredAt,
		ReceivedAt: got.at, Source: got.source, Properties: c.properties}
	if e.EventID == "" {
		e.EventID = got.newID()
	}
	switch kind {
	case kindTrack:
		if e.Name, p = nameOf("event", c.event, true); p != nil {
			return out, p
		}
	case kindPage, kindScreen:
		for _, n := range [...]struct{ field, text string }{{"name", c.name}, {"category", c.category}} {
			if _, p := nameOf(n.field, n.text, false); p != nil {
				return out, p
			}
			if n.text != "" {
				e.Properties = with(e.Properties, n.field, n.text)
			}
		}
	case kindGroup:
		if c.groupID == "" {
			return out, problem("groupId", "missing", "the groupId is missing")
		}
		// Whom an account's traits belong to is the account, for which there is no
		// table yet: they are kept with the event.
		e.Properties = with(c.traits, "group_id", c.groupID)
		account := c.groupID // the call's own memory is used again, the record may be kept
		out = append(out, output.Entry{Topic: topic.ProfileUpdates, Key: userID, Record: &event.ProfilePatch{
			UserID: userID, OccurredAt: occurredAt, SetAt: got.at, SetBy: got.source, AccountID: &account}})
	}
	return append(out, output.Entry{Topic: topic.Events, Key: userID, Record: e}), nil
}

// nameOf checks the length of a name.
func nameOf(field, text string, required bool) (string, *Problem) {
	switch {
	case text == "" && required:
		return "", problem(field, "missing", "the name of the event is missing")
	case len(text) > maxNameBytes:
		return "", problem(field, "too_long", "the %s is longer than %d bytes", field, maxNameBytes)
	}
	return text, nil
}

// with is a copy of values in which name is text.
func with(values []event.NamedValue, name, text string) []event.NamedValue {
	return event.Sorted(append(slices.Clone(values), event.NamedValue{Name: name, Value: event.String(text)}))
}

const (
	subscribed   = "subscribed"
	unsubscribed = "unsubscribed"
)

func (c *call) identify(userID string, occurredAt time.Time, got *receipt) (*event.ProfilePatch, *Problem) {
	traits := c.traits
	if !c.traitsGiven {
		traits = c.contextTraits
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
	x := &c.extras
	for _, a := range x.addresses {
		if a.name != definition.ChannelEmail {
			return nil, problem("context.hikyaku.addresses", "channel", "%.32q is not a channel; %s is", a.name, definition.ChannelEmail)
		}
		address, addressGiven = "", true
		if a.text != nil {
			address = strings.TrimSpace(*a.text)
		}
	}
	if len(address) > maxNameBytes {
		return nil, problem("context.hikyaku.addresses.email", "too_long", "the address is longer than %d bytes", maxNameBytes)
	}
	if addressGiven {
		// An empty one removes it.
		patch.Addresses = []event.AddressPatch{{Channel: definition.ChannelEmail, Address: address}}
	}
	for _, s := range x.consents {
		if s.name != definition.ChannelEmail {
			return nil, problem("context.hikyaku.consents", "channel", "%.32q is not a channel; %s is", s.name, definition.ChannelEmail)
		}
		consent := ""
		if s.text != nil {
			consent = *s.text
		}
		if consent != subscribed && consent != unsubscribed {
			return nil, problem("context.hikyaku.consents."+s.name, "value", "%.32q is not a consent; %s and %s are", consent, subscribed, unsubscribed)
		}
		patch.Consents = []event.ConsentPatch{{Channel: s.name, Consent: consent}}
	}
	patch.Locale, patch.TimeZone, patch.AccountID = x.locale, x.timeZone, x.accountID
	return patch, nil
}

// earliest is the first moment at which something can have happened.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// ahead is how much later than its receipt something may claim to have happened.
const ahead = 24 * time.Hour

// occurredAt is when it happened. A device's clock may be wrong; what is between
// its event and its sending is right all the same: happened = received − (sent −
// happened by its clock). A sender that gives originalTimestamp and timestamp
// has done this already.
func (c *call) occurredAt(got *receipt) (time.Time, *Problem) {
	at, sent := c.timestamp.at, c.sentAt
	if !sent.given {
		sent = got.sentAt
	}
	field := "timestamp"
	switch {
	case c.timestamp.given && c.originalTimestamp.given:
	case !c.timestamp.given && !c.originalTimestamp.given:
		at = got.at
	default:
		if c.originalTimestamp.given {
			at, field = c.originalTimestamp.at, "originalTimestamp"
		}
		if sent.given {
			at = at.Add(got.at.Sub(sent.at))
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
