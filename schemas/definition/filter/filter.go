// Package filter is the filter language of an audience: its syntax tree, its JSON form, what makes a condition impossible, and how a
// condition reads in one line. It evaluates nothing; the resolver compiles the tree to SQL and evaluates it over one person, and both
// must agree with the meaning given here.
//
// The universe is the profiles. A leaf is true or false, never unknown: a value that is missing, null or of another type makes it false,
// and a Not around it then true. Numbers compare with numbers (an integer equals the float of the same value), strings with strings byte
// by byte, booleans with booleans, times as instants. An attribute is a time only where the author writes one, {time: 2011-06-01};
// a bare 2011-06-01 is a string there. In since and until it is an instant, UTC midnight.
package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Node is one condition. Exactly one field is set.
type Node struct {
	All       []*Node    `json:"all,omitempty"` // true when every one is; never empty
	Any       []*Node    `json:"any,omitempty"` // true when at least one is; never empty
	Not       *Node      `json:"not,omitempty"`
	Attribute *Attribute `json:"attribute,omitempty"`
	Event     *Event     `json:"event,omitempty"`
	Segment   string     `json:"segment,omitempty"` // the id of a segment the person belongs to
}

// Attribute is true when the profile's attribute satisfies every comparison set in Ops.
type Attribute struct {
	Name string `json:"name"`
	Ops
}

// Event is true when the number of the person's events of this name, inside the window and satisfying every Where, lies within Count.
// Events count once per event_id.
type Event struct {
	Name   string     `json:"name"`
	Count  Count      `json:"count"`
	Within Duration   `json:"within,omitempty"` // the window (as_of − within, as_of]; 0 is no such window
	Since  *time.Time `json:"since,omitempty"`  // the window [since, until), UTC; never together with Within
	Until  *time.Time `json:"until,omitempty"`
	Where  []Property `json:"where,omitempty"`
}

// Property is true of an event whose property satisfies every comparison set in Ops.
type Property struct {
	Property string `json:"property"`
	Ops
}

// Ops are the comparisons with one value. Either In or Exists is set alone, or up to one lower and one upper bound are.
// `eq: x` is read as `in: [x]`.
type Ops struct {
	In     []Value `json:"in,omitempty"` // equal to one of these: one kind, sorted, none twice
	Gte    *Value  `json:"gte,omitempty"`
	Gt     *Value  `json:"gt,omitempty"`
	Lte    *Value  `json:"lte,omitempty"`
	Lt     *Value  `json:"lt,omitempty"`
	Exists *bool   `json:"exists,omitempty"` // true: there is a value and it is not null; false: missing or null
}

// Count is a range of numbers of events, both ends included. gt, lt and eq are read as such a range; a count that is not written is
// {gte: 1}, and one without a lower bound begins at 0.
type Count struct {
	Gte int64  `json:"gte"`
	Lte *int64 `json:"lte,omitempty"` // nil is no upper bound
}

// Has reports whether n events satisfy the count.
func (c Count) Has(n int64) bool { return n >= c.Gte && (c.Lte == nil || n <= *c.Lte) }

// Kind is the type of a value in a comparison.
type Kind uint8

// The kinds. Int and Float compare with each other; otherwise only equal kinds compare.
const (
	String Kind = iota + 1
	Int
	Float
	Bool
	Time
)

// String names the kind as error messages do.
func (k Kind) String() string {
	switch k {
	case String:
		return "string"
	case Int, Float:
		return "number"
	case Bool:
		return "boolean"
	case Time:
		return "time"
	}
	return "nothing"
}

// Value is a literal in a comparison. The field named by Kind holds it.
type Value struct {
	Kind  Kind
	Str   string
	Int   int64
	Float float64 // never NaN, never infinite, and not a whole number that Int could hold exactly
	Bool  bool
	Time  time.Time // UTC, microseconds
}

// StringValue, IntValue, FloatValue, BoolValue and TimeValue make literals. FloatValue makes an Int of a whole number, so that 5.0 and 5
// are one literal.
func StringValue(s string) Value { return Value{Kind: String, Str: s} }

// IntValue makes a number.
func IntValue(n int64) Value { return Value{Kind: Int, Int: n} }

// FloatValue makes a number.
func FloatValue(f float64) Value {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return IntValue(int64(f))
	}
	return Value{Kind: Float, Float: f}
}

