package definition

import (
	"errors"
	"fmt"
	"math"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// shape is what a YAML node is.
type shape uint8

const (
	null shape = iota
	text
	integer
	float
	boolean
	list
	object
)

// String names a shape as an error message does.
func (s shape) String() string {
	return [...]string{"nothing", "text", "a whole number", "a number", "a boolean", "a list", "a map"}[s]
}

// node is a YAML value with its place. Exactly what JSON could say, nothing more.
type node struct {
	shape  shape
	text   string
	int    int64
	float  float64
	bool   bool
	items  []*node
	fields []entry
	line   int  // from 1
	column int  // from 1
	block  bool // a block scalar: its text begins on the line after line
	quoted bool
}

type entry struct {
	key          string
	line, column int
	value        *node
}

// What a document may be at most; a definition is written by hand.
const (
	maxFileBytes = 4 << 20
	maxDepth     = 60
)

// parseYAML reads the documents of one file. Empty documents are skipped.
func parseYAML(file string, src []byte) (docs []*node, err *Error) {
	defer func() {
		// The parser is not ours, and its input is anybody's.
		if r := recover(); r != nil {
			docs, err = nil, &Error{File: file, Line: 1, Message: "cannot be read as YAML"}
		}
	}()
	if len(src) > maxFileBytes {
		return nil, &Error{File: file, Message: fmt.Sprintf("%d bytes; a file of definitions has at most %d", len(src), maxFileBytes)}
	}
	parsed, perr := parser.ParseBytes(src, 0)
	if perr != nil {
		e := &Error{File: file, Line: 1, Message: perr.Error()}
		var located yaml.Error
		if errors.As(perr, &located) {
			e.Message = located.GetMessage()
			if t := located.GetToken(); t != nil && t.Position != nil {
				e.Line, e.Column = t.Position.Line, t.Position.Column
			}
		}
		e.Message = "not YAML: " + e.Message
		return nil, e
	}
	for _, d := range parsed.Docs {
		if d == nil || d.Body == nil || d.Body.Type() == ast.NullType || d.Body.Type() == ast.CommentType {
			continue
		}
		n, e := convert(d.Body, 0)
		if e != nil {
			e.File = file
			return nil, e
		}
		docs = append(docs, n)
	}
	return docs, nil
}

func convert(y ast.Node, depth int) (*node, *Error) {
	n := &node{}
	if y == nil {
		return n, nil
	}
	if t := y.GetToken(); t != nil && t.Position != nil {
		n.line, n.column = t.Position.Line, t.Position.Column
	}
	fail := func(message string) (*node, *Error) {
		return nil, &Error{Line: n.line, Column: n.column, Message: message}
	}
	if depth > maxDepth {
		return fail(fmt.Sprintf("nested more than %d deep", maxDepth))
	}
	var pairs []*ast.MappingValueNode
	switch y := y.(type) {
	case *ast.NullNode:
	case *ast.StringNode:
		n.shape, n.text = text, y.Value
		n.quoted = y.Token != nil && (y.Token.Type == token.DoubleQuoteType || y.Token.Type == token.SingleQuoteType)
	case *ast.LiteralNode:
		n.shape, n.block = text, true
		if y.Value != nil {
			n.text = y.Value.Value
		}
	case *ast.BoolNode:
		n.shape, n.bool = boolean, y.Value
	case *ast.IntegerNode:
		v, ok := y.Value.(int64)
		if u, unsigned := y.Value.(uint64); unsigned && u <= math.MaxInt64 {
			v, ok = int64(u), true
		}
		if !ok {
			return fail("a whole number beyond 64 bits")
		}
		n.shape, n.int = integer, v
	case *ast.FloatNode:
		if math.IsInf(y.Value, 0) || math.IsNaN(y.Value) {
			return fail("a number beyond 64 bits")
		}
		n.shape, n.float = float, y.Value
	case *ast.SequenceNode:
		n.shape = list
		for _, item := range y.Values {
			c, err := convert(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, c)
		}
	case *ast.MappingNode:
		pairs = y.Values
		n.shape = object
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{y}
		n.shape = object
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return fail("anchors, aliases and merges are not read; write the value out")
	case *ast.TagNode:
		return fail("tags such as !!str are not read; put text in quotes")
	case *ast.InfinityNode, *ast.NanNode:
		return fail("infinity and not-a-number are not values")
	default:
		return fail(fmt.Sprintf("%s cannot stand here", y.Type().YAMLName()))
	}
	seen := map[string]bool{}
	for i, p := range pairs {
		e := entry{}
		if t := p.Key.GetToken(); t != nil && t.Position != nil {
			e.line, e.column = t.Position.Line, t.Position.Column
		}
		switch k := p.Key.(type) {
		case *ast.StringNode:
			e.key = k.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
			e.key = k.GetToken().Value
		case *ast.MergeKeyNode:
			return nil, &Error{Line: e.line, Column: e.column, Message: "anchors, aliases and merges are not read; write the value out"}
		default:
			return nil, &Error{Line: e.line, Column: e.column, Message: "a key is a single word or quoted text"}
		}
		if i == 0 {
			n.line, n.column = e.line, e.column
		}
		if seen[e.key] {
			return nil, &Error{Line: e.line, Column: e.column, Message: fmt.Sprintf("%q is here twice", e.key)}
		}
		seen[e.key] = true
		c, err := convert(p.Value, depth+1)
		if err != nil {
			return nil, err
		}
		if c.line == 0 {
			c.line, c.column = e.line, e.column
		}
		e.value = c
		n.fields = append(n.fields, e)
	}
	return n, nil
}

// plain is the node as encoding/json would have read it, for JSON Schema.
func (n *node) plain() any {
	switch n.shape {
	case text:
		return n.text
	case integer:
		return n.int
	case float:
		return n.float
	case boolean:
		return n.bool
	case list:
		items := make([]any, len(n.items))
		for i, c := range n.items {
			items[i] = c.plain()
		}
		return items
	case object:
		fields := make(map[string]any, len(n.fields))
		for _, f := range n.fields {
			fields[f.key] = f.value.plain()
		}
		return fields
	}
	return nil
}

func (n *node) field(key string) *node {
	for _, f := range n.fields {
		if f.key == key {
			return f.value
		}
	}
	return nil
}
