package webhook

import (
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// The outcomes that providers report.
const (
	delivered  = "delivered"
	delayed    = "delayed" // and tried further: no more than a step
	bounced    = "bounced"
	complained = "complained"
)

const (
	subscribed   = "subscribed"
	unsubscribed = "unsubscribed"
)

// report is what a provider says about a message, whichever it is.
type report struct {
	source  string // names who reports: ses, line, or that of a signed webhook
	outcome string // empty: only what it means for the person
	reason  string
	detail  string
	at      time.Time
	// providerID is the provider's id for the message, eventID that of what
	// happened: the same each time it is reported.
	providerID, eventID string
	// suppress is the address that must not be written to any more; empty: none.
	suppress string
	// consent is what the person said by it; empty: nothing.
	consent string
}

// Longest texts, in bytes. Providers repeat what mail servers say, which may be
// anything.
const (
	maxReasonBytes = 64
	maxDetailBytes = 1 << 10
	maxIDBytes     = 256
)

// entries are the records of a report about the message of t.
func (r *report) entries(t *token.Token, now time.Time) []output.Entry {
	at := happened(r.at, now)
	var out []output.Entry
	if r.outcome != "" {
		eventID := cut(r.eventID, maxIDBytes)
		out = append(out, output.Entry{Topic: topic.Outcomes, Key: t.UserID, Record: &event.Outcome{
			// What happened to a message after it was taken belongs to no attempt of ours.
			OutcomeID: identity.Outcome(t.MessageID, r.outcome, 0, r.source+"/"+eventID), MessageID: t.MessageID, RunID: t.RunID, CampaignID: t.CampaignID,
			Lane: "bulk", UserID: t.UserID, Channel: t.Channel, Outcome: r.outcome, Reason: cut(r.reason, maxReasonBytes), Detail: cut(r.detail, maxDetailBytes),
			OccurredAt: at, Provider: r.source, ProviderID: cut(r.providerID, maxIDBytes), ProviderEventID: eventID,
		}})
	}
	if r.suppress == "" && r.consent == "" {
		return out
	}
	patch := &event.ProfilePatch{UserID: t.UserID, OccurredAt: at, SetAt: now, SetBy: "webhook:" + r.source}
	if r.suppress != "" {
		patch.Suppressions = []event.SuppressionPatch{{Channel: t.Channel, Address: cut(r.suppress, maxIDBytes), Reason: r.outcome}}
	}
	if r.consent != "" {
		patch.Consents = []event.ConsentPatch{{Channel: t.Channel, Consent: r.consent}}
	}
	// The person first: nobody must be written to because half of this was stored.
	return append([]output.Entry{{Topic: topic.ProfileUpdates, Key: t.UserID, Record: patch}}, out...)
}

// happened is when it did, by the provider's clock. One that is ahead of ours must
// not make its word the last one for ever.
func happened(at, now time.Time) time.Time {
	if at.After(now) {
		at = now
	}
	return at.UTC().Truncate(time.Microsecond)
}

// earliest is the first moment at which something can have happened, ahead how
// much later than its receipt it may claim to have.
var earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const ahead = 24 * time.Hour

// possible reports whether something can have happened at that time.
func possible(at, now time.Time) bool { return !at.Before(earliest) && !at.After(now.Add(ahead)) }

// words makes a provider's word one of ours: "MailboxFull" is mailbox_full.
func words(s string) string {
	var b strings.Builder
	lower := false // the letter before
	for _, c := range s {
		switch {
		case c >= 'A' && c <= 'Z':
			if lower {
				b.WriteByte('_')
			}
			b.WriteRune(c + 'a' - 'A')
			lower = false
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.':
			b.WriteRune(c)
			lower = true
		default:
			b.WriteByte('_')
			lower = false
		}
	}
	return cut(b.String(), maxReasonBytes)
}

func cut(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}