// BoolValue makes a boolean.
func BoolValue(b bool) Value { return Value{Kind: Bool, Bool: b} }

// TimeValue makes an instant, to the microsecond (what ClickHouse and Avro keep).
func TimeValue(t time.Time) Value {
	return Value{Kind: Time, Time: t.UTC().Truncate(time.Microsecond)}
}

// Any returns the literal as string, int64, float64, bool or time.Time.
func (v Value) Any() any {
	switch v.Kind {
	case String:
		return v.Str
	case Int:
		return v.Int
	case Float:
		return v.Float
	case Bool:
		return v.Bool
	case Time:
		return v.Time
	}
	return nil
}

// String is the literal as an author would write it.
func (v Value) String() string {
	switch v.Kind {
	case String:
		return strconv.Quote(v.Str)
	case Int:
		return strconv.FormatInt(v.Int, 10)
	case Float:
		return strconv.FormatFloat(v.Float, 'g', -1, 64)
	case Bool:
		return strconv.FormatBool(v.Bool)
	case Time:
		return FormatTime(v.Time)
	}
	return "nothing"
}

type timeLiteral struct {
	Time time.Time `json:"time"`
}

// MarshalJSON writes strings, numbers and booleans as themselves and a time as {"time": RFC 3339}.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.Kind == Time {
		return json.Marshal(timeLiteral{v.Time})
	}
	return json.Marshal(v.Any())
}

// UnmarshalJSON reads what MarshalJSON writes.
func (v *Value) UnmarshalJSON(b []byte) error {
	if len(b) == 0 {
		return errors.New("empty literal")
	}
	switch b[0] {
	case '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*v = StringValue(s)
	case 't', 'f':
		*v = BoolValue(b[0] == 't')
	case '{':
		var t timeLiteral
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		*v = TimeValue(t.Time)
	default:
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			*v = IntValue(n)
			return nil
		}
		f, err := strconv.ParseFloat(string(b), 64)
		if err != nil {
			return fmt.Errorf("literal %s is not a string, number, boolean or time", b)
		}
		*v = FloatValue(f)
	}
	return nil
}

// Compare orders two literals that compare with each other (-1, 0, 1); ok is false when they do not. Booleans are only equal or not:
// for two different ones ok is true and the order means nothing.
func Compare(a, b Value) (order int, ok bool) {
	switch {
	case a.Kind == Int && b.Kind == Int:
		return cmp(a.Int < b.Int, a.Int > b.Int), true
	case a.Kind == Int && b.Kind == Float:
		return compareIntFloat(a.Int, b.Float), true
	case a.Kind == Float && b.Kind == Int:
		return -compareIntFloat(b.Int, a.Float), true
	case a.Kind != b.Kind:
		return 0, false
	case a.Kind == Float:
		return cmp(a.Float < b.Float, a.Float > b.Float), true
	case a.Kind == String:
		return strings.Compare(a.Str, b.Str), true
	case a.Kind == Bool:
		return cmp(!a.Bool && b.Bool, a.Bool && !b.Bool), true
	case a.Kind == Time:
		return a.Time.Compare(b.Time), true
	}
	return 0, false
}

// compareIntFloat is exact where a conversion to float64 would round.
func compareIntFloat(n int64, f float64) int {
	switch {
	case f >= 1<<63:
		return -1
	case f < -1<<63:
		return 1
	}
	whole := int64(f)
	if n != whole {
		return cmp(n < whole, true)
	}
	fraction := f - math.Trunc(f)
	return cmp(fraction > 0, fraction < 0)
}

func cmp(less, more bool) int {
	if less {
		return -1
	}
	if more {
		return 1
	}
	return 0
}

// Problem is why a condition cannot be meant: the comparison at fault and a sentence about it.
type Problem struct {
	Field   string // gte, in, …, or empty for the whole
	Message string
	Values  bool // the words are right and contradict each other by their values; a JSON Schema cannot tell
}

