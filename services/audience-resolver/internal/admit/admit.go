// Package admit decides whether one person may be sent one message now. It is
// the same for every kind of campaign and knows no Kafka, clock or store:
// membership was decided when the run's audience was resolved and is not asked
// again; address and consent are, because they may have changed since.
package admit

import "github.com/hikyaku/hikyaku/schemas/event"

// Reason is why a person is excluded: a short word that is counted and shown.
type Reason string

// The reasons. An empty one admits.
const (
	NoAddress     Reason = "no_address"     // no address on the campaign's channel, or no profile any more
	Unsubscribed  Reason = "unsubscribed"   // of this channel
	NotSubscribed Reason = "not_subscribed" // the campaign asks for consent and none is known
	RunCancelled  Reason = "run_cancelled"
)

// Rule is what a campaign asks of consent.
const (
	ConsentSubscribed      = "subscribed"
	ConsentNotUnsubscribed = "not_unsubscribed"
)

// Consents of a person, per channel; absent is not known.
const (
	subscribed   = "subscribed"
	unsubscribed = "unsubscribed"
)

// Question is what there is to know.
type Question struct {
	Profile   *event.Profile // nil: there is none (any more)
	Channel   string
	Consent   string // ConsentSubscribed or ConsentNotUnsubscribed
	Cancelled bool   // the run
}

// Decide returns the address to send to, or the reason why not. The first
// reason that applies is the one given, most general first.
func Decide(q Question) (address string, why Reason) {
	if q.Cancelled {
		return "", RunCancelled
	}
	consent := ""
	if q.Profile != nil {
		for i := range q.Profile.Consents {
			if q.Profile.Consents[i].Channel == q.Channel {
				consent = q.Profile.Consents[i].Consent
			}
		}
		for i := range q.Profile.Addresses {
			if q.Profile.Addresses[i].Channel == q.Channel {
				address = q.Profile.Addresses[i].Address
			}
		}
	}
	switch {
	case consent == unsubscribed:
		return "", Unsubscribed
	case q.Consent == ConsentSubscribed && consent != subscribed:
		return "", NotSubscribed
	case address == "":
		return "", NoAddress
	}
	return address, ""
}
