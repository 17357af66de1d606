package audience

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// Facts are what is known of one person. Attributes are sorted by name;
// properties are, too.
type Facts struct {
	Attributes []event.NamedValue
	Events     []Happening // in any order; an event_id counts once
	Imports    []Membership
}

// Happening is an event of the person.
type Happening struct {
	ID         string
	Name       string
	OccurredAt time.Time
	Properties []event.NamedValue
}

// Membership is a place in one import of a segment.
type Membership struct {
	SegmentID string
	ImportID  identity.ID
}

// Evaluate reports whether the person is in the audience at the moment.
func Evaluate(n *filter.Node, f *Facts, at Moment) bool {
	switch {
	case n.All != nil:
		return !slices.ContainsFunc(n.All, func(m *filter.Node) bool { return !Evaluate(m, f, at) })
	case n.Any != nil:
		return slices.ContainsFunc(n.Any, func(m *filter.Node) bool { return Evaluate(m, f, at) })
	case n.Not != nil:
		return !Evaluate(n.Not, f, at)
	case n.Attribute != nil:
		return satisfies(f.Attributes, n.Attribute.Name, n.Attribute.Ops)
	case n.Event != nil:
		return n.Event.Count.Has(countEvents(n.Event, f, at))
	case n.Segment != "":
		return memberOf(n.Segment, f, at)
	}
	return false
}

func satisfies(values []event.NamedValue, name string, o filter.Ops) bool {
	v, ok := event.Lookup(values, name)
	exists := ok && !v.IsNull()
	if o.Exists != nil {
		return exists == *o.Exists
	}
	if !exists {
		return false
	}
	x, ok := literalOf(v)
	if !ok {
		return false
	}
	if len(o.In) > 0 && !slices.ContainsFunc(o.In, func(l filter.Value) bool { return order(x, l, func(c int) bool { return c == 0 }) }) {
		return false
	}
	return bound(x, o.Gte, func(c int) bool { return c >= 0 }) && bound(x, o.Gt, func(c int) bool { return c > 0 }) &&
		bound(x, o.Lte, func(c int) bool { return c <= 0 }) && bound(x, o.Lt, func(c int) bool { return c < 0 })
}

func bound(x filter.Value, l *filter.Value, holds func(int) bool) bool {
	return l == nil || order(x, *l, holds)
}

func order(x, l filter.Value, holds func(int) bool) bool {
	c, ok := filter.Compare(x, l)
	return ok && holds(c)
}

// literalOf turns a value into a literal; JSON compares with nothing.
func literalOf(v event.Value) (filter.Value, bool) {
	switch v.Kind() {
	case event.KindString:
		return filter.StringValue(v.Text()), true
	case event.KindInt:
		return filter.IntValue(v.Int()), true
	case event.KindFloat:
		return filter.Value{Kind: filter.Float, Float: v.Float()}, true
	case event.KindBool:
		return filter.BoolValue(v.Bool()), true
	case event.KindTime:
		return filter.TimeValue(v.Time()), true
	}
	return filter.Value{}, false
}

func countEvents(e *filter.Event, f *Facts, at Moment) int64 {
	seen := map[string]bool{}
	for i := range f.Events {
		h := &f.Events[i]
		if h.Name != e.Name || !inWindow(e, h.OccurredAt, at) {
			continue
		}
		if slices.ContainsFunc(e.Where, func(w filter.Property) bool { return !satisfies(h.Properties, w.Property, w.Ops) }) {
			continue
		}
		seen[h.ID] = true
	}
	return int64(len(seen))
}

func inWindow(e *filter.Event, t time.Time, at Moment) bool {
	if e.Within > 0 && (!t.After(at.AsOf.Add(-e.Within.Duration())) || t.After(at.AsOf)) {
		return false
	}
	return (e.Since == nil || !t.Before(*e.Since)) && (e.Until == nil || t.Before(*e.Until))
}

func memberOf(segment string, f *Facts, at Moment) bool {
	for i := range at.Segments {
		if pin := &at.Segments[i]; pin.SegmentID == segment {
			_, member := InForce(pin, func(id identity.ID) bool {
				return slices.Contains(f.Imports, Membership{SegmentID: segment, ImportID: id})
			})
			return member
		}
	}
	return false
}

// InForce returns the import that says whether a person is a member of a segment, and
// what it says: the last of those that list her. Who is in none is no member.
func InForce(pin *event.SegmentPin, lists func(identity.ID) bool) (id identity.ID, member bool) {
	for _, id := range slices.Backward(pin.ImportIDs) {
		if lists(id) {
			return id, !slices.Contains(pin.Removes, id)
		}
	}
	return identity.ID{}, false
}

// Reason is the part of a filter that decided, in words.
type Reason struct {
	Condition string // as it reads
	Saw       string // the value it found
}

// Why returns the first condition that keeps the person out, or the zero Reason
// if none does.
func Why(n *filter.Node, f *Facts, at Moment) (Reason, bool) {
	if Evaluate(n, f, at) {
		return Reason{}, false
	}
	if n.All != nil {
		for _, m := range n.All {
			if r, failed := Why(m, f, at); failed {
				return r, true
			}
		}
	}
	if len(n.Any) == 1 {
		return Why(n.Any[0], f, at)
	}
	return Reason{Condition: n.String(), Saw: saw(n, f, at)}, true
}

func saw(n *filter.Node, f *Facts, at Moment) string {
	switch {
	case n.Not != nil:
		return saw(n.Not, f, at)
	case n.Attribute != nil:
		v, ok := event.Lookup(f.Attributes, n.Attribute.Name)
		if !ok || v.IsNull() {
			return n.Attribute.Name + " is not set"
		}
		return fmt.Sprintf("%s is %s", n.Attribute.Name, quoted(v))
	case n.Event != nil:
		return fmt.Sprintf("%d events %s that count", countEvents(n.Event, f, at), n.Event.Name)
	case n.Segment != "" && memberOf(n.Segment, f, at):
		return "a member of " + n.Segment
	case n.Segment != "":
		return "not a member of " + n.Segment
	}
	// all inside not, or any: none of several; the first is as good as another.
	var parts []string
	for _, m := range append(slices.Clone(n.All), n.Any...) {
		parts = append(parts, saw(m, f, at))
	}
	return strings.Join(parts, "; ")
}

func quoted(v event.Value) string {
	if v.Kind() == event.KindString {
		return fmt.Sprintf("%q", v.Text())
	}
	return fmt.Sprintf("%s (%s)", v.String(), v.Kind())
}
