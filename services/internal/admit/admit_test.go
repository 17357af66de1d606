package admit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/admit"
)

func TestWhoMayBeMessaged(t *testing.T) {
	t.Parallel()
	const a = "a@example.test"
	for _, c := range []struct {
		name string
		q    admit.Question
		why  admit.Reason
	}{
		{"consent not known", admit.Question{Address: a, Rule: admit.ConsentNotUnsubscribed}, ""},
		{"subscribed", admit.Question{Address: a, Consent: "subscribed", Rule: admit.ConsentSubscribed}, ""},
		{"consent asked for and not known", admit.Question{Address: a, Rule: admit.ConsentSubscribed}, admit.NotSubscribed},
		{"unsubscribed", admit.Question{Address: a, Consent: "unsubscribed", Rule: admit.ConsentNotUnsubscribed}, admit.Unsubscribed},
		{"unsubscribed, whatever the campaign asks", admit.Question{Address: a, Consent: "unsubscribed", Rule: admit.ConsentSubscribed}, admit.Unsubscribed},
		{"no address", admit.Question{Consent: "subscribed", Rule: admit.ConsentNotUnsubscribed}, admit.NoAddress},
		{"nothing is known any more", admit.Question{Rule: admit.ConsentNotUnsubscribed}, admit.NoAddress},
		{"the address is suppressed", admit.Question{Address: a, Suppressed: "bounced", Consent: "subscribed", Rule: admit.ConsentSubscribed}, admit.Suppressed},
		{"unsubscribed says more than suppressed", admit.Question{Address: a, Suppressed: "complained", Consent: "unsubscribed"}, admit.Unsubscribed},
		{"run cancelled", admit.Question{Address: a, Rule: admit.ConsentNotUnsubscribed, Cancelled: true}, admit.RunCancelled},
	} {
		require.Equal(t, c.why, admit.Decide(c.q), c.name)
	}
}

// Only what is known of the channel counts.
func TestAProfileSpeaksForItsChannel(t *testing.T) {
	t.Parallel()
	p := &event.Profile{Addresses: []event.Address{{Channel: "sms", Address: "+81"}, {Channel: "email", Address: "a@example.test"}},
		Consents: []event.Consent{{Channel: "sms", Consent: "unsubscribed"}}}
	address, consent := admit.Of(p, "email")
	require.Equal(t, []string{"a@example.test", ""}, []string{address, consent})
	address, consent = admit.Of(p, "sms")
	require.Equal(t, []string{"+81", "unsubscribed"}, []string{address, consent})
	address, consent = admit.Of(nil, "email")
	require.Equal(t, []string{"", ""}, []string{address, consent})
}

// A suppression is of an address: the person's next one may be written to.
func TestASuppressionIsOfItsAddress(t *testing.T) {
	t.Parallel()
	p := &event.Profile{Suppressions: []event.Suppression{{Channel: "email", Address: "back@example.test"}, {Channel: "email", Address: "old@example.test", Reason: "bounced"}}}
	require.Equal(t, "bounced", admit.SuppressedFor(p, "email", "Old@Example.test"), "in whatever case")
	require.Empty(t, admit.SuppressedFor(p, "email", "new@example.test"))
	require.Empty(t, admit.SuppressedFor(p, "email", "back@example.test"), "lifted")
	require.Empty(t, admit.SuppressedFor(p, "sms", "old@example.test"))
	require.Empty(t, admit.SuppressedFor(nil, "email", ""))
}
