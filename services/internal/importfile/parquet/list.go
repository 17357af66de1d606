package parquet

import "github.com/hikyaku/hikyaku/services/internal/importfile/rows"

// list reads a column that is a list, map or other repetition, as JSON.
func (r *Reader) list(c *column) error {
	for _, i := range c.leaves {
		r.leaves[i].begun = false
	}
	// A column that is null is empty, not null.
	first := r.leaves[c.leaves[0]]
	if err := r.peek(first); err != nil {
		return err
	}
	outer := c.node.def
	if c.node.repeated {
		outer-- // no item is an empty list, not null
	}
	read := r.json
	if first.def < outer {
		read = r.drop
	}
	if err := read(c.node); err != nil {
		return err
	}
	for _, i := range c.leaves {
		l := r.leaves[i]
		more, err := r.more(l)
		if err != nil {
			return err
		}
		if more || !l.begun {
			return r.misfit(l)
		}
	}
	return nil
}

// drop passes the one value that each leaf has of something that is null or empty.
func (r *Reader) drop(n *node) error {
	if n.leaf >= 0 {
		l := r.leaves[n.leaf]
		_, err := r.value(l)
		if err == nil && l.def == n.def {
			err = r.misfit(l)
		}
		return err
	}
	for _, c := range n.children {
		if err := r.drop(c); err != nil {
			return err
		}
	}
	return nil
}

// isThere says whether the next value of the first leaf in n is of an n that is
// there: not null, and not of an empty list.
func (r *Reader) isThere(n *node) (bool, error) {
	l := r.first(n)
	err := r.peek(l)
	return l.def >= n.def, err
}

func (r *Reader) first(n *node) *leaf {
	for n.leaf < 0 {
		n = n.children[0]
	}
	return r.leaves[n.leaf]
}

// json reads a field, or all its repetitions.
func (r *Reader) json(n *node) error {
	if n.repeated {
		return r.items(n, '[', ']', r.inside)
	}
	if n.optional {
		there, err := r.isThere(n)
		if err != nil {
			return err
		}
		if !there {
			r.Keep([]byte("null"))
			return r.drop(n)
		}
	}
	return r.inside(n)
}

// inside reads what a field has that is there.
func (r *Reader) inside(n *node) error {
	switch {
	case n.leaf >= 0:
		return r.quoted(n, n.isBare())
	case n.dict:
		return r.items(n.children[0], '{', '}', func(entry *node) error {
			if err := r.quoted(entry.children[0], false); err != nil {
				return err
			}
			r.Put(':')
			return r.json(entry.children[1])
		})
	case n.list:
		return r.items(n.children[0], '[', ']', func(item *node) error {
			// In old files the repetition may itself be the item.
			if len(item.children) == 1 && item.name != "array" && item.name != n.name+"_tuple" {
				return r.json(item.children[0])
			}
			return r.inside(item)
		})
	}
	r.Put('{')
	for i, c := range n.children {
		if i > 0 {
			r.Put(',')
		}
		r.Quote([]byte(c.name))
		r.Put(':')
		if err := r.json(c); err != nil {
			return err
		}
	}
	r.Put('}')
	return nil
}

// items reads the repetitions of n.
func (r *Reader) items(n *node, opening, closing byte, item func(*node) error) error {
	r.Put(opening)
	there, err := r.isThere(n)
	if err != nil {
		return err
	}
	if !there {
		r.Put(closing)
		return r.drop(n)
	}
	first := r.first(n)
	for {
		if err := item(n); err != nil {
			return err
		}
		if more, err := r.more(first); err != nil {
			return err
		} else if !more || first.rep != n.rep {
			break
		}
		r.Put(',')
	}
	r.Put(closing)
	return nil
}

// quoted reads a value as JSON: as a string unless it is bare.
func (r *Reader) quoted(n *node, bare bool) error {
	l := r.leaves[n.leaf]
	v, err := r.value(l)
	if err != nil {
		return err
	}
	if l.def < n.def {
		return r.misfit(l)
	}
	before := len(r.Text)
	switch {
	case r.Over():
	case l.logical == text:
		r.Quote(v)
	case l.logical == decimal && len(v) > maxDecimalBytes:
		return invalid("column %.50q has a decimal of more than %d bytes", n.name, maxDecimalBytes)
	default:
		r.text(l, v)
		if s := r.Text[before:]; !bare && !(isFloat(n) && s[len(s)-1] <= '9') {
			r.Text = rows.AppendString(r.Text[:before], string(s))
		}
	}
	return nil
}

func isFloat(n *node) bool { return n.logical == float || n.logical == double || n.logical == float16 }
