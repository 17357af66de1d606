// Package jsonl reads JSON Lines: one JSON object on each line of UTF-8 text. Empty
// lines are no rows; what is no object spoils its own line and no more.
package jsonl

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

var (
	notJSON   = &rows.Malformed{Field: -1, Reason: "the line is not JSON"}
	notObject = &rows.Malformed{Field: -1, Reason: "the line is not a JSON object"}
	tooDeep   = &rows.Malformed{Field: -1, Reason: "the object is nested deeper than 1,000 levels"}
)

const maxDepth = 1000

// Reader reads rows. It is for one goroutine.
type Reader struct {
	*rows.Text
	header []string
	root   *names
	fields []string
}

// names are the columns below one object, by key.
type names struct {
	column int // -1 if the object itself is none
	below  map[string]*names
}

// NewReader returns a reader of a text that begins at a row. columns are the keys
// that become columns, since the lines have no header; a key inside an object is
// written object.key, and where both are there, a key with a dot in it wins. The column
// without a name is the object of the line.
func NewReader(text *rows.Text, columns []string) *Reader {
	r := &Reader{Text: text, header: columns, root: &names{column: -1}}
	for i, c := range columns {
		if c == "" {
			r.root.column = i
		} else {
			r.root.add(c, i)
		}
	}
	return r
}

// add notes the column under its whole name, and under each way to cut it at a dot.
func (n *names) add(path string, column int) {
	n.child(path).column = column
	for i, c := range path {
		if c == '.' {
			n.child(path[:i]).add(path[i+1:], column)
		}
	}
}

func (n *names) child(key string) *names {
	if n.below == nil {
		n.below = map[string]*names{}
	}
	c := n.below[key]
	if c == nil {
		c = &names{column: -1}
		n.below[key] = c
	}
	return c
}

// Header returns the columns that NewReader was given. Errors: *rows.Invalid if this
// is no such text; the source's.
func (r *Reader) Header() ([]string, error) {
	start, err := r.Peek()
	if err != nil {
		return nil, err
	}
	first := bytes.TrimSpace(bytes.TrimPrefix(start, []byte("\xef\xbb\xbf")))
	switch {
	case len(start) == 0:
		return nil, &rows.Invalid{Reason: "the file is empty"}
	case len(first) > 0 && first[0] == '[':
		return nil, &rows.Invalid{Reason: "the file is one JSON array; JSON Lines have one object on each line (jq -c '.[]' makes them)"}
	case len(first) > 0 && first[0] != '{':
		return nil, &rows.Invalid{Reason: "not JSON Lines: the first line does not begin with {"}
	}
	return r.header, rows.CheckHeader(r.header)
}

// Next returns the next row. The error is io.EOF after the last one, or the
// source's, and then Offset is where the first row begins that was not returned.
func (r *Reader) Next() (rows.Row, error) {
	for {
		data, length, err := r.FirstLine()
		switch {
		case err != nil:
			return rows.Row{}, err
		case length < 0:
			return r.SkipOverlong()
		}
		line := bytes.TrimSpace(data[:length])
		row := rows.Row{Line: r.Line(), Raw: line}
		r.Pass(length, 1)
		if len(line) > 0 {
			r.parse(&row)
			return row, nil
		}
	}
}

// parse takes the object apart. Of a key that is there twice the last counts.
func (r *Reader) parse(row *rows.Row) {
	text := string(row.Raw)
	if row.Malformed = r.Check(text, nil); row.Malformed != nil {
		return
	}
	switch {
	case deep(text):
		row.Malformed = tooDeep
		return
	case !gjson.Valid(text):
		row.Malformed = notJSON
		return
	case text[0] != '{':
		row.Malformed = notObject
		return
	}
	if r.fields == nil {
		r.fields = make([]string, len(r.header))
	}
	clear(r.fields)
	if r.root.column >= 0 {
		r.fields[r.root.column] = text
	}
	if r.root.below != nil {
		r.object(gjson.Parse(text), r.root)
	}
	row.Fields = r.fields
}

// deep says whether a text is nested deeper than maxDepth. The parser recurses, and a
// line of brackets would cost it hundreds of MiB.
func deep(text string) bool {
	if strings.Count(text, "[")+strings.Count(text, "{") <= maxDepth {
		return false
	}
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

func (r *Reader) object(o gjson.Result, below *names) {
	o.ForEach(func(key, value gjson.Result) bool {
		n := below.below[key.Str]
		if n == nil {
			return true
		}
		if n.column >= 0 {
			r.fields[n.column] = valueText(value)
		}
		if n.below != nil && value.IsObject() {
			r.object(value, n)
		}
		return true
	})
}

// valueText is a value as the mapping reads it: a number as it is written, a list or
// an object as JSON without spaces.
func valueText(v gjson.Result) string {
	switch v.Type {
	case gjson.Null:
		return ""
	case gjson.String:
		return v.Str
	case gjson.JSON:
		return compact(v.Raw)
	default:
		return v.Raw
	}
}

// compact drops the spaces between values. raw is known to be JSON.
func compact(raw string) string {
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(raw)); err != nil {
		return raw
	}
	return b.String()
}
