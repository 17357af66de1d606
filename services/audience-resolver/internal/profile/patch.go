// Package profile applies patches to a person's profile. It decides only:
// values in, values out.
package profile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// MaxBytes bounds an encoded profile; a patch that would exceed it is a dead
// letter.
const MaxBytes = 256 << 10

// Change is what a patch did.
type Change struct {
	Changed bool // the profile is another now
	touched bool // by an import that did not make the person known
	moves   []move
}

// move is what happened to a value that was there. What it means for a later
// undo is Remember's to say.
type move struct {
	what  int
	layer layer
}

const (
	replaced = iota // layer was in force; an import's value took its place
	settled         // layer was an import's; what no undo takes back took its place
	lost            // layer came too late to take the place of an import's value
)

// Apply changes p as the patch says. Attributes are set in order of arrival. For
// addresses, consents and suppressions the later occurred_at wins, and at the same moment the
// more restrictive of the two: between sources there is no order, and an
// unsubscription must not be undone by something older that arrives later. A
// repeated patch changes nothing. One that undoes is Undo's.
func Apply(p *event.Profile, patch *event.ProfilePatch) (c Change) {
	may := func(setBy string) bool { return patch.OnlyIfSetBy == nil || *patch.OnlyIfSetBy == setBy }
	known := p.UserID != "" && !p.Deleted
	byImport := isImport(patch.SetBy)
	// Of somebody whom nobody knows (any more: erased since, it may be) an address is
	// not kept only because it bounced.
	suppressible := known || len(patch.Addresses)+len(patch.Set) > 0
	if !suppressible && len(patch.Suppressions) > 0 && len(patch.Consents) == 0 {
		return c
	}
	if byImport && known {
		c.moves = make([]move, 0, len(patch.Set)+len(patch.Addresses)+len(patch.Consents))
	}

	for i := range patch.Set {
		nv := &patch.Set[i]
		at, found := slices.BinarySearchFunc(p.Attributes, nv.Name, byName)
		if !found {
			if patch.OnlyIfSetBy == nil {
				p.Attributes = slices.Insert(p.Attributes, at, event.Attribute{Name: nv.Name, Value: nv.Value, SetAt: patch.SetAt, SetBy: patch.SetBy})
				c.Changed = true
			}
			continue
		}
		a := &p.Attributes[at]
		if !may(a.SetBy) || a.Value.Equal(nv.Value) && a.SetBy == patch.SetBy && a.SetAt.Equal(patch.SetAt) {
			continue
		}
		c.replace(ofAttribute(a), patch.SetBy)
		a.Value, a.SetAt, a.SetBy = nv.Value, patch.SetAt, patch.SetBy
		c.Changed = true
	}
	for _, name := range patch.Unset {
		// No import does this: the field would be without a writer.
		if at, found := slices.BinarySearchFunc(p.Attributes, name, byName); found && may(p.Attributes[at].SetBy) {
			c.replace(ofAttribute(&p.Attributes[at]), patch.SetBy)
			p.Attributes = slices.Delete(p.Attributes, at, at+1)
			c.Changed = true
		}
	}

	for i := range patch.Addresses {
		applyAddress(p, patch, &patch.Addresses[i], may, &c)
	}
	for i := range patch.Consents {
		applyConsent(p, patch, &patch.Consents[i], may, &c)
	}
	for i := range patch.Suppressions {
		if suppressible && suppress(p, patch, &patch.Suppressions[i]) {
			c.Changed = true
		}
	}
	for _, f := range words(p, patch) {
		if f.next == nil || patch.OnlyIfSetBy != nil || *f.value == *f.next && *f.setBy == patch.SetBy {
			continue
		}
		if old, ok := f.layer(); ok {
			c.replace(old, patch.SetBy)
		}
		*f.value, *f.setBy = *f.next, patch.SetBy
		c.Changed = true
	}
	if !known {
		p.UserID, p.CreatedAt, p.UpdatedAt, p.CreatedBy, p.Deleted, c.Changed = patch.UserID, patch.SetAt, patch.SetAt, "", false, true
		if byImport {
			p.CreatedBy = patch.SetBy
		}
	}
	if c.Changed {
		if patch.SetAt.After(p.UpdatedAt) {
			p.UpdatedAt = patch.SetAt
		}
		if !byImport {
			settle(p, patch.SetAt)
		}
		c.touched = byImport && p.CreatedBy != patch.SetBy
	}
	return c
}

// replace notes that what was in force gives way to a value of setBy.
func (c *Change) replace(old layer, setBy string) {
	switch {
	case old.setBy == setBy:
	case isImport(setBy):
		c.moves = append(c.moves, move{replaced, old})
	case isImport(old.setBy):
		c.moves = append(c.moves, move{settled, old})
	}
}

