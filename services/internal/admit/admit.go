// Package admit decides whether one person may be sent one message now. It is
// the same for every kind of campaign and for previews, and knows no Kafka,
// clock or store: membership was decided when the run's audience was resolved
// and is not asked again; address and consent are, because they may have
// changed since.
package admit

import (
	"strings"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// Reason is why a person is excluded: a short word that is counted and shown.
type Reason string

// The reasons. An empty one admits.
const (
	NoAddress     Reason = "no_address"     // no address on the campaign's channel, or no profile any more
	Unsubscribed  Reason = "unsubscribed"   // of this channel
	NotSubscribed Reason = "not_subscribed" // the campaign asks for consent and none is known
	Suppressed    Reason = "suppressed"     // the address bounced for good, or its owner complained
	RunCancelled  Reason = "run_cancelled"
)

// What a campaign asks of consent.
const (
	ConsentSubscribed      = "subscribed"
	ConsentNotUnsubscribed = "not_unsubscribed"
)

// Consents of a person, per channel; empty is not known.
const (
	subscribed   = "subscribed"
	unsubscribed = "unsubscribed"
)

// Question is what there is to know.
type Question struct {
	Address    string // on the campaign's channel; empty: there is none
	Consent    string // for that channel
	Suppressed string // why that address must not be written to; empty: it may be
	Rule       string // ConsentSubscribed or ConsentNotUnsubscribed
	Cancelled  bool   // the run
}

// Of returns what a profile says about a channel; a nil profile says nothing.
func Of(p *event.Profile, channel string) (address, consent string) {
	if p == nil {
		return "", ""
	}
	for i := range p.Addresses {
		if p.Addresses[i].Channel == channel {
			address = p.Addresses[i].Address
		}
	}
	for i := range p.Consents {
		if p.Consents[i].Channel == channel {
			consent = p.Consents[i].Consent
		}
	}
	return address, consent
}

// Decide returns the reason why the person is not sent to, or none. The first
// reason that applies is the one given, most general first.
func Decide(q Question) Reason {
	switch {
	case q.Cancelled:
		return RunCancelled
	case q.Consent == unsubscribed:
		return Unsubscribed
	case q.Rule == ConsentSubscribed && q.Consent != subscribed:
		return NotSubscribed
	case q.Address == "":
		return NoAddress
	case q.Suppressed != "":
		return Suppressed
	}
	return ""
}

// SuppressedFor returns why a person's address on a channel must not be written
// to, or nothing. What was said of an address that the person has no more does
// not count.
func SuppressedFor(p *event.Profile, channel, address string) (reason string) {
	if p == nil || len(p.Suppressions) == 0 {
		return ""
	}
	address = strings.ToLower(address)
	for i := range p.Suppressions {
		if s := &p.Suppressions[i]; s.Channel == channel && s.Address == address {
			return s.Reason
		}
	}
	return ""
}
