package profile_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/event"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/profile"
)

var t0 = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

func patch(minute int, change func(*event.ProfilePatch)) *event.ProfilePatch {
	at := t0.Add(time.Duration(minute) * time.Minute)
	p := &event.ProfilePatch{UserID: "u", OccurredAt: at, SetAt: at, SetBy: "import:1"}
	change(p)
	return p
}

func set(name string, v event.Value) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) { p.Set = []event.NamedValue{{Name: name, Value: v}} }
}

func consent(c string) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) { p.Consents = []event.ConsentPatch{{Channel: "email", Consent: c}} }
}

func address(a string) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) { p.Addresses = []event.AddressPatch{{Channel: "email", Address: a}} }
}

func apply(patches ...*event.ProfilePatch) *event.Profile {
	p := &event.Profile{}
	for _, q := range patches {
		profile.Apply(p, q)
	}
	return p
}

func TestAttributesAreSetInOrderOfArrival(t *testing.T) {
	t.Parallel()
	p := apply(patch(5, set("plan", event.String("gold"))), patch(1, set("plan", event.String("basic"))))
	require.Equal(t, []event.Attribute{{Name: "plan", Value: event.String("basic"), SetAt: t0.Add(time.Minute), SetBy: "import:1"}}, p.Attributes)
	p = apply(patch(1, set("b", event.Int(1))), patch(1, set("a", event.Int(2))), patch(2, func(p *event.ProfilePatch) { p.Unset = []string{"b", "never"} }))
	require.Len(t, p.Attributes, 1)
	require.Equal(t, "a", p.Attributes[0].Name)
}

// An unsubscription of 10:00 that arrives after a list of 09:00 stands, and so
// does one of the same moment.
func TestLaterConsentWinsAndTiesAreRestrictive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		patches []*event.ProfilePatch
		want    string
	}{
		{[]*event.ProfilePatch{patch(10, consent("unsubscribed")), patch(9, consent("subscribed"))}, "unsubscribed"},
		{[]*event.ProfilePatch{patch(9, consent("subscribed")), patch(10, consent("unsubscribed"))}, "unsubscribed"},
		{[]*event.ProfilePatch{patch(9, consent("unsubscribed")), patch(10, consent("subscribed"))}, "subscribed"},
		{[]*event.ProfilePatch{patch(9, consent("subscribed")), patch(9, consent("unsubscribed"))}, "unsubscribed"},
		{[]*event.ProfilePatch{patch(9, consent("unsubscribed")), patch(9, consent("subscribed"))}, "unsubscribed"},
	} {
		require.Equal(t, c.want, apply(c.patches...).Consents[0].Consent)
	}
}

func TestARemovedAddressDoesNotComeBackFromAnOlderList(t *testing.T) {
	t.Parallel()
	p := apply(patch(1, address("old@example.test")), patch(5, address("")), patch(3, address("older@example.test")))
	require.Empty(t, p.Addresses[0].Address)
	p = apply(patch(1, address("a@example.test")), patch(1, address("b@example.test")))
	require.Equal(t, "b@example.test", p.Addresses[0].Address, "the later row of one file")
}

func TestUndoChangesOnlyWhatItsImportSetLast(t *testing.T) {
	t.Parallel()
	by := "import:1"
	undo := patch(9, set("plan", event.String("before")))
	undo.SetBy, undo.OnlyIfSetBy = "undo:1", &by
	changed := patch(5, set("plan", event.String("by a person")))
	changed.SetBy = "api:web"
	p := apply(patch(1, set("plan", event.String("imported"))), changed, undo)
	require.Equal(t, event.String("by a person"), p.Attributes[0].Value)
	p = apply(patch(1, set("plan", event.String("imported"))), undo)
	require.Equal(t, event.String("before"), p.Attributes[0].Value)
}

func suppression(address, reason string) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) {
		p.Suppressions = []event.SuppressionPatch{{Channel: "email", Address: address, Reason: reason}}
	}
}

