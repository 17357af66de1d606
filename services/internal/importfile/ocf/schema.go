package ocf

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

const (
	maxFields  = 10_000 // those of a record inside a record among them
	maxNesting = 64     // of types in types
	maxScale   = 1000
)

type kind uint8

const (
	null kind = iota
	boolean
	integer // int
	long
	float
	double
	octets // bytes
	text   // string
	fixed
	enum
	array
	mapping
	record
	union
	// Logical types.
	date
	clock   // in units of 1/perSecond, as integer
	clock64 // as long
	instant
	local // a timestamp without a zone
	decimal
	decimalFixed
	uuidFixed
)

var primitives = map[string]kind{
	"null": null, "boolean": boolean, "int": integer, "long": long, "float": float, "double": double, "bytes": octets, "string": text,
}

// node is a type of the schema.
type node struct {
	kind      kind
	fields    []field  // of a record
	branches  []*node  // of a union
	item      *node    // of an array or map
	symbols   [][]byte // of an enum
	size      int      // of a fixed
	scale     int      // of a decimal
	perSecond int64    // of a time
	emptiness uint8    // of a record; see empty
}

type field struct {
	name string
	key  []byte // the name as JSON, with the colon
	node *node
}

// schema reads the JSON of a schema. References to named types are resolved, so the
// nodes of a recursive schema form a ring.
type schema struct {
	named map[string]*node
}

// parseSchema returns the record that the schema describes.
func parseSchema(b []byte) (*node, error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, &rows.Invalid{Reason: "the file's schema is not JSON"}
	}
	s := schema{named: map[string]*node{}}
	n, err := s.node(v, "", 0)
	if err != nil {
		return nil, &rows.Invalid{Reason: "the file's schema: " + err.Error()}
	}
	if n.kind != record {
		return nil, &rows.Invalid{Reason: "the file's schema is not a record"}
	}
	return n, nil
}

// node reads a type that stands in a namespace. Its errors are sentences without a
// beginning.
func (s *schema) node(v any, namespace string, depth int) (*node, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("types are nested deeper than %d", maxNesting)
	}
	switch v := v.(type) {
	case string:
		if k, ok := primitives[v]; ok {
			return &node{kind: k}, nil
		}
		if n, ok := s.named[fullName(v, namespace)]; ok {
			return n, nil
		}
		if n, ok := s.named[v]; ok {
			return n, nil
		}
		return nil, fmt.Errorf("there is no type %.50q", v)
	case []any:
		n := &node{kind: union}
		for _, b := range v {
			branch, err := s.node(b, namespace, depth+1)
			if err != nil {
				return nil, err
			}
			if branch.kind == union {
				return nil, fmt.Errorf("a union stands directly in a union")
			}
			n.branches = append(n.branches, branch)
		}
		return n, nil
	case map[string]any:
		return s.described(v, namespace, depth)
	}
	return nil, fmt.Errorf("a type is neither a name, an object nor a list")
}

// described reads a type that is an object.
func (s *schema) described(v map[string]any, namespace string, depth int) (*node, error) {
	name, ok := v["type"].(string)
	if !ok {
		return s.node(v["type"], namespace, depth+1)
	}
	n := &node{}
	switch name {
	case "record", "error", "enum", "fixed":
		own, _ := v["name"].(string)
		if own == "" {
			return nil, fmt.Errorf("a type has no name")
		}
		if ns, ok := v["namespace"].(string); ok {
			namespace = ns
		}
		own = fullName(own, namespace)
		namespace = own[:max(strings.LastIndexByte(own, '.'), 0)]
		if s.named[own] != nil {
			return nil, fmt.Errorf("type %.50q is defined twice", own)
		}
		s.named[own] = n // before its fields, which may refer to it
	}
	var err error
	switch name {
	case "record", "error":
		n.kind = record
		fields, ok := v["fields"].([]any)
		if !ok {
			return nil, fmt.Errorf("a record has no list of fields")
		}
		for _, f := range fields {
			f, _ := f.(map[string]any)
			name, _ := f["name"].(string)
			if name == "" {
				return nil, fmt.Errorf("a field has no name")
			}
			// A logical type is often written beside the field's name, one level too high.
			t, ok := f["type"].(string)
			var fn *node
			if _, primitive := primitives[t]; ok && primitive {
				fn, err = s.described(f, namespace, depth+1)
			} else {
				fn, err = s.node(f["type"], namespace, depth+1)
			}
			if err != nil {
				return nil, err
			}
			n.fields = append(n.fields, field{name: name, key: append(rows.AppendString(nil, name), ':'), node: fn})
		}
	case "enum":
		n.kind = enum
		symbols, _ := v["symbols"].([]any)
		for _, symbol := range symbols {
			symbol, ok := symbol.(string)
			if !ok {
				return nil, fmt.Errorf("a symbol of an enum is not a string")
			}
			n.symbols = append(n.symbols, []byte(symbol))
		}
	case "fixed":
		n.kind = fixed
		size, ok := v["size"].(float64)
		if !ok || size < 0 || size > maxBlock || size != float64(int(size)) {
			return nil, fmt.Errorf("a fixed has no size between 0 and %d", maxBlock)
		}
		n.size = int(size)
	case "array":
		n.kind = array
		n.item, err = s.node(v["items"], namespace, depth+1)
	case "map":
		n.kind = mapping
		n.item, err = s.node(v["values"], namespace, depth+1)
	default:
		if n, err = s.node(name, namespace, depth); primitives[name] == null && name != "null" {
			return n, err // the name of a type that is described elsewhere
		}
	}
	if err != nil {
		return nil, err
	}
	n.setLogical(v)
	return n, nil
}

