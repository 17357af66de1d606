package definition

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
)

// maxConditions bounds the query a filter compiles to.
const maxConditions = 1000

func (d *decoder) filter(n *node, path string) *filter.Node {
	f := d.condition(n, path)
	count := 0
	f.Walk(func(*filter.Node) { count++ })
	if count > maxConditions {
		d.meaningError(n, path, fmt.Sprintf("%d conditions; a filter has at most %d", count, maxConditions), "")
	}
	return f
}

func (d *decoder) condition(n *node, path string) *filter.Node {
	f := &filter.Node{}
	words := []string{"all", "any", "not", "attribute", "event", "segment"}
	if n.shape != object || len(n.fields) == 0 {
		d.shapeError(n, path, found(n), "one condition: "+oneOf(words))
		return f
	}
	d.object(n, path,
		field{"all", false, func(n *node, p string) { f.All = d.conditions(n, p) }},
		field{"any", false, func(n *node, p string) { f.Any = d.conditions(n, p) }},
		field{"not", false, func(n *node, p string) { f.Not = d.condition(n, p) }},
		field{"attribute", false, func(n *node, p string) { f.Attribute = d.attribute(n, p) }},
		field{"event", false, func(n *node, p string) { f.Event = d.event(n, p) }},
		field{"segment", false, func(n *node, p string) { d.reference(n, p, KindSegment, &f.Segment) }},
	)
	if len(n.fields) > 1 {
		second := n.fields[1]
		d.shapeError(&node{line: second.line, column: second.column}, path,
			fmt.Sprintf("%s and %s in one condition", n.fields[0].key, second.key), "one condition; join several in a list under all or any")
	}
	return f
}

func (d *decoder) conditions(n *node, path string) []*filter.Node {
	if n.shape != list {
		d.shapeError(n, path, found(n), "a list of conditions")
		return nil
	}
	if len(n.items) == 0 {
		d.shapeError(n, path, "an empty list", "at least one condition")
		return nil
	}
	out := make([]*filter.Node, len(n.items))
	for i, item := range n.items {
		out[i] = d.condition(item, path+"["+strconv.Itoa(i)+"]")
	}
	return out
}

func (d *decoder) attribute(n *node, path string) *filter.Attribute {
	a := &filter.Attribute{}
	fields := []field{{"name", true, func(n *node, p string) { d.text(n, p, &a.Name) }}}
	d.ops(n, path, &a.Ops, fields)
	return a
}

// ops reads a map with some fields of its own and comparisons, and refuses comparisons that nothing can satisfy.
func (d *decoder) ops(n *node, path string, o *filter.Ops, own []field) {
	before := len(d.errs)
	bound := func(into **filter.Value) func(*node, string) {
		return func(n *node, p string) { *into = d.literal(n, p) }
	}
	eq := false
	ok := d.object(n, path, append(own,
		field{"eq", false, func(n *node, p string) {
			eq = true
			if v := d.literal(n, p); v != nil {
				o.In = append(o.In, *v)
			}
		}},
		field{"in", false, func(n *node, p string) {
			if n.shape != list {
				d.shapeError(n, p, found(n), "a list, such as [gold, platinum]")
				return
			}
			if eq {
				d.shapeError(n, p, "eq and in together", "one of them")
				return
			}
			o.In = []filter.Value{}
			for i, item := range n.items {
				if v := d.literal(item, p+"["+strconv.Itoa(i)+"]"); v != nil {
					o.In = append(o.In, *v)
				}
			}
		}},
		field{"gte", false, bound(&o.Gte)},
		field{"gt", false, bound(&o.Gt)},
		field{"lte", false, bound(&o.Lte)},
		field{"lt", false, bound(&o.Lt)},
		field{"exists", false, func(n *node, p string) {
			o.Exists = new(bool)
			d.bool(n, p, o.Exists)
		}},
	)...)
	if ok && len(d.errs) == before {
		if n.field("eq") != nil && n.field("in") != nil {
			d.shapeError(n, path, "eq and in together", "one of them")
		} else if p := o.Check(); p != nil {
			d.problem(n, path, p)
		}
	}
	o.Normalise()
}