// A complaint of 10:00 that arrives after it was lifted at 11:00 changes nothing;
// one of 12:00 does.
func TestLaterSuppressionOfAnAddressWins(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		patches []*event.ProfilePatch
		want    string
	}{
		"a bounce":               {[]*event.ProfilePatch{patch(1, suppression("A@example.test", "bounced"))}, "bounced"},
		"lifted":                 {[]*event.ProfilePatch{patch(1, suppression("a@example.test", "bounced")), patch(2, suppression("A@example.test", ""))}, ""},
		"lifted, and heard late": {[]*event.ProfilePatch{patch(11, suppression("a@example.test", "")), patch(10, suppression("a@example.test", "complained"))}, ""},
		"once more":              {[]*event.ProfilePatch{patch(11, suppression("a@example.test", "")), patch(12, suppression("a@example.test", "complained"))}, "complained"},
		"both at one moment":     {[]*event.ProfilePatch{patch(1, suppression("a@example.test", "bounced")), patch(1, suppression("a@example.test", ""))}, "bounced"},
		"of another address":     {[]*event.ProfilePatch{patch(1, suppression("a@example.test", "")), patch(2, suppression("b@example.test", "bounced"))}, ""},
	} {
		p := apply(append([]*event.ProfilePatch{patch(0, address("a@example.test"))}, c.patches...)...)
		require.Equal(t, "a@example.test", p.Suppressions[0].Address, name)
		require.Equal(t, c.want, p.Suppressions[0].Reason, name)
	}
	p := apply(patch(1, func(p *event.ProfilePatch) {
		p.Suppressions = []event.SuppressionPatch{{Channel: "email", Reason: "bounced"}}
	}))
	require.Empty(t, p.Suppressions, "of no address there is none")
}

// A mail that bounces after its person was erased does not bring the address back;
// that she wants no more does, without it.
func TestAnAddressOfNobodyIsNotSuppressed(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]*event.Profile{"never known": {}, "erased": {UserID: "u", Deleted: true, Revision: 7}} {
		before := *p
		require.False(t, profile.Apply(p, patch(1, suppression("a@example.test", "bounced"))).Changed, name)
		require.Equal(t, before, *p, name)
		require.True(t, profile.Apply(p, patch(2, func(p *event.ProfilePatch) {
			suppression("a@example.test", "complained")(p)
			consent("unsubscribed")(p)
		})).Changed, name)
		require.Empty(t, p.Suppressions, name)
		require.Equal(t, "unsubscribed", p.Consents[0].Consent, name)
	}
}

// Reading the same patch again, as after a crash, changes nothing.
func TestRepeatedPatchChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Custom(func(t *rapid.T) *event.ProfilePatch {
			return patch(rapid.IntRange(0, 5).Draw(t, "minute"), func(p *event.ProfilePatch) {
				consent(rapid.SampledFrom([]string{"subscribed", "unsubscribed"}).Draw(t, "consent"))(p)
				address(rapid.SampledFrom([]string{"", "a@example.test", "b@example.test"}).Draw(t, "address"))(p)
				set("n", event.Int(rapid.Int64Range(0, 3).Draw(t, "n")))(p)
				suppression(rapid.SampledFrom([]string{"a@example.test", "A@example.test", "b@example.test"}).Draw(t, "suppressed"), rapid.SampledFrom([]string{"", "bounced", "complained"}).Draw(t, "reason"))(p)
				p.SetBy = rapid.SampledFrom([]string{"import:1", "webhook:ses"}).Draw(t, "set_by")
			})
		})
		patches := rapid.SliceOfN(one, 1, 5).Draw(t, "patches")
		p := apply(patches...)
		last := patches[len(patches)-1]
		before := *p
		if profile.Apply(p, last).Changed && last.Addresses[0].Address == "" {
			t.Fatalf("%+v became %+v", before, *p)
		}
		consents, suppressions := p.Consents[0].Consent, slices.Clone(p.Suppressions)
		for _, q := range rapid.Permutation(patches).Draw(t, "again") {
			profile.Apply(p, q)
		}
		require.Equal(t, consents, p.Consents[0].Consent, "consent does not depend on the order")
		require.Equal(t, suppressions, p.Suppressions, "nor does what is suppressed")
		require.Equal(t, suppressions, apply(rapid.Permutation(patches).Draw(t, "other order")...).Suppressions)
	})
}
