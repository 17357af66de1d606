package parquet

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

const (
	maxFields  = 20_000 // groups among them
	maxColumns = 10_000 // of the file: leaves
	maxNesting = 64
	maxScale   = 1000
)

type logical uint8

const (
	signed logical = iota
	unsigned
	boolean
	float16
	float
	double
	octets
	text
	uuid
	decimal
	date
	clock
	instant
	int96
)

// node is a field of the schema.
type node struct {
	name     string
	optional bool
	repeated bool
	rep, def int // levels of a value that is there

	children []*node
	list     bool // a group with one repeated child
	dict     bool // a map, which is one too

	// Of a leaf:
	leaf      int // its number in the file; -1 of a group
	physical  format.Type
	size      int // bytes of a value; -1 if they differ
	logical   logical
	local     bool  // a time without a zone
	perSecond int64 // of a time
	scale     int   // of a decimal
}

// parseSchema reads the elements of a schema, which are in depth first order.
func parseSchema(elements [][]byte) (root *node, leaves []*node, err error) {
	at := 0
	var parse func(parent *node, depth int) (*node, error)
	parse = func(parent *node, depth int) (*node, error) {
		if at >= len(elements) {
			return nil, invalid("the file's schema ends too early")
		}
		if depth > maxNesting {
			return nil, invalid("the file's schema is nested deeper than %d", maxNesting)
		}
		var e format.SchemaElement
		if err := decode(elements[at], &e); err != nil {
			return nil, invalid("the file's schema cannot be read")
		}
		at++
		n := &node{name: e.Name, leaf: -1}
		if parent != nil {
			n.rep, n.def = parent.rep, parent.def
			switch e.RepetitionType.V {
			case format.Optional:
				n.optional = true
				n.def++
			case format.Repeated:
				n.repeated = true
				n.rep++
				n.def++
			}
		}
		if e.Type.Valid {
			n.leaf = len(leaves)
			leaves = append(leaves, n)
			if len(leaves) > maxColumns {
				return nil, invalid("the file has more than %d columns", maxColumns)
			}
			return n, n.setType(&e)
		}
		for range max(e.NumChildren.V, 0) {
			child, err := parse(n, depth+1)
			if err != nil {
				return nil, err
			}
			n.children = append(n.children, child)
		}
		if len(n.children) == 0 {
			return nil, invalid("the file's schema has a group without fields")
		}
		if len(n.children) == 1 && n.children[0].repeated && !n.repeated {
			ct := e.ConvertedType
			switch e.LogicalType.Value.(type) {
			case *format.ListType:
				n.list = true
			case *format.MapType:
				n.dict = true
			default:
				n.list = ct.Valid && ct.V == deprecated.List
				n.dict = ct.Valid && (ct.V == deprecated.Map || ct.V == deprecated.MapKeyValue)
			}
			entry := n.children[0]
			if n.dict && (len(entry.children) != 2 || entry.children[0].leaf < 0 || entry.children[0].optional || entry.children[0].repeated) {
				n.list, n.dict = true, false // of keys and values, then
			}
		}
		return n, nil
	}
	root, err = parse(nil, 0)
	if err != nil {
		return nil, nil, err
	}
	if at != len(elements) || root.leaf >= 0 {
		return nil, nil, invalid("the file's schema is no tree")
	}
	return root, leaves, nil
}

// setType says how the bytes of a leaf become text.
func (n *node) setType(e *format.SchemaElement) error {
	n.physical = e.Type.V
	switch n.physical {
	case format.Boolean:
		n.size, n.logical = 1, boolean
	case format.Int32:
		n.size, n.logical = 4, signed
	case format.Int64:
		n.size, n.logical = 8, signed
	case format.Int96:
		n.size, n.logical = 12, int96
	case format.Float:
		n.size, n.logical = 4, float
	case format.Double:
		n.size, n.logical = 8, double
	case format.ByteArray:
		n.size, n.logical = -1, octets
	case format.FixedLenByteArray:
		n.size, n.logical = int(e.TypeLength.V), octets
		if n.size < 1 || n.size > rows.MaxBytes {
			return invalid("column %.50q has values of %d bytes", n.name, n.size)
		}
	default:
		return invalid("column %.50q has a type that Parquet does not know", n.name)
	}
	isInt := n.physical == format.Int32 || n.physical == format.Int64
	isBytes := n.physical == format.ByteArray || n.physical == format.FixedLenByteArray
	setDecimal := func(scale int32) {
		if (isInt || isBytes) && scale >= 0 && scale <= maxScale {
			n.logical, n.scale = decimal, int(scale)
		}
	}
	set := func(l logical, fits bool) {
		if fits {
			n.logical = l
		}
	}
	setTime := func(l logical, perSecond int64, local bool) {
		if isInt {
			n.logical, n.perSecond, n.local = l, perSecond, local
		}
	}
	switch l := e.LogicalType.Value.(type) {
	case *format.StringType, *format.EnumType, *format.JsonType:
		set(text, isBytes)
	case *format.UUIDType:
		set(uuid, n.size == 16)
	case *format.DecimalType:
		setDecimal(l.Scale)
	case *format.DateType:
		set(date, n.physical == format.Int32)
	case *format.TimeType:
		setTime(clock, perSecond(l.Unit), false)
	case *format.TimestampType:
		setTime(instant, perSecond(l.Unit), !l.IsAdjustedToUTC)
	case *format.IntType:
		set(unsigned, isInt && !l.IsSigned)
	case *format.Float16Type:
		set(float16, n.size == 2)
	default:
		if !e.ConvertedType.Valid {
			return nil
		}
		switch e.ConvertedType.V {
		case deprecated.UTF8, deprecated.Enum, deprecated.Json:
			set(text, isBytes)
		case deprecated.Decimal:
			setDecimal(e.Scale.V)
		case deprecated.Date:
			set(date, n.physical == format.Int32)
		case deprecated.TimeMillis:
			setTime(clock, 1e3, false)
		case deprecated.TimeMicros:
			setTime(clock, 1e6, false)
		case deprecated.TimestampMillis:
			setTime(instant, 1e3, false)
		case deprecated.TimestampMicros:
			setTime(instant, 1e6, false)
		case deprecated.Uint8, deprecated.Uint16, deprecated.Uint32, deprecated.Uint64:
			set(unsigned, isInt)
		}
	}
	return nil
}