// setLogical makes a type what its logical type says. One that is unknown or does
// not fit is passed over, as Avro wants it.
func (n *node) setLogical(v map[string]any) {
	name, _ := v["logicalType"].(string)
	switch name {
	case "decimal":
		scale, _ := v["scale"].(float64)
		if scale < 0 || scale > maxScale || scale != float64(int(scale)) {
			return
		}
		switch n.kind {
		case octets:
			n.kind, n.scale = decimal, int(scale)
		case fixed:
			n.kind, n.scale = decimalFixed, int(scale)
		}
		return
	case "uuid":
		if n.kind == fixed && n.size == 16 {
			n.kind = uuidFixed
		}
		return
	}
	for _, l := range []struct {
		name        string
		is, becomes kind
		perSecond   int64
	}{
		{"date", integer, date, 0},
		{"time-millis", integer, clock, 1e3},
		{"time-micros", long, clock64, 1e6},
		{"timestamp-millis", long, instant, 1e3},
		{"timestamp-micros", long, instant, 1e6},
		{"timestamp-nanos", long, instant, 1e9},
		{"local-timestamp-millis", long, local, 1e3},
		{"local-timestamp-micros", long, local, 1e6},
		{"local-timestamp-nanos", long, local, 1e9},
	} {
		if l.name == name && l.is == n.kind {
			n.kind, n.perSecond = l.becomes, l.perSecond
		}
	}
}

// fullName is a name with its namespace, unless it has one.
func fullName(name, namespace string) string {
	if namespace == "" || strings.Contains(name, ".") {
		return name
	}
	return namespace + "." + name
}

// isScalar is true for what has a text of its own: no list, map, record, nor a
// choice that has one of them.
func (n *node) isScalar() bool {
	switch n.kind {
	case array, mapping, record:
		return false
	case union:
		for _, b := range n.branches {
			if !b.isScalar() {
				return false
			}
		}
	}
	return true
}

// isBare is true if the text of a scalar is JSON.
func (n *node) isBare() bool {
	switch n.kind {
	case boolean, integer, long, decimal, decimalFixed:
		return true
	}
	return false
}

// empty is true if the type never takes a byte.
func (n *node) empty() bool {
	switch n.kind {
	case null:
		return true
	case fixed, decimalFixed:
		return n.size == 0
	case record:
		if n.emptiness == unknown {
			n.emptiness = yes // for a record inside itself, which has no bytes of its own
			for _, f := range n.fields {
				if !f.node.empty() {
					n.emptiness = no
					break
				}
			}
		}
		return n.emptiness == yes
	}
	return false
}

const (
	unknown uint8 = iota
	yes
	no
)

// step is one column of a row, or several: the fields of a record.
type step struct {
	node    *node
	null    int    // the branch of the union that is null; -1 if it is no union
	steps   []step // of a record, by field; nil otherwise
	columns int    // there are of it
	scalar  bool   // of one column, otherwise JSON
}

// plan flattens a record: its columns, and whether the text of each is quoted in
// JSON.
type plan struct {
	columns []string
	quoted  []bool
	fields  int // of all records
}

func (p *plan) record(n *node, prefix string, path []*node) ([]step, error) {
	path = append(path, n)
	steps := make([]step, 0, len(n.fields))
	for _, f := range n.fields {
		st := step{node: f.node, null: -1}
		if f.node.kind == union && len(f.node.branches) == 2 {
			for i, b := range f.node.branches {
				if other := f.node.branches[1-i]; b.kind == null {
					st.node, st.null = other, i
				}
			}
		}
		if p.fields++; p.fields > maxFields {
			return nil, &rows.Invalid{Reason: fmt.Sprintf("the file's schema has more than %d fields", maxFields)}
		}
		before := len(p.columns)
		st.scalar = st.node.isScalar()
		// A record inside itself has no end: it is JSON, as a list is.
		if st.node.kind == record && !slices.Contains(path, st.node) {
			var err error
			if st.steps, err = p.record(st.node, prefix+f.name+".", path); err != nil {
				return nil, err
			}
		} else {
			p.columns = append(p.columns, prefix+f.name)
			p.quoted = append(p.quoted, st.scalar && !st.node.isBare())
		}
		st.columns = len(p.columns) - before
		steps = append(steps, st)
	}
	return steps, nil
}