// Check says what is impossible about the comparisons, or nil.
func (o Ops) Check() *Problem {
	bounds := 0
	for _, b := range []*Value{o.Gte, o.Gt, o.Lte, o.Lt} {
		if b != nil {
			bounds++
		}
	}
	alone := 0
	if o.In != nil {
		alone++
	}
	if o.Exists != nil {
		alone++
	}
	switch {
	case bounds+alone == 0:
		return &Problem{"", "nothing to compare with; expected one of eq, in, gte, gt, lte, lt, exists", false}
	case alone > 1 || alone == 1 && bounds > 0:
		return &Problem{"", "eq, in and exists stand alone; they cannot be combined with another comparison", false}
	case o.Gte != nil && o.Gt != nil:
		return &Problem{"gt", "gte and gt are both lower bounds; keep one", false}
	case o.Lte != nil && o.Lt != nil:
		return &Problem{"lt", "lte and lt are both upper bounds; keep one", false}
	}
	if o.In != nil {
		if len(o.In) == 0 {
			return &Problem{"in", "an empty list; no value could satisfy it", false}
		}
		for _, v := range o.In[1:] {
			if v.Kind.String() != o.In[0].Kind.String() {
				return &Problem{"in", fmt.Sprintf("a %s and a %s in one list; a value has one type", o.In[0].Kind, v.Kind), false}
			}
		}
		return nil
	}
	lower, lowerName, lowerOpen := o.Gte, "gte", false
	if o.Gt != nil {
		lower, lowerName, lowerOpen = o.Gt, "gt", true
	}
	upper, upperName, upperOpen := o.Lte, "lte", false
	if o.Lt != nil {
		upper, upperName, upperOpen = o.Lt, "lt", true
	}
	for _, b := range []struct {
		v    *Value
		name string
	}{{lower, lowerName}, {upper, upperName}} {
		if b.v != nil && b.v.Kind == Bool {
			return &Problem{b.name, "booleans have no order; expected a number, a string or {time: …}", false}
		}
	}
	if lower == nil || upper == nil {
		return nil
	}
	order, ok := Compare(*lower, *upper)
	if !ok {
		return &Problem{upperName, fmt.Sprintf("%s is a %s and %s a %s; no value could satisfy both", lowerName, lower.Kind, upperName, upper.Kind), true}
	}
	if order > 0 || order == 0 && (lowerOpen || upperOpen) {
		return &Problem{upperName, fmt.Sprintf("no value could satisfy %s %s and %s %s", lowerName, lower, upperName, upper), true}
	}
	return nil
}

// Normalise sorts In and drops what is in it twice, so that two spellings of one filter are one.
func (o *Ops) Normalise() {
	sort.SliceStable(o.In, func(i, j int) bool {
		order, _ := Compare(o.In[i], o.In[j])
		return order < 0
	})
	kept := o.In[:0]
	for i, v := range o.In {
		if i > 0 {
			if order, _ := Compare(kept[len(kept)-1], v); order == 0 {
				continue
			}
		}
		kept = append(kept, v)
	}
	o.In = kept
}

// CountBounds are the bounds of a count as an author may write them.
type CountBounds struct{ Eq, Gte, Gt, Lte, Lt *int64 }

// Count makes the range of the bounds, or says why no number of events could lie in it.
func (b CountBounds) Count() (Count, *Problem) {
	var c Count
	for _, f := range []struct {
		name string
		v    *int64
	}{{"eq", b.Eq}, {"gte", b.Gte}, {"gt", b.Gt}, {"lte", b.Lte}, {"lt", b.Lt}} {
		if f.v != nil && *f.v < 0 {
			return c, &Problem{f.name, fmt.Sprintf("%d events; a count is never below 0", *f.v), false}
		}
	}
	switch {
	case b == CountBounds{}:
		return c, &Problem{"", "nothing to compare with; expected one of eq, gte, gt, lte or lt", false}
	case b.Eq != nil && b != CountBounds{Eq: b.Eq}:
		return c, &Problem{"eq", "eq stands alone; it cannot be combined with a bound", false}
	case b.Gte != nil && b.Gt != nil:
		return c, &Problem{"gt", "gte and gt are both lower bounds; keep one", false}
	case b.Lte != nil && b.Lt != nil:
		return c, &Problem{"lt", "lte and lt are both upper bounds; keep one", false}
	}
	upper := func(n int64) { c.Lte = &n }
	switch {
	case b.Eq != nil:
		c.Gte = *b.Eq
		upper(*b.Eq)
	case b.Gte != nil:
		c.Gte = *b.Gte
	case b.Gt != nil:
		c.Gte = *b.Gt
		if c.Gte < math.MaxInt64 {
			c.Gte++
		}
	}
	name := "lte"
	if b.Lte != nil {
		upper(*b.Lte)
	}
	if b.Lt != nil {
		name = "lt"
		if *b.Lt == 0 {
			return c, &Problem{name, "fewer than 0 events; no count could satisfy it", false}
		}
		upper(*b.Lt - 1)
	}
	if c.Lte != nil && *c.Lte < c.Gte {
		return c, &Problem{name, fmt.Sprintf("no count could be at least %d and at most %d", c.Gte, *c.Lte), true}
	}
	return c, nil
}

