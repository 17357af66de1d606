package profile

import (
	"math/bits"
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
// the person known is undone and the others' set_at are not in order of arrival. Who
// set an address may be another, of the same address and moment, where the undone
// import said another address of that moment after the first of the two.
//
// Most imports are the list of every night, which says what it said before. So
// the layers that imports one after the other set to one value are one entry, with
// a bit for each import.

// Kinds of fields, as in event.Replaced.
const (
	attributeField int32 = iota
	addressField
	consentField
	localeField
	timeZoneField
	accountIDField
)

// field is one field of a profile; the name is that of an attribute or a channel.
type field struct {
	kind int32
	name string
}

func (f field) compare(g field) int {
	if f.kind != g.kind {
		return int(f.kind - g.kind)
	}
	return strings.Compare(f.name, g.name)
}

// layer is a value of a field, and who set it when.
type layer struct {
	field
	value event.Value
	at    time.Time // zero where nothing shows it
	setBy string
}

// retain is how long an import can be undone: whom it touched is known from
// profile-updates.
var retain = func() time.Duration {
	t, _ := topic.ByName(topic.ProfileUpdates)
	return t.Retain
}()

func isImport(setBy string) bool { return strings.HasPrefix(setBy, "import:") }

func ofAttribute(a *event.Attribute) layer {
	return layer{field{attributeField, a.Name}, a.Value, a.SetAt, a.SetBy}
}

func ofAddress(a *event.Address) layer {
	return layer{field{addressField, a.Channel}, event.String(a.Address), a.OccurredAt, a.SetBy}
}

func ofConsent(c *event.Consent) layer {
	return layer{field{consentField, c.Channel}, event.String(c.Consent), c.OccurredAt, c.SetBy}
}

// word is one of the fields that are single texts.
type word struct {
	kind         int32
	value, setBy *string
	next         *string // what a patch sets, if it does
}

func words(p *event.Profile, patch *event.ProfilePatch) [3]word {
	return [3]word{
		{localeField, &p.Locale, &p.LocaleSetBy, patch.Locale},
		{timeZoneField, &p.TimeZone, &p.TimeZoneSetBy, patch.TimeZone},
		{accountIDField, &p.AccountID, &p.AccountIDSetBy, patch.AccountID},
	}
}

// layer is what is in force, if anything is.
func (w *word) layer() (layer, bool) {
	return layer{field: field{kind: w.kind}, value: event.String(*w.value), setBy: *w.setBy}, *w.value != "" || *w.setBy != ""
}

// inForce returns the value of every field.
func inForce(p *event.Profile) []layer {
	out := make([]layer, 0, len(p.Attributes)+len(p.Addresses)+len(p.Consents)+3)
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
		if l, ok := w.layer(); ok {
			out = append(out, l)
		}
	}
	return out
}

// writerOf returns who set the value of a field that is in force; empty if none is.
func writerOf(p *event.Profile, f field) string {
	switch f.kind {
	case attributeField:
		if i, found := slices.BinarySearchFunc(p.Attributes, f.name, byName); found {
			return p.Attributes[i].SetBy
		}
	case addressField:
		for i := range p.Addresses {
			if p.Addresses[i].Channel == f.name {
				return p.Addresses[i].SetBy
			}
		}
	case consentField:
		for i := range p.Consents {
			if p.Consents[i].Channel == f.name {
				return p.Consents[i].SetBy
			}
		}
	case localeField:
		return p.LocaleSetBy
	case timeZoneField:
		return p.TimeZoneSetBy
	case accountIDField:
		return p.AccountIDSetBy
	}
	return ""
}

