package definition

import (
	"fmt"
	"net/mail"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // whether a zone exists must not depend on the machine
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
)

type decoder struct {
	file     string
	options  Options
	errs     Errors
	mentions []mention
	strict   bool // of the template being read
}

// shapeError reports something the JSON Schema refuses too; meaningError something only reading can tell.
func (d *decoder) shapeError(n *node, field, message, expected string) *Error {
	e := &Error{File: d.file, Line: n.line, Column: n.column, Field: field, Message: message, Expected: expected}
	d.errs = append(d.errs, e)
	return e
}

func (d *decoder) meaningError(n *node, field, message, expected string) *Error {
	e := d.shapeError(n, field, message, expected)
	e.meaning = true
	return e
}

// field is a key of a map: how to read its value, and whether it must be there.
type field struct {
	key      string
	required bool
	read     func(n *node, path string)
}

// object reads a map with exactly these fields.
func (d *decoder) object(n *node, path string, fields ...field) bool {
	if n.shape != object {
		keys := make([]string, len(fields))
		for i, f := range fields {
			keys[i] = f.key
		}
		d.shapeError(n, path, found(n), "a map with "+oneOf(keys))
		return false
	}
	var names []string
	for _, f := range fields {
		names = append(names, f.key)
	}
	for _, e := range n.fields {
		at := &node{line: e.line, column: e.column}
		known := false
		for _, f := range fields {
			if f.key != e.key {
				continue
			}
			known = true
			if e.value.shape == null {
				d.shapeError(at, join(path, e.key), "nothing is written here", "a value, or no "+e.key)
			} else if f.read != nil {
				f.read(e.value, join(path, e.key))
			}
		}
		if !known {
			err := d.shapeError(at, join(path, e.key), fmt.Sprintf("unknown field %q", e.key), oneOf(names))
			err.Suggestion = nearest(e.key, names)
		}
	}
	for _, f := range fields {
		if f.required && n.field(f.key) == nil {
			d.shapeError(n, join(path, f.key), "is missing", "")
		}
	}
	return true
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// found says what was found instead.
func found(n *node) string {
	switch n.shape {
	case text:
		s := n.text
		if len(s) > 40 {
			s = strings.ToValidUTF8(s[:40], "") + "…"
		}
		return fmt.Sprintf("%q is text", s)
	case integer:
		return fmt.Sprintf("%d is a number", n.int)
	case float:
		return fmt.Sprintf("%v is a number", n.float)
	case boolean:
		return fmt.Sprintf("%t is a boolean", n.bool)
	case null:
		return "nothing is written here"
	}
	return n.shape.String()
}

func (d *decoder) text(n *node, path string, into *string) bool {
	if n.shape != text {
		expected := "text"
		if n.shape == integer || n.shape == float || n.shape == boolean {
			expected = "text; put it in quotes"
		}
		d.shapeError(n, path, found(n), expected)
		return false
	}
	if n.text == "" {
		d.shapeError(n, path, "is empty", "text")
		return false
	}
	if !utf8.ValidString(n.text) || strings.ContainsRune(n.text, 0) {
		d.meaningError(n, path, "holds bytes that are not UTF-8 text", "")
		return false
	}
	*into = n.text
	return true
}

func (d *decoder) bool(n *node, path string, into *bool) {
	if n.shape != boolean {
		d.shapeError(n, path, found(n), "true or false")
		return
	}
	*into = n.bool
}

func (d *decoder) word(n *node, path string, into *string, words ...string) {
	if !d.text(n, path, into) {
		return
	}
	for _, w := range words {
		if w == *into {
			return
		}
	}
	d.shapeError(n, path, fmt.Sprintf("unknown value %q", *into), oneOf(words)).Suggestion = nearest(*into, words)
}

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// IsID says whether a text can be the id of a definition, or of a segment.
func IsID(text string) bool { return idPattern.MatchString(text) }

func (d *decoder) id(n *node, path string, into *string) bool {
	if !d.text(n, path, into) {
		return false
	}
	if !IsID(*into) {
		d.shapeError(n, path, fmt.Sprintf("%q is not an id", *into), "1 to 63 of a-z, 0-9 and -, not beginning with -")
		return false
	}
	return true
}

// reference reads the id of another definition and remembers it for Validate.
func (d *decoder) reference(n *node, path, kind string, into *string) {
	if d.id(n, path, into) {
		d.mentions = append(d.mentions, mention{Ref{kind, *into}, path, n.line, n.column})
	}
}

func (d *decoder) duration(n *node, path string, into *Duration) {
	const expected = "a whole number and a unit, such as 90s, 30m, 12h, 3d or 2w"
	if n.shape != text {
		d.shapeError(n, path, found(n), expected)
		return
	}
	v, err := filter.ParseDuration(n.text)
	if err != nil {
		if regexp.MustCompile(filter.DurationPattern).MatchString(n.text) {
			d.meaningError(n, path, err.Error(), "")
		} else {
			d.shapeError(n, path, err.Error(), expected)
		}
		return
	}
	*into = v
}

func (d *decoder) instant(n *node, path string) (t time.Time, ok bool) {
	const expected = "a date such as 2011-06-01 (UTC midnight) or a time with a zone such as 2011-06-01T09:00:00+09:00"
	if n.shape != text {
		d.shapeError(n, path, found(n), expected)
		return t, false
	}
	if !instantPattern.MatchString(n.text) {
		d.shapeError(n, path, fmt.Sprintf("%q is not an instant", n.text), expected)
		return t, false
	}
	t, err := filter.ParseTime(n.text)
	if err != nil {
		d.meaningError(n, path, fmt.Sprintf("%q is not in the calendar", n.text), expected)
		return t, false
	}
	return t, true
}

var (
	instantPattern = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2}))?$`)
	timePattern    = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$`)
	addressPattern = regexp.MustCompile(`^[^@\s<>]+@[^@\s<>]+$`)
)

func (d *decoder) address(n *node, path string, into *string) {
	if !d.text(n, path, into) {
		return
	}
	const expected = "an address such as hello@example.test"
	if !addressPattern.MatchString(*into) {
		d.shapeError(n, path, fmt.Sprintf("%q is not an e-mail address", *into), expected)
	} else if a, err := mail.ParseAddress(*into); err != nil || a.Address != *into {
		d.meaningError(n, path, fmt.Sprintf("%q is not an e-mail address", *into), expected)
	}
}
