package avro

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Kind is an Avro type: a primitive's name, or record, fixed, array, union.
type Kind string

// The kinds of our dialect.
const (
	Null    Kind = "null"
	Boolean Kind = "boolean"
	Int     Kind = "int"
	Long    Kind = "long"
	Float   Kind = "float"
	Double  Kind = "double"
	Bytes   Kind = "bytes"
	String  Kind = "string"
	Record  Kind = "record"
	Fixed   Kind = "fixed"
	Array   Kind = "array"
	Union   Kind = "union"
)

// TimestampMicros is the one logical type in use.
const TimestampMicros = "timestamp-micros"

// Schema is one type, with references resolved.
type Schema struct {
	Kind     Kind
	Name     string // full name of a record or fixed
	Doc      string
	Logical  string
	Size     int       // bytes of a fixed
	Items    *Schema   // of an array
	Branches []*Schema // of a union
	Fields   []Field   // of a record
}

// Field is one field of a record.
type Field struct {
	Name    string
	Doc     string
	Type    *Schema
	Default json.RawMessage // nil: none
}

// Field returns the field of that name.
func (s *Schema) Field(name string) (Field, bool) {
	for _, f := range s.Fields {
		if f.Name == name {
			return f, true
		}
	}
	return Field{}, false
}

// ShortName is the name without namespace.
func (s *Schema) ShortName() string { return s.Name[strings.LastIndexByte(s.Name, '.')+1:] }

// String is the whole definition on one line, docs and defaults included; two
// schemas with the same text are the same.
func (s *Schema) String() string {
	var b strings.Builder
	s.write(&b)
	return b.String()
}

func (s *Schema) write(b *strings.Builder) {
	b.WriteString(string(s.Kind))
	switch s.Kind {
	case Fixed:
		fmt.Fprintf(b, " %s(%d)", s.Name, s.Size)
	case Array:
		b.WriteByte('<')
		s.Items.write(b)
		b.WriteByte('>')
	case Union:
		for i, branch := range s.Branches {
			b.WriteByte("[,"[min(i, 1)])
			branch.write(b)
		}
		b.WriteByte(']')
	case Record:
		fmt.Fprintf(b, " %s %q{", s.Name, s.Doc)
		for _, f := range s.Fields {
			fmt.Fprintf(b, "%s %q=%s ", f.Name, f.Doc, f.Default)
			f.Type.write(b)
			b.WriteByte(';')
		}
		b.WriteByte('}')
	default:
		if s.Logical != "" {
			b.WriteString("/" + s.Logical)
		}
	}
}

// Compact is the text as registered: the file without white space. Docs,
// defaults and logical types stay, which Avro's parsing canonical form drops.
func Compact(text []byte) (string, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Parse reads a schema of our dialect.
func Parse(text []byte) (*Schema, error) {
	p := parser{named: map[string]*Schema{}}
	return p.parse(text, "")
}

type parser struct{ named map[string]*Schema }

type object struct {
	Type      json.RawMessage   `json:"type"`
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Doc       string            `json:"doc"`
	Logical   string            `json:"logicalType"`
	Size      int               `json:"size"`
	Items     json.RawMessage   `json:"items"`
	Fields    []json.RawMessage `json:"fields"`
}

type field struct {
	Name string          `json:"name"`
	Type json.RawMessage `json:"type"`
	Doc  string          `json:"doc"`
}

func (p *parser) parse(text json.RawMessage, namespace string) (*Schema, error) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, fmt.Errorf("a type is missing")
	}
	switch text[0] {
	case '"':
		var name string
		if err := json.Unmarshal(text, &name); err != nil {
			return nil, err
		}
		return p.reference(name, namespace)
	case '[':
		var branches []json.RawMessage
		if err := json.Unmarshal(text, &branches); err != nil {
			return nil, err
		}
		u := &Schema{Kind: Union}
		for _, b := range branches {
			s, err := p.parse(b, namespace)
			if err != nil {
				return nil, err
			}
			u.Branches = append(u.Branches, s)
		}
		return u, nil
	}
	var o object
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, err
	}
	return p.object(o, namespace)
}

func (p *parser) reference(name, namespace string) (*Schema, error) {
	switch k := Kind(name); k {
	case Null, Boolean, Int, Long, Float, Double, Bytes, String:
		return &Schema{Kind: k}, nil
	}
	if s, ok := p.named[fullName(name, namespace)]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("type %q is not known here (maps, enums and later definitions are not used)", name)
}

func (p *parser) object(o object, namespace string) (*Schema, error) {
	if o.Namespace != "" {
		namespace = o.Namespace
	}
	var kind string
	if err := json.Unmarshal(o.Type, &kind); err != nil {
		return p.parse(o.Type, namespace) // {"type": {...}} and {"type": [...]}
	}
	s := &Schema{Kind: Kind(kind), Doc: o.Doc}
	switch s.Kind {
	case Array:
		items, err := p.parse(o.Items, namespace)
		s.Items = items
		return s, err
	case Fixed:
		s.Name, s.Size = fullName(o.Name, namespace), o.Size
		return s, p.define(s)
	case Record:
		s.Name = fullName(o.Name, namespace)
		if err := p.fields(s, o.Fields, namespace); err != nil {
			return nil, err
		}
		return s, p.define(s) // after its fields, so that a record cannot hold itself
	}
	s, err := p.reference(kind, namespace)
	if err == nil && o.Logical != "" {
		s.Logical = o.Logical
	}
	return s, err
}

func (p *parser) define(s *Schema) error {
	if _, twice := p.named[s.Name]; twice || s.ShortName() == "" {
		return fmt.Errorf("type name %q is empty or defined twice", s.Name)
	}
	p.named[s.Name] = s
	return nil
}

func (p *parser) fields(s *Schema, fields []json.RawMessage, namespace string) error {
	for _, text := range fields {
		var f field
		if err := json.Unmarshal(text, &f); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		// A default of null counts as one, so its presence is asked separately.
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(text, &keys); err != nil {
			return fmt.Errorf("%s.%s: %w", s.Name, f.Name, err)
		}
		t, err := p.parse(f.Type, namespace)
		if err != nil {
			return fmt.Errorf("%s.%s: %w", s.Name, f.Name, err)
		}
		if _, twice := s.Field(f.Name); twice || f.Name == "" {
			return fmt.Errorf("%s: field name %q is empty or used twice", s.Name, f.Name)
		}
		s.Fields = append(s.Fields, Field{Name: f.Name, Doc: f.Doc, Type: t, Default: keys["default"]})
	}
	return nil
}

func fullName(name, namespace string) string {
	if namespace == "" || strings.Contains(name, ".") {
		return name
	}
	return namespace + "." + name
}