func byName(a event.Attribute, name string) int { return strings.Compare(a.Name, name) }

// wins reports whether an address or a consent replaces another of its field. At
// the same moment a removal and an unsubscription stand; between two addresses
// neither is more restrictive, and the later row of one file wins.
func wins(next, old *layer) bool {
	if !next.at.Equal(old.at) {
		return next.at.After(old.at)
	}
	to, from := next.value.Text(), old.value.Text()
	if next.kind == consentField {
		return to == "unsubscribed" && from != to
	}
	return to != from && (to == "" || from != "")
}

// lose notes that next came too late to replace old. If old is an import's, next
// may be in force once that is undone.
func (c *Change) lose(next layer, old *layer) {
	if isImport(old.setBy) && next.setBy != old.setBy {
		c.moves = append(c.moves, move{lost, next})
	}
}

func applyAddress(p *event.Profile, patch *event.ProfilePatch, c *event.AddressPatch, may func(string) bool, change *Change) {
	for i := range p.Addresses {
		a := &p.Addresses[i]
		if a.Channel != c.Channel {
			continue
		}
		if !may(a.SetBy) {
			return
		}
		old, next := ofAddress(a), ofAddress(&event.Address{Channel: c.Channel, Address: c.Address, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
		if !wins(&next, &old) {
			change.lose(next, &old)
			return
		}
		change.replace(old, patch.SetBy)
		a.Address, a.OccurredAt, a.SetBy = c.Address, patch.OccurredAt, patch.SetBy
		change.Changed = true
		return
	}
	if patch.OnlyIfSetBy != nil {
		return
	}
	p.Addresses = append(p.Addresses, event.Address{Channel: c.Channel, Address: c.Address, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
	slices.SortFunc(p.Addresses, func(a, b event.Address) int { return strings.Compare(a.Channel, b.Channel) })
	change.Changed = true
}

func applyConsent(p *event.Profile, patch *event.ProfilePatch, c *event.ConsentPatch, may func(string) bool, change *Change) {
	for i := range p.Consents {
		a := &p.Consents[i]
		if a.Channel != c.Channel {
			continue
		}
		if !may(a.SetBy) {
			return
		}
		old, next := ofConsent(a), ofConsent(&event.Consent{Channel: c.Channel, Consent: c.Consent, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
		if !wins(&next, &old) {
			change.lose(next, &old)
			return
		}
		change.replace(old, patch.SetBy)
		a.Consent, a.OccurredAt, a.SetBy = c.Consent, patch.OccurredAt, patch.SetBy
		change.Changed = true
		return
	}
	if patch.OnlyIfSetBy != nil {
		return
	}
	p.Consents = append(p.Consents, event.Consent{Channel: c.Channel, Consent: c.Consent, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy})
	slices.SortFunc(p.Consents, func(a, b event.Consent) int { return strings.Compare(a.Channel, b.Channel) })
	change.Changed = true
}

// suppress keeps an address from being written to, or lifts that. A suppression
// belongs to the address: it says nothing of the person's next one. Providers and
// operators set it, no import does, so that no undo meets it.
func suppress(p *event.Profile, patch *event.ProfilePatch, c *event.SuppressionPatch) (changed bool) {
	if patch.OnlyIfSetBy != nil || c.Channel == "" || c.Address == "" {
		return false
	}
	// Nobody has two mailboxes that differ in case only, and providers report an
	// address in a case of their own.
	next := event.Suppression{Channel: c.Channel, Address: strings.ToLower(c.Address), Reason: c.Reason, OccurredAt: patch.OccurredAt, SetBy: patch.SetBy}
	at, found := slices.BinarySearchFunc(p.Suppressions, &next, func(a event.Suppression, b *event.Suppression) int {
		return cmp.Or(strings.Compare(a.Channel, b.Channel), strings.Compare(a.Address, b.Address))
	})
	if !found {
		p.Suppressions = slices.Insert(p.Suppressions, at, next)
		return true
	}
	if !outweighs(&next, &p.Suppressions[at]) {
		return false
	}
	p.Suppressions[at] = next
	return true
}

// outweighs reports whether a suppression replaces another of its address. Of
// two of one moment the one that suppresses stands, and of two that do, always the
// same, whichever comes first.
func outweighs(next, old *event.Suppression) bool {
	if !next.OccurredAt.Equal(old.OccurredAt) {
		return next.OccurredAt.After(old.OccurredAt)
	}
	return cmp.Or(strings.Compare(next.Reason, old.Reason), strings.Compare(next.SetBy, old.SetBy)) > 0
}