// put sets a field that is there to what was beneath its value; remove removes it.
func put(p *event.Profile, l layer, remove bool) {
	switch l.kind {
	case attributeField:
		i := slices.IndexFunc(p.Attributes, func(a event.Attribute) bool { return a.Name == l.name })
		if remove {
			p.Attributes = slices.Delete(p.Attributes, i, i+1)
		} else {
			p.Attributes[i] = event.Attribute{Name: l.name, Value: l.value, SetAt: l.at, SetBy: l.setBy}
		}
	case addressField:
		i := slices.IndexFunc(p.Addresses, func(a event.Address) bool { return a.Channel == l.name })
		if remove {
			p.Addresses = slices.Delete(p.Addresses, i, i+1)
		} else {
			p.Addresses[i] = event.Address{Channel: l.name, Address: l.value.Text(), OccurredAt: l.at, SetBy: l.setBy}
		}
	case consentField:
		i := slices.IndexFunc(p.Consents, func(c event.Consent) bool { return c.Channel == l.name })
		if remove {
			p.Consents = slices.Delete(p.Consents, i, i+1)
		} else {
			p.Consents[i] = event.Consent{Channel: l.name, Consent: l.value.Text(), OccurredAt: l.at, SetBy: l.setBy}
		}
	default:
		w := words(p, &event.ProfilePatch{})[l.kind-localeField]
		*w.value, *w.setBy = "", ""
		if !remove {
			*w.value, *w.setBy = l.value.Text(), l.setBy
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
	var before event.PersonState
	if !c.touched {
		before.Imports, before.Replaced = slices.Clone(h.Imports), slices.Clone(h.Replaced)
	}
	if p.CreatedBy != "" && !undoable(h, p.CreatedBy) {
		// Until another one changes the person, the profile says it: it is the first here.
		h.Imports = append(h.Imports, event.ImportOfPerson{SetBy: p.CreatedBy, SetAt: p.CreatedAt})
	}
	inTime := isImport(patch.SetBy) && (h.Forgotten == nil || patch.SetAt.After(*h.Forgotten))
	if inTime && !undoable(h, patch.SetBy) {
		h.Imports = append(h.Imports, event.ImportOfPerson{SetBy: patch.SetBy, SetAt: patch.SetAt})
	}
	h.Replaced = slices.Grow(h.Replaced, len(c.moves))
	for i := range c.moves {
		switch m := &c.moves[i]; m.what {
		case replaced:
			lay(h, &m.layer)
		case lost:
			sink(h, &m.layer)
		} // what is beneath a settled value is pruned
	}
	prune(p, h)
	if !c.touched && same(before.Replaced, h.Replaced) {
		h.Imports, h.Replaced = before.Imports, before.Replaced
		return false
	}
	// What changed only the layers beneath is a change of the profile, too: undos
	// count on updated_at being the latest of those that are kept.
	if patch.SetAt.After(p.UpdatedAt) {
		p.UpdatedAt, c.Changed = patch.SetAt, true
	}
	if !inTime {
		settle(p, patch.SetAt)
		c.Changed = true
	}
	newest := patch.SetAt
	if p.UpdatedAt.After(newest) {
		newest = p.UpdatedAt
	}
	for i := oldest(h); i >= 0 && (newest.Sub(h.Imports[i].SetAt) > retain || tooMany(h)); i = oldest(h) {
		forget(p, h, i)
		c.Changed = true
	}
	return true
}

// importOf is the index of an import among those of a person, -1 if it is none.
func importOf(h *event.PersonState, setBy string) int {
	for i := len(h.Imports) - 1; i >= 0; i-- {
		if h.Imports[i].SetBy == setBy {
			return i
		}
	}
	return -1
}

func undoable(h *event.PersonState, setBy string) bool {
	i := importOf(h, setBy)
	return i >= 0 && !h.Imports[i].Forgotten
}

// first is the index of the first import that can be undone, -1 if there is none.
func first(h *event.PersonState) int {
	return slices.IndexFunc(h.Imports, func(i event.ImportOfPerson) bool { return !i.Forgotten })
}

func same(a, b []event.Replaced) bool {
	return slices.EqualFunc(a, b, func(x, y event.Replaced) bool {
		return fieldOf(&x) == fieldOf(&y) && x.Value.Equal(y.Value) && sameTime(x.At, y.At) && x.Imports == y.Imports && x.SetBy == y.SetBy
	})
}

func sameTime(a, b *time.Time) bool { return a == b || a != nil && b != nil && a.Equal(*b) }

func fieldOf(r *event.Replaced) field { return field{r.Kind, r.Name} }

// under returns where in h.Replaced the layers of a field are.
func under(h *event.PersonState, f field) (from, to int) {
	from, _ = slices.BinarySearchFunc(h.Replaced, f, func(r event.Replaced, f field) int { return fieldOf(&r).compare(f) })
	for to = from; to < len(h.Replaced) && fieldOf(&h.Replaced[to]) == f; to++ {
	}
	return from, to
}

// record is a layer as it is kept.
func record(h *event.PersonState, l *layer) event.Replaced {
	r := event.Replaced{Kind: l.kind, Name: l.name, Value: l.value}
	i := importOf(h, l.setBy)
	if i >= 0 {
		r.Imports = 1 << i
	} else {
		r.SetBy = l.setBy
	}
	if !l.at.IsZero() && (i < 0 || !l.at.Equal(h.Imports[i].SetAt)) {
		at := l.at
		r.At = &at
	}
	return r
}

// join makes one of two layers of which the second lies over the first, if it is
// the same value of imports and their order is told by that of the imports: the
// later over the earlier or, of addresses and consents of one moment, of which the
// first that came stays, the earlier over the later.
func join(beneath, over *event.Replaced) bool {
	if fieldOf(beneath) != fieldOf(over) || beneath.Imports == 0 || over.Imports == 0 || !sameTime(beneath.At, over.At) || !beneath.Value.Equal(over.Value) {
		return false
	}
	low, high := uint64(beneath.Imports), uint64(over.Imports)
	if beneath.At != nil {
		low, high = high, low
	}
	if bits.Len64(low) > bits.TrailingZeros64(high) {
		return false
	}
	beneath.Imports |= over.Imports
	return true
}

// lay lays what was in force over what is beneath it.
func lay(h *event.PersonState, l *layer) {
	_, to := under(h, l.field)
	r := record(h, l)
	if to == 0 || !join(&h.Replaced[to-1], &r) {
		h.Replaced = slices.Insert(h.Replaced, to, r)
	}
}

// sink lays an address or a consent that lost over those that it wins against.
func sink(h *event.PersonState, l *layer) {
	from, to := under(h, l.field)
	layers := layersOf(h, h.Replaced[from:to])
	at := 0
	for i := range layers {
		if wins(l, &layers[i]) {
			at = i + 1
		}
	}
	layers = slices.Insert(layers, at, *l)
	h.Replaced = slices.Delete(h.Replaced, from, to)
	for i := range layers {
		lay(h, &layers[i])
	}
}

// layersOf returns one layer for each writer, the lowest first.
func layersOf(h *event.PersonState, list []event.Replaced) (out []layer) {
	for i := range list {
		r := &list[i]
		if r.Imports == 0 {
			out = append(out, layerOf(h, r, -1))
		}
		from := len(out)
		for set := uint64(r.Imports); set != 0; set &= set - 1 {
			out = append(out, layerOf(h, r, bits.TrailingZeros64(set)))
		}
		if r.At != nil {
			slices.Reverse(out[from:])
		}
	}
	return out
}

// layerOf returns the layer of one import, or if it is -1 that of another writer.
func layerOf(h *event.PersonState, r *event.Replaced, by int) layer {
	l := layer{field: fieldOf(r), value: r.Value, setBy: r.SetBy}
	if by >= 0 {
		l.setBy = h.Imports[by].SetBy
	}
	switch {
	case r.At != nil:
		l.at = *r.At
	case by >= 0 && l.kind <= consentField:
		l.at = h.Imports[by].SetAt
	}
	return l
}

// prune drops the layers that no undo brings to the top, and the forgotten imports
// of which there are none.
func prune(p *event.Profile, h *event.PersonState) {
	var forgotten, kept uint64
	for i := range h.Imports {
		if h.Imports[i].Forgotten {
			forgotten |= 1 << i
		}
	}
	for to := len(h.Replaced); to > 0; {
		f := fieldOf(&h.Replaced[to-1])
		over, hidden := uint64(0), true // the imports over a layer; whether nothing more is to be kept
		if i := importOf(h, writerOf(p, f)); i >= 0 && !h.Imports[i].Forgotten {
			over, hidden = 1<<i, false
		}
		for ; to > 0 && fieldOf(&h.Replaced[to-1]) == f; to-- {
			r := &h.Replaced[to-1]
			set := uint64(r.Imports) &^ over
			switch stay := set & forgotten; {
			case hidden:
				set = 0
			case r.Imports == 0:
				hidden = true
				continue
			case stay != 0 && r.At == nil: // what is beneath the highest of these goes
				set, hidden = set&^(1<<(bits.Len64(stay)-1)-1), true
			case stay != 0:
				set, hidden = set&(stay&-stay<<1-1), true
			}
			only(r, set)
			over |= set
		}
		kept |= over
	}
	h.Replaced = slices.DeleteFunc(h.Replaced, isDropped)
	for i := len(h.Imports) - 1; i >= 0; i-- {
		if h.Imports[i].Forgotten && kept>>i&1 == 0 {
			remove(h, i)
		}
	}
}

// dropped is the kind of what is about to be dropped.
const dropped int32 = -1

func isDropped(r event.Replaced) bool { return r.Kind == dropped }

// only leaves of a value the layers of these imports.
func only(r *event.Replaced, set uint64) {
	if r.Imports = int64(set); set == 0 {
		r.Kind = dropped
	}
}

// remove drops an import of which there is no layer.
func remove(h *event.PersonState, i int) {
	h.Imports = slices.Delete(h.Imports, i, i+1)
	for j := range h.Replaced {
		set := uint64(h.Replaced[j].Imports)
		h.Replaced[j].Imports = int64(set&(1<<i-1) | set>>(i+1)<<i)
	}
}

// oldest is the index of the import with the least set_at of those that can be
// undone, -1 if there is none.
func oldest(h *event.PersonState) int {
	at := -1
	for i := range h.Imports {
		if !h.Imports[i].Forgotten && (at < 0 || h.Imports[i].SetAt.Before(h.Imports[at].SetAt)) {
			at = i
		}
	}
	return at
}

// rememberImports is how many imports of a person can be undone.
const rememberImports = 16

// tooMany reports whether there are more imports than are remembered, than have
// a bit (two are added at a time), or whether they take more bytes than a record may.
func tooMany(h *event.PersonState) bool {
	n, bytes := 0, 0
	for i := range h.Imports {
		if !h.Imports[i].Forgotten {
			n++
		}
		bytes += 16 + len(h.Imports[i].SetBy)
	}
	for i := range h.Replaced {
		r := &h.Replaced[i]
		bytes += 48 + len(r.Name) + len(r.Value.Text()) + len(r.SetBy)
	}
	return n > rememberImports || len(h.Imports) > 60 || bytes > MaxBytes
}

// forget makes of an import one that can no longer be undone.
func forget(p *event.Profile, h *event.PersonState, i int) {
	gone := h.Imports[i]
	h.Imports[i].Forgotten = true
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
	set := func(l layer) bool { return l.setBy == by }
	if p.Deleted || !undoable(h, by) && p.CreatedBy != by {
		return Undone{Forgotten: slices.ContainsFunc(inForce(p), set) || slices.ContainsFunc(layersOf(h, h.Replaced), set)}
	}
	at := importOf(h, by)
	if at >= 0 {
		for i := range h.Replaced {
			if r := &h.Replaced[i]; r.Imports != 0 {
				only(r, uint64(r.Imports)&^(1<<at))
			}
		}
		h.Replaced = slices.DeleteFunc(h.Replaced, isDropped)
	}
	for _, l := range inForce(p) {
		if !set(l) {
			continue
		}
		from, to := under(h, l.field)
		beneath := layersOf(h, h.Replaced[from:to])
		if len(beneath) == 0 {
			put(p, l, true)
		} else {
			put(p, beneath[len(beneath)-1], false)
		}
	}
	if at >= 0 {
		remove(h, at)
	}
	// What is in force now is among the layers yet, under its own writer.
	prune(p, h)

	earliest := first(h)
	switch {
	case p.CreatedBy != by:
	case earliest < 0 && p.SettledFrom == nil:
		*p = event.Profile{UserID: p.UserID, Revision: p.Revision, CreatedAt: p.CreatedAt, UpdatedAt: p.UpdatedAt, Deleted: true}
		return Undone{Changed: true}
	case earliest < 0 || p.SettledFrom != nil && p.SettledFrom.Before(h.Imports[earliest].SetAt):
		p.CreatedBy, p.CreatedAt = "", *p.SettledFrom
	default:
		p.CreatedBy, p.CreatedAt = h.Imports[earliest].SetBy, h.Imports[earliest].SetAt
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