// Segments lists the ids of the segments a filter names, in order of appearance.
func (n *Node) Segments() []string {
	var ids []string
	n.Walk(func(n *Node) {
		if n.Segment != "" {
			ids = append(ids, n.Segment)
		}
	})
	return ids
}

// Walk calls visit for the node and every node below it, parents first.
func (n *Node) Walk(visit func(*Node)) {
	if n == nil {
		return
	}
	visit(n)
	for _, c := range n.All {
		c.Walk(visit)
	}
	for _, c := range n.Any {
		c.Walk(visit)
	}
	n.Not.Walk(visit)
}

// String is the condition in one line, as `explain` prints it.
func (n *Node) String() string {
	join := func(nodes []*Node) string {
		parts := make([]string, len(nodes))
		for i, c := range nodes {
			parts[i] = c.String()
		}
		return strings.Join(parts, "; ")
	}
	switch {
	case n == nil:
		return "nothing"
	case n.All != nil:
		return "all(" + join(n.All) + ")"
	case n.Any != nil:
		return "any(" + join(n.Any) + ")"
	case n.Not != nil:
		return "not(" + n.Not.String() + ")"
	case n.Attribute != nil:
		return "attribute " + word(n.Attribute.Name) + " " + n.Attribute.Ops.String()
	case n.Event != nil:
		return n.Event.String()
	case n.Segment != "":
		return "segment " + n.Segment
	}
	return "nothing"
}

// String is the condition in one line.
func (e *Event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "event %s %s", word(e.Name), e.Count)
	if e.Within > 0 {
		fmt.Fprintf(&b, " within %s", e.Within)
	}
	if e.Since != nil {
		fmt.Fprintf(&b, " since %s", FormatTime(*e.Since))
	}
	if e.Until != nil {
		fmt.Fprintf(&b, " until %s", FormatTime(*e.Until))
	}
	for i, w := range e.Where {
		if i == 0 {
			b.WriteString(" where ")
		} else {
			b.WriteString(" and ")
		}
		b.WriteString(word(w.Property) + " " + w.Ops.String())
	}
	return b.String()
}

// String is the range in words.
func (c Count) String() string {
	switch {
	case c.Lte == nil && c.Gte == 1:
		return "at least once"
	case c.Lte == nil:
		return fmt.Sprintf("at least %d times", c.Gte)
	case *c.Lte == 0:
		return "never"
	case *c.Lte == c.Gte:
		return fmt.Sprintf("exactly %d times", c.Gte)
	case c.Gte == 0:
		return fmt.Sprintf("at most %d times", *c.Lte)
	}
	return fmt.Sprintf("%d to %d times", c.Gte, *c.Lte)
}

// String is the comparisons in one line.
func (o Ops) String() string {
	var parts []string
	switch {
	case o.Exists != nil && *o.Exists:
		parts = append(parts, "exists")
	case o.Exists != nil:
		parts = append(parts, "does not exist")
	case len(o.In) == 1:
		parts = append(parts, "= "+o.In[0].String())
	case len(o.In) > 1:
		list := make([]string, len(o.In))
		for i, v := range o.In {
			list[i] = v.String()
		}
		parts = append(parts, "in ["+strings.Join(list, ", ")+"]")
	}
	for _, b := range []struct {
		v    *Value
		sign string
	}{{o.Gte, ">="}, {o.Gt, ">"}, {o.Lte, "<="}, {o.Lt, "<"}} {
		if b.v != nil {
			parts = append(parts, b.sign+" "+b.v.String())
		}
	}
	return strings.Join(parts, " and ")
}

// word quotes a name only where it would not read as one word.
func word(s string) string {
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '_' && r != '-' && r != '.' && r < 0x80 {
			return strconv.Quote(s)
		}
	}
	return s
}
