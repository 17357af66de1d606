package admit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/admit"
)

func person(address, consent string) *event.Profile {
	p := &event.Profile{UserID: "u", Addresses: []event.Address{{Channel: "sms", Address: "+81"}, {Channel: "email", Address: address}}, Consents: []event.Consent{{Channel: "sms", Consent: "unsubscribed"}}}
	if consent != "" {
		p.Consents = append(p.Consents, event.Consent{Channel: "email", Consent: consent})
	}
	return p
}

func TestWhoMayBeMessaged(t *testing.T) {
	t.Parallel()
	const a = "a@example.test"
	for _, c := range []struct {
		name    string
		q       admit.Question
		address string
		why     admit.Reason
	}{
		{"consent not known", admit.Question{Profile: person(a, ""), Consent: admit.ConsentNotUnsubscribed}, a, ""},
		{"subscribed", admit.Question{Profile: person(a, "subscribed"), Consent: admit.ConsentSubscribed}, a, ""},
		{"consent asked for and not known", admit.Question{Profile: person(a, ""), Consent: admit.ConsentSubscribed}, "", admit.NotSubscribed},
		{"unsubscribed", admit.Question{Profile: person(a, "unsubscribed"), Consent: admit.ConsentNotUnsubscribed}, "", admit.Unsubscribed},
		{"unsubscribed, whatever the campaign asks", admit.Question{Profile: person(a, "unsubscribed"), Consent: admit.ConsentSubscribed}, "", admit.Unsubscribed},
		{"no address", admit.Question{Profile: person("", "subscribed"), Consent: admit.ConsentNotUnsubscribed}, "", admit.NoAddress},
		{"no profile any more", admit.Question{Consent: admit.ConsentNotUnsubscribed}, "", admit.NoAddress},
		{"run cancelled", admit.Question{Profile: person(a, ""), Consent: admit.ConsentNotUnsubscribed, Cancelled: true}, "", admit.RunCancelled},
	} {
		c.q.Channel = "email"
		address, why := admit.Decide(c.q)
		require.Equal(t, c.why, why, c.name)
		require.Equal(t, c.address, address, c.name)
	}
}