// problem puts what package filter says at the field it means.
func (d *decoder) problem(n *node, path string, p *filter.Problem) {
	at := n
	if p.Field != "" {
		path = join(path, p.Field)
		if f := n.field(p.Field); f != nil {
			at = f
		}
	}
	e := d.meaningError(at, path, p.Message, "")
	e.meaning = p.Values
}

func (d *decoder) literal(n *node, path string) *filter.Value {
	var v filter.Value
	switch n.shape {
	case text:
		if !utf8.ValidString(n.text) || strings.ContainsRune(n.text, 0) {
			d.meaningError(n, path, "holds bytes that are not UTF-8 text", "")
			return nil
		}
		if !n.quoted && instantPattern.MatchString(n.text) {
			d.meaningError(n, path, fmt.Sprintf("%s is text here, and never equals or exceeds a time", n.text),
				fmt.Sprintf("{time: %s} for an instant, or quotes around it for text", n.text))
			return nil
		}
		v = filter.StringValue(n.text)
	case integer:
		v = filter.IntValue(n.int)
	case float:
		v = filter.FloatValue(n.float)
	case boolean:
		v = filter.BoolValue(n.bool)
	case object:
		ok := false
		d.object(n, path, field{"time", true, func(n *node, p string) {
			var t time.Time
			if t, ok = d.instant(n, p); ok {
				v = filter.TimeValue(t)
			}
		}})
		if !ok {
			return nil
		}
	default:
		d.shapeError(n, path, found(n), "a string, a number, a boolean or {time: 2011-06-01}")
		return nil
	}
	return &v
}

func (d *decoder) event(n *node, path string) *filter.Event {
	e := &filter.Event{Count: filter.Count{Gte: 1}}
	ok := d.object(n, path,
		field{"name", true, func(n *node, p string) { d.text(n, p, &e.Name) }},
		field{"count", false, func(n *node, p string) { e.Count = d.count(n, p) }},
		field{"within", false, func(n *node, p string) { d.duration(n, p, &e.Within) }},
		field{"since", false, func(n *node, p string) {
			if t, ok := d.instant(n, p); ok {
				e.Since = &t
			}
		}},
		field{"until", false, func(n *node, p string) {
			if t, ok := d.instant(n, p); ok {
				e.Until = &t
			}
		}},
		field{"where", false, func(n *node, p string) {
			if n.shape != list || len(n.items) == 0 {
				d.shapeError(n, p, found(n), "a list of {property: NAME, …}")
				return
			}
			for i, item := range n.items {
				w := filter.Property{}
				d.ops(item, p+"["+strconv.Itoa(i)+"]", &w.Ops, []field{{"property", true, func(n *node, p string) { d.text(n, p, &w.Property) }}})
				e.Where = append(e.Where, w)
			}
		}},
	)
	if !ok {
		return e
	}
	if within := n.field("within"); within != nil && (e.Since != nil || e.Until != nil) {
		d.shapeError(within, path+".within", "within and since or until are two windows", "one of them")
	}
	if e.Since != nil && e.Until != nil && !e.Since.Before(*e.Until) {
		d.meaningError(n.field("until"), path+".until", fmt.Sprintf("no time is both since %s and until %s", filter.FormatTime(*e.Since), filter.FormatTime(*e.Until)), "")
	}
	return e
}

func (d *decoder) count(n *node, path string) filter.Count {
	var b filter.CountBounds
	before := len(d.errs)
	bound := func(into **int64) func(*node, string) {
		return func(n *node, p string) {
			if n.shape != integer {
				d.shapeError(n, p, found(n), "a whole number")
				return
			}
			*into = &n.int
		}
	}
	ok := d.object(n, path,
		field{"eq", false, bound(&b.Eq)},
		field{"gte", false, bound(&b.Gte)},
		field{"gt", false, bound(&b.Gt)},
		field{"lte", false, bound(&b.Lte)},
		field{"lt", false, bound(&b.Lt)},
	)
	if !ok || len(d.errs) > before {
		return filter.Count{Gte: 1}
	}
	c, p := b.Count()
	if p != nil {
		d.problem(n, path, p)
	}
	return c
}