func perSecond(u format.TimeUnit) int64 {
	if u.Value == nil {
		return 1e3
	}
	return int64(time.Second / u.Value.Duration())
}

// isBare is true if the text of the leaf is JSON.
func (n *node) isBare() bool {
	switch n.logical {
	case signed, unsigned, boolean, decimal:
		return true
	}
	return false
}

// column is what becomes a field of a row: a leaf that is there once at most, or a
// list, map or other repetition, with all in it.
type column struct {
	node   *node
	leaves []int // in it
	json   bool
}

// columns flattens groups: a field in one is called group.field.
func (n *node) columns(prefix string, names []string, all []column) ([]string, []column) {
	for _, c := range n.children {
		switch {
		case c.repeated || c.list || c.dict:
			names = append(names, prefix+c.name)
			all = append(all, column{node: c, leaves: c.leavesIn(nil), json: true})
		case c.leaf >= 0:
			names = append(names, prefix+c.name)
			all = append(all, column{node: c, leaves: []int{c.leaf}})
		default:
			names, all = c.columns(prefix+c.name+".", names, all)
		}
	}
	return names, all
}

func (n *node) leavesIn(leaves []int) []int {
	if n.leaf >= 0 {
		return append(leaves, n.leaf)
	}
	for _, c := range n.children {
		leaves = c.leavesIn(leaves)
	}
	return leaves
}

const julianDay1970 = 2440588

// append appends the text of a value's bytes, which are as many as the type says.
func (n *node) append(b, v []byte) []byte {
	switch n.logical {
	case boolean:
		if v[0] != 0 {
			return append(b, "true"...)
		}
		return append(b, "false"...)
	case float16:
		return rows.AppendFloat(b, half(binary.LittleEndian.Uint16(v)), 32)
	case float:
		return rows.AppendFloat(b, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))), 32)
	case double:
		return rows.AppendFloat(b, math.Float64frombits(binary.LittleEndian.Uint64(v)), 64)
	case octets:
		return rows.AppendBytes(b, v)
	case text:
		return append(b, v...)
	case uuid:
		return rows.AppendUUID(b, v)
	case int96:
		days := int64(binary.LittleEndian.Uint32(v[8:])) - julianDay1970
		return time.Unix(days*86400, int64(binary.LittleEndian.Uint64(v))).UTC().AppendFormat(b, time.RFC3339Nano)
	case decimal:
		if n.physical != format.Int32 && n.physical != format.Int64 {
			return rows.AppendBigDecimal(b, v, n.scale)
		}
		return rows.AppendDecimal(b, integer(v), n.scale)
	case date:
		return rows.AppendDate(b, int32(integer(v)))
	case clock:
		return rows.AppendClock(b, integer(v), n.perSecond)
	case instant:
		return rows.AppendTime(b, integer(v), n.perSecond, n.local)
	case unsigned:
		if n.size == 4 {
			return strconv.AppendUint(b, uint64(binary.LittleEndian.Uint32(v)), 10)
		}
		return strconv.AppendUint(b, binary.LittleEndian.Uint64(v), 10)
	}
	return strconv.AppendInt(b, integer(v), 10)
}

func integer(v []byte) int64 {
	if len(v) == 4 {
		return int64(int32(binary.LittleEndian.Uint32(v)))
	}
	return int64(binary.LittleEndian.Uint64(v))
}

// half is a float of 16 bits.
func half(h uint16) float64 {
	sign, exponent, fraction := 1.0, int(h>>10&31), float64(h&1023)
	if h>>15 != 0 {
		sign = -1
	}
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -24)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

func invalid(format string, args ...any) error {
	return &rows.Invalid{Reason: fmt.Sprintf(format, args...)}
}
