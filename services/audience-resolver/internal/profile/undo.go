package profile

import (
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// A field's values lie over one another: the oldest at the bottom, each set by a
// writer of its own, the one in force in the profile and those beneath it in the
// person's state. To undo an import is to take its layers out; whatever is on top
// then is in force. What nobody can take back (because no import set it, or one
// that is no longer among the state's imports) hides for ever what is beneath
// it, so that is not kept. Nor is a second layer of one writer: both go at once.
//
// After any undos, in any order, a profile's fields are what they would be had
// the patches of the undone imports never come, provided that of each import's
// patches all have one set_at, as the importer's do. created_at and updated_at
// are the same but where a patch changed something only because of an import that
// was undone since (an unset of what only that one had set), or in place of one
// that was (it lost against it); and but for created_at where the import that made
// the person known is undone and the others' set_at are not in order of arrival.

// Fields, as in event.Replaced.
const (
	attributeField = "attribute/"
	addressField   = "address/"
	consentField   = "consent/"
)

// retain is how long an import can be undone: whom it touched is known from
// profile-updates.
var retain = func() time.Duration {
	t, _ := topic.ByName(topic.ProfileUpdates)
	return t.Retain
}()

func isImport(setBy string) bool { return strings.HasPrefix(setBy, "import:") }

func ofAttribute(a *event.Attribute) event.Replaced {
	return event.Replaced{Field: attributeField + a.Name, Value: a.Value, At: a.SetAt, SetBy: a.SetBy}
}

func ofAddress(a *event.Address) event.Replaced {
	return event.Replaced{Field: addressField + a.Channel, Value: event.String(a.Address), At: a.OccurredAt, SetBy: a.SetBy}
}

func ofConsent(c *event.Consent) event.Replaced {
	return event.Replaced{Field: consentField + c.Channel, Value: event.String(c.Consent), At: c.OccurredAt, SetBy: c.SetBy}
}

// word is one of the fields that are single texts.
type word struct {
	field        string
	value, setBy *string
	next         *string // what a patch sets, if it does
}

func words(p *event.Profile, patch *event.ProfilePatch) [3]word {
	return [3]word{
		{"locale", &p.Locale, &p.LocaleSetBy, patch.Locale},
		{"time_zone", &p.TimeZone, &p.TimeZoneSetBy, patch.TimeZone},
		{"account_id", &p.AccountID, &p.AccountIDSetBy, patch.AccountID},
	}
}

// layer is what is in force, nil if nothing is. It has no time: nothing shows it.
func (w *word) layer() *event.Replaced {
	if *w.value == "" && *w.setBy == "" {
		return nil
	}
	return &event.Replaced{Field: w.field, Value: event.String(*w.value), At: time.Unix(0, 0).UTC(), SetBy: *w.setBy}
}

// inForce returns the value of every field.
func inForce(p *event.Profile) []event.Replaced {
	out := make([]event.Replaced, 0, len(p.Attributes)+len(p.Addresses)+len(p.Consents)+3)
	for i := range p.Attributes {
		out = append(out, ofAttribute(&p.Attributes[i]))
	}
	for i := range p.Addresses {
		out = append(out, ofAddress(&p.Addresses[i]))
	}
	for i := range p.Consents {
		out = append(out, ofConsent(&p.Consents[i]))
	}
	for _, w := range words(p, &event.ProfilePatch{}) {
		if l := w.layer(); l != nil {
			out = append(out, *l)
		}
	}
	return out
}

// put sets a field that is there to what was beneath its value; nil removes it.
func put(p *event.Profile, field string, l *event.Replaced) {
	kind, name, _ := strings.Cut(field, "/")
	switch kind + "/" {
	case attributeField:
		i := slices.IndexFunc(p.Attributes, func(a event.Attribute) bool { return a.Name == name })
		if l == nil {
			p.Attributes = slices.Delete(p.Attributes, i, i+1)
		} else {
			p.Attributes[i] = event.Attribute{Name: name, Value: l.Value, SetAt: l.At, SetBy: l.SetBy}
		}
		return
	case addressField:
		i := slices.IndexFunc(p.Addresses, func(a event.Address) bool { return a.Channel == name })
		if l == nil {
			p.Addresses = slices.Delete(p.Addresses, i, i+1)
		} else {
			p.Addresses[i] = event.Address{Channel: name, Address: l.Value.Text(), OccurredAt: l.At, SetBy: l.SetBy}
		}
		return
	case consentField:
		i := slices.IndexFunc(p.Consents, func(c event.Consent) bool { return c.Channel == name })
		if l == nil {
			p.Consents = slices.Delete(p.Consents, i, i+1)
		} else {
			p.Consents[i] = event.Consent{Channel: name, Consent: l.Value.Text(), OccurredAt: l.At, SetBy: l.SetBy}
		}
		return
	}
	for _, w := range words(p, &event.ProfilePatch{}) {
		if w.field != field {
			continue
		}
		*w.value, *w.setBy = "", ""
		if l != nil {
			*w.value, *w.setBy = l.Value.Text(), l.SetBy
		}
	}
}

// settle takes into account a change of the moment at that no undo takes back.
func settle(p *event.Profile, at time.Time) {
	if p.SettledFrom == nil || at.Before(*p.SettledFrom) {
		p.SettledFrom = &at
	}
	if p.SettledUntil == nil || at.After(*p.SettledUntil) {
		p.SettledUntil = &at
	}
}

// Matters reports whether Remember has anything to say of a change. Of a person
// whom nobody knew before it never has.
func (c *Change) Matters() bool { return c.touched || len(c.moves) > 0 }

// Remember keeps in h what an undo will need of what a patch did to p, and drops
// what none will. It reports whether h changed; p, too, may change by it.
func Remember(p *event.Profile, h *event.PersonState, patch *event.ProfilePatch, c *Change) bool {
	imports, before := slices.Clone(h.Imports), slices.Clone(h.Replaced)
	if p.CreatedBy != "" && !listed(h, p.CreatedBy) {
		h.Imports = slices.Insert(h.Imports, 0, event.ImportOfPerson{SetBy: p.CreatedBy, SetAt: p.CreatedAt})
	}
	undoable := isImport(patch.SetBy) && (h.Forgotten == nil || patch.SetAt.After(*h.Forgotten))
	if undoable && !listed(h, patch.SetBy) {
		h.Imports = append(h.Imports, event.ImportOfPerson{SetBy: patch.SetBy, SetAt: patch.SetAt})
	}
	for i := range c.moves {
		switch m := &c.moves[i]; m.what {
		case replaced:
			h.Replaced = append(h.Replaced, m.layer)
		case lost:
			sink(h, m.layer)
		} // what is beneath a settled value is pruned
	}
	prune(p, h)
	if !c.touched && same(before, h.Replaced) {
		h.Imports, h.Replaced = imports, before
		return false
	}
	// What changed only the layers beneath is a change of the profile, too: undos
	// count on updated_at being the latest of those that are kept.
	if patch.SetAt.After(p.UpdatedAt) {
		p.UpdatedAt, c.Changed = patch.SetAt, true
	}
	if !undoable {
		settle(p, patch.SetAt)
		c.Changed = true
	}
	newest := patch.SetAt
	if p.UpdatedAt.After(newest) {
		newest = p.UpdatedAt
	}
	for i := oldest(h); i >= 0 && (newest.Sub(h.Imports[i].SetAt) > retain || len(h.AppendAvro(nil)) > MaxBytes); i = oldest(h) {
		forget(p, h, i)
		c.Changed = true
	}
	return true
}

func listed(h *event.PersonState, setBy string) bool {
	return slices.ContainsFunc(h.Imports, func(i event.ImportOfPerson) bool { return i.SetBy == setBy })
}

func same(a, b []event.Replaced) bool {
	return slices.EqualFunc(a, b, func(x, y event.Replaced) bool {
		return x.Field == y.Field && x.Value.Equal(y.Value) && x.At.Equal(y.At) && x.SetBy == y.SetBy
	})
}

// sink lays an address or a consent that lost over those that it wins against.
func sink(h *event.PersonState, l event.Replaced) {
	at := 0
	for i := range h.Replaced {
		if h.Replaced[i].Field == l.Field && wins(&l, &h.Replaced[i]) {
			at = i + 1
		}
	}
	h.Replaced = slices.Insert(h.Replaced, at, l)
}

// prune drops the layers that no undo brings to the top.
func prune(p *event.Profile, h *event.PersonState) {
	if len(h.Replaced) == 0 {
		return
	}
	above := map[string][]string{} // the writers over a layer, by field; nil where nothing is to be kept
	for _, l := range inForce(p) {
		if listed(h, l.SetBy) {
			above[l.Field] = []string{l.SetBy}
		}
	}
	var kept []event.Replaced
	for i := len(h.Replaced) - 1; i >= 0; i-- {
		l := h.Replaced[i]
		writers := above[l.Field]
		if writers == nil || slices.Contains(writers, l.SetBy) {
			continue
		}
		kept = append(kept, l)
		if above[l.Field] = append(writers, l.SetBy); !listed(h, l.SetBy) {
			above[l.Field] = nil
		}
	}
	slices.Reverse(kept)
	h.Replaced = kept
}

// oldest is the index of the import with the least set_at, -1 if there is none.
func oldest(h *event.PersonState) int {
	at := -1
	for i := range h.Imports {
		if at < 0 || h.Imports[i].SetAt.Before(h.Imports[at].SetAt) {
			at = i
		}
	}
	return at
}

// forget makes of an import one that can no longer be undone.
func forget(p *event.Profile, h *event.PersonState, i int) {
	gone := h.Imports[i]
	h.Imports = slices.Delete(h.Imports, i, i+1)
	if h.Forgotten == nil || gone.SetAt.After(*h.Forgotten) {
		h.Forgotten = &gone.SetAt
	}
	if p.CreatedBy == gone.SetBy {
		p.CreatedBy = ""
	}
	settle(p, gone.SetAt)
	prune(p, h)
}

// Undone is what an undo did.
type Undone struct {
	Changed   bool // the profile or what is remembered of it
	Forgotten bool // nothing, since what the import replaced is no longer known
}

// Undo takes back what the import by changed of p. If nobody else made anything
// known of the person, p is deleted.
func Undo(p *event.Profile, h *event.PersonState, by string) Undone {
	set := func(l event.Replaced) bool { return l.SetBy == by }
	if p.Deleted || !listed(h, by) && p.CreatedBy != by {
		return Undone{Forgotten: slices.ContainsFunc(inForce(p), set) || slices.ContainsFunc(h.Replaced, set)}
	}
	h.Replaced = slices.DeleteFunc(h.Replaced, set)
	for _, l := range inForce(p) {
		if !set(l) {
			continue
		}
		var beneath *event.Replaced
		for i := range h.Replaced {
			if h.Replaced[i].Field == l.Field {
				beneath = &h.Replaced[i]
			}
		}
		put(p, l.Field, beneath)
	}
	h.Imports = slices.DeleteFunc(h.Imports, func(i event.ImportOfPerson) bool { return i.SetBy == by })
	// What is in force now is among the layers yet, under its own writer.
	prune(p, h)

	switch {
	case p.CreatedBy != by:
	case len(h.Imports) == 0 && p.SettledFrom == nil:
		*p = event.Profile{UserID: p.UserID, Revision: p.Revision, CreatedAt: p.CreatedAt, UpdatedAt: p.UpdatedAt, Deleted: true}
		return Undone{Changed: true}
	case len(h.Imports) == 0 || p.SettledFrom != nil && p.SettledFrom.Before(h.Imports[0].SetAt):
		p.CreatedBy, p.CreatedAt = "", *p.SettledFrom
	default:
		p.CreatedBy, p.CreatedAt = h.Imports[0].SetBy, h.Imports[0].SetAt
	}
	if p.CreatedBy != "" && len(h.Imports) == 1 && len(h.Replaced) == 0 {
		h.Imports = nil // as after a first import: the profile says it
	}
	p.UpdatedAt = p.CreatedAt
	if p.SettledUntil != nil {
		p.UpdatedAt = *p.SettledUntil
	}
	for i := range h.Imports {
		if h.Imports[i].SetAt.After(p.UpdatedAt) {
			p.UpdatedAt = h.Imports[i].SetAt
		}
	}
	return Undone{Changed: true}
}

// Empty reports whether nothing of what was replaced needs to be remembered.
func Empty(h *event.PersonState) bool {
	return len(h.Imports) == 0 && len(h.Replaced) == 0 && h.Forgotten == nil
}
