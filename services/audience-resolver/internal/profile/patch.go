// Package profile applies patches to a person's profile. It decides only:
// values in, values out.
package profile

import (
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// MaxBytes bounds an encoded profile; a patch that would exceed it is a dead
// letter.
const MaxBytes = 256 << 10

// Apply changes p as the patch says and reports whether anything changed.
// Attributes are set in order of arrival. For addresses and consents the later
// occurred_at wins, and at the same moment the more restrictive of the two:
// between sources there is no order, and an unsubscription must not be undone
// by something older that arrives later. A repeated patch changes nothing.
func Apply(p *event.Profile, patch *event.ProfilePatch) bool {
	changed := false
	may := func(setBy string) bool { return patch.OnlyIfSetBy == nil || *patch.OnlyIfSetBy == setBy }

	for i := range patch.Set {
		nv := &patch.Set[i]
		at, found := slices.BinarySearchFunc(p.Attributes, nv.Name, byName)
		if !found {
			if patch.OnlyIfSetBy == nil {
				p.Attributes = slices.Insert(p.Attributes, at, event.Attribute{Name: nv.Name, Value: nv.Value, SetAt: patch.SetAt, SetBy: patch.SetBy})
				changed = true
			}
			continue
		}
		a := &p.Attributes[at]
		if !may(a.SetBy) || a.Value.Equal(nv.Value) && a.SetBy == patch.SetBy && a.SetAt.Equal(patch.SetAt) {
			continue
		}
		a.Value, a.SetAt, a.SetBy = nv.Value, patch.SetAt, patch.SetBy
		changed = true
	}
	for _, name := range patch.Unset {
		if at, found := slices.BinarySearchFunc(p.Attributes, name, byName); found && may(p.Attributes[at].SetBy) {
			p.Attributes = slices.Delete(p.Attributes, at, at+1)
			changed = true
		}
	}

	for i := range patch.Addresses {
		changed = applyAddress(p, patch, &patch.Addresses[i], may) || changed
	}
	for i := range patch.Consents {
		changed = applyConsent(p, patch, &patch.Consents[i], may) || changed
	}
	for _, f := range []struct {
		to   *string
		from *string
	}{{&p.Locale, patch.Locale}, {&p.TimeZone, patch.TimeZone}, {&p.AccountID, patch.AccountID}} {
		if f.from != nil && *f.to != *f.from && patch.OnlyIfSetBy == nil {
			*f.to, changed = *f.from, true
		}
	}
	if p.UserID == "" {
		p.UserID, p.CreatedAt, changed = patch.UserID, patch.SetAt, true
	}
	if changed && patch.SetAt.After(p.UpdatedAt) {
		p.UpdatedAt = patch.SetAt
	}
	return changed
}

func byName(a event.Attribute, name string) int { return strings.Compare(a.Name, name) }

// later reports whether something of moment new replaces something of moment
// old; at the same moment restrictive decides.
func later(next, old time.Time, restrictive bool) bool {
	return next.After(old) || next.Equal(old) && restrictive
}

func applyAddress(p *event.Profile, patch *event.ProfilePatch, c *event.AddressPatch, may func(string) bool) bool {
	for i := range p.Addresses {
		a := &p.Addresses[i]
		if a.Channel != c.Channel {
			continue
		}
		// At the same moment a removal stands; between two addresses neither is
		// more restrictive, and the later row of one file wins.
		restrictive := c.Address != a.Address && (c.Address == "" || a.Address != "")
		if !may(a.SetBy) || !later(patch.OccurredAt, a.OccurredAt, restrictive) {
			return false
		}
		a.Address, a.OccurredAt, a.SetBy = c.Address, patch.OccurredAt, patch.SetBy
		return true
	}
	if patch.OnlyIfSetBy != nil {
		return false
	}
	p.Addresses = append(p.Addresses, event.Address{Channel: c.Channel, Address: c.Address, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
	slices.SortFunc(p.Addresses, func(a, b event.Address) int { return strings.Compare(a.Channel, b.Channel) })
	return true
}

func applyConsent(p *event.Profile, patch *event.ProfilePatch, c *event.ConsentPatch, may func(string) bool) bool {
	for i := range p.Consents {
		a := &p.Consents[i]
		if a.Channel != c.Channel {
			continue
		}
		restrictive := c.Consent == "unsubscribed" && a.Consent != "unsubscribed"
		if !may(a.SetBy) || !later(patch.OccurredAt, a.OccurredAt, restrictive) {
			return false
		}
		a.Consent, a.OccurredAt, a.SetBy = c.Consent, patch.OccurredAt, patch.SetBy
		return true
	}
	if patch.OnlyIfSetBy != nil {
		return false
	}
	p.Consents = append(p.Consents, event.Consent{Channel: c.Channel, Consent: c.Consent, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
	slices.SortFunc(p.Consents, func(a, b event.Consent) int { return strings.Compare(a.Channel, b.Channel) })
	return true
}
