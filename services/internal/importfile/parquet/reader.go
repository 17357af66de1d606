// Package parquet reads rows of Parquet files in bounded memory, whatever the file
// says: no more than maxHeld of pages, and the footer.
//
// The structures of the format are those of parquet-go, which is also the judge in
// the tests. Pages are taken apart here, one value after the other: parquet-go makes
// room for as many values as a page claims to have, and a page of some bytes can
// claim billions.
//
// Columns are the leaves of the schema, those in groups called group.field. A list,
// map or other repetition is one column, of JSON.
package parquet

import (
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/format"

	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

const (
	maxFooter       = 16 << 20
	maxRowGroups    = math.MaxInt16 // as the format has it
	maxDecimalBytes = 1024
)

// Reader reads rows. It is for one goroutine.
type Reader struct {
	source source
	skip   int64
	line   int64 // of the next row
	total  int64 // rows of the file
	err    error // that ended it

	groups  []rowGroup
	group   int // the number of the one that is read; -1 before the first
	left    int64
	leaves  []*leaf
	columns []column
	*rows.Builder

	ahead      int64  // bytes that one column reads ahead
	whole      window // a row group that is read at once
	compressed []byte // a page
	gzip       *gzip.Reader
	zstd       *zstd.Decoder
}

// rowGroup is where the footer describes a row group.
type rowGroup struct {
	rows    int64
	columns []byte // from the first on
	count   uint64 // of them
}

// NewReader returns a reader of an object of so many bytes that begins behind the first
// skip rows. Row groups and pages before them are not read.
func NewReader(object io.ReaderAt, size int64, skip int64) *Reader {
	return &Reader{source: source{r: object, size: size}, skip: skip, line: skip + 1, group: -1}
}

// Offset is as much of the file's size as its rows before the next are of all. It
// says how far reading is, and nothing else.
func (r *Reader) Offset() int64 {
	if r.total == 0 {
		return r.source.size
	}
	return int64(float64(r.source.size) * min(1, float64(r.line-1)/float64(r.total)))
}

// Line is the number of the next row, from 1.
func (r *Reader) Line() int64 { return r.line }

// isEnd is true for what is not to be wrapped: the source's errors, and what has been
// said to the file's owner.
func (r *Reader) isEnd(err error) bool {
	var i *rows.Invalid
	return errors.As(err, &i) || r.source.failed != nil && errors.Is(err, r.source.failed)
}

// Header reads the footer, and returns the names of the columns. Errors:
// *rows.Invalid if this is no such file; the source's.
func (r *Reader) Header() (names []string, err error) {
	names, err = r.header()
	r.err = err
	return names, err
}

func (r *Reader) header() ([]string, error) {
	footer, err := r.footer()
	if err != nil {
		return nil, err
	}
	var elements [][]byte
	c := compact{b: footer}
	c.fields(func(id int64, kind byte) {
		switch {
		case id == 2 && kind == typeList:
			n, kind := c.items()
			if n > maxFields || kind != typeStruct {
				c.fail(false)
			}
			for ; n > 0 && !c.failed; n-- {
				c.list = maxList
				elements = append(elements, c.structure())
			}
			c.list = 0
		case id == 4 && kind == typeList:
			n, kind := c.items()
			if n > maxRowGroups || kind != typeStruct {
				c.fail(false)
			}
			for ; n > 0 && !c.failed; n-- {
				r.groups = append(r.groups, c.rowGroup())
			}
		case id == 8: // encryption algorithm, of a file whose footer alone is plain
			c.fail(false)
		default:
			c.skip(kind, 0)
		}
	})
	if c.failed {
		return nil, invalid("the file's footer is broken, has more than %d fields or %d row groups, or is encrypted", maxFields, maxRowGroups)
	}
	root, leaves, err := parseSchema(elements)
	if err != nil {
		return nil, err
	}
	for _, n := range leaves {
		r.leaves = append(r.leaves, &leaf{node: n})
	}
	for i := range r.groups {
		g := &r.groups[i]
		if g.rows < 0 || g.rows > math.MaxInt64-r.total || g.count != uint64(len(leaves)) {
			return nil, invalid("row group %d has %d rows and %d columns, where the schema has %d columns", i, g.rows, g.count, len(leaves))
		}
		r.total += g.rows
	}
	names, columns := root.columns("", nil, nil)
	quoted := make([]bool, len(columns))
	for i, c := range columns {
		quoted[i] = !c.json && !c.node.isBare()
	}
	r.columns, r.Builder = columns, rows.NewBuilder(names, quoted)
	return names, nil
}

// footer reads the end of the file: the footer, its length, and "PAR1".
func (r *Reader) footer() ([]byte, error) {
	const end = 8
	size := r.source.size
	switch {
	case size == 0:
		return nil, invalid("the file is empty")
	case size < end+4:
		return nil, invalid("not a Parquet file")
	}
	var w window
	ahead := min(size, footerBytes)
	b, err := r.source.bytes(&w, size-ahead, ahead, 0, size)
	if err != nil {
		return nil, err
	}
	switch string(b[len(b)-4:]) {
	case "PAR1":
	case "PARE":
		return nil, invalid("the file is encrypted")
	default:
		return nil, invalid("not a Parquet file, or one that is cut off: it does not end with PAR1")
	}
	n := int64(binary.LittleEndian.Uint32(b[len(b)-end:]))
	switch {
	case n > maxFooter:
		return nil, invalid("the file's footer is larger than %d MiB", maxFooter>>20)
	case n > size-end-4:
		return nil, invalid("the file's footer is larger than the file")
	}
	if b, err = r.source.bytes(&w, size-end-n, n, 0, size); err != nil {
		return nil, err
	}
	r.source.held = 0 // pages have their own measure
	return b[:n], nil
}

// rowGroup goes over the description of a row group.
func (c *compact) rowGroup() rowGroup {
	g := rowGroup{rows: -1}
	c.fields(func(id int64, kind byte) {
		switch {
		case id == 1 && kind == typeList:
			n, kind := c.items()
			if kind != typeStruct {
				c.fail(false)
			}
			g.columns, g.count = c.b, n
			c.list = maxList
			for ; n > 0 && !c.failed; n-- {
				c.structure()
			}
			c.list = 0
		case id == 3 && kind == typeI64:
			g.rows = c.varint()
		default:
			c.skip(kind, 0)
		}
	})
	return g
}

// Next returns the next row.
func (r *Reader) Next() (rows.Row, error) {
	for r.err == nil && r.left == 0 {
		r.err = r.nextGroup()
	}
	if r.err != nil {
		return rows.Row{}, r.err
	}
	r.Begin()
	field := -1 // that is malformed
	for i := range r.columns {
		c := &r.columns[i]
		if c.json {
			r.err = r.list(c)
		} else {
			var ok bool
			if ok, r.err = r.scalar(r.leaves[c.leaves[0]]); !ok && field < 0 {
				field = i
			}
		}
		if r.err != nil {
			return rows.Row{}, r.err
		}
		r.End()
	}
	row := r.Row(r.line)
	if field >= 0 && row.Malformed == nil {
		row.Fields, row.Malformed = nil, &rows.Malformed{Field: field, Reason: "a decimal has more than 1024 bytes"}
	}
	r.line++
	r.left--
	return row, nil
}

// nextGroup begins the next row group, behind the rows that are to be skipped.
// Errors: io.EOF if there is none; *rows.Invalid; the source's.
func (r *Reader) nextGroup() error {
	for _, l := range r.leaves {
		if r.group >= 0 && (l.peeked || l.inPage > 0 || l.left > 0) {
			return r.misfit(l)
		}
	}
	for {
		r.group++
		if r.group == len(r.groups) {
			return io.EOF
		}
		g := r.groups[r.group]
		if g.rows > r.skip {
			break
		}
		r.skip -= g.rows
	}
	g := r.groups[r.group]
	c := compact{b: g.columns}
	from, to := int64(math.MaxInt64), int64(0)
	for _, l := range r.leaves {
		var chunk format.ColumnChunk
		if err := decode(c.structure(), &chunk); err != nil {
			return invalid("what the footer says of row group %d is broken", r.group)
		}
		m := &chunk.MetaData
		start := m.DataPageOffset
		if d := m.DictionaryPageOffset; d > 0 && d < start {
			start = d
		}
		switch {
		case chunk.FilePath != "":
			return invalid("row group %d is in another file", r.group)
		case m.Type != l.physical:
			return invalid("column %.50q is of another type in row group %d than in the schema", l.name, r.group)
		case start < 4 || m.TotalCompressedSize < 0 || m.TotalCompressedSize > r.source.size-start:
			return invalid("column %.50q of row group %d is said to be where the file is not", l.name, r.group)
		case m.NumValues < g.rows || l.node.rep == 0 && m.NumValues != g.rows:
			return invalid("column %.50q has %d values in row group %d, which has %d rows", l.name, m.NumValues, r.group, g.rows)
		}
		l.codec, l.at, l.end, l.left = m.Codec, start, start+m.TotalCompressedSize, m.NumValues
		l.inPage, l.peeked, l.dict = 0, false, nil
		l.win = &l.own
		from, to = min(from, l.at), max(to, l.end)
	}
	r.whole.b = r.whole.b[:0]
	r.ahead = min(max(aheadBytes/int64(len(r.leaves)), aheadMin), aheadMax)
	if to-from <= maxTogether {
		// One request for all columns, not one or more for each.
		if _, err := r.source.bytes(&r.whole, from, to-from, 0, to); err != nil {
			return err
		}
		for _, l := range r.leaves {
			l.win = &r.whole
		}
	} else if r.whole.b != nil {
		r.source.held -= int64(cap(r.whole.b))
		r.whole.b = nil
	}
	for _, l := range r.leaves {
		if l.win != &l.own {
			r.source.held -= int64(cap(l.own.b))
			l.own = window{}
		} else {
			l.own.b = l.own.b[:0]
		}
		if err := r.skipRows(l, r.skip); err != nil {
			return err
		}
	}
	r.left, r.skip = g.rows-r.skip, 0
	return nil
}

// skipRows passes n rows of a column.
func (r *Reader) skipRows(l *leaf, n int64) error {
	for l.node.rep == 0 && n > 0 && l.inPage == 0 {
		passed, err := r.nextPage(l, n)
		if err != nil {
			return err
		}
		n -= passed
	}
	for ; n > 0; n-- {
		l.begun = false
		for {
			if _, err := r.value(l); err != nil {
				return err
			}
			if more, err := r.more(l); err != nil {
				return err
			} else if !more {
				break
			}
		}
	}
	return nil
}

// peek reads the levels of the next value, of which there must be one.
func (r *Reader) peek(l *leaf) error {
	if l.peeked {
		return nil
	}
	if l.inPage == 0 {
		if _, err := r.nextPage(l, 0); err != nil {
			return err
		}
	}
	l.rep, l.def = 0, 0
	if max := l.node.rep; max > 0 {
		v, ok := l.reps.next()
		if !ok || v > uint64(max) {
			return r.inPage(l, errLevels)
		}
		l.rep = int(v)
	}
	if max := l.node.def; max > 0 {
		v, ok := l.defs.next()
		if !ok || v > uint64(max) {
			return r.inPage(l, errLevels)
		}
		l.def = int(v)
	}
	l.peeked = true
	return nil
}

var (
	errLevels = errors.New("its levels are broken")
	errValues = errors.New("its values are broken")
)

// more says whether the row has another value in this column.
func (r *Reader) more(l *leaf) (bool, error) {
	if l.node.rep == 0 || !l.peeked && l.inPage == 0 && l.left == 0 {
		return false, nil
	}
	err := r.peek(l)
	return l.rep > 0, err
}

// value reads the next value: its bytes, or nil if it is null, of which l.def is the
// level. They are valid until the next value of the column is read.
func (r *Reader) value(l *leaf) ([]byte, error) {
	if err := r.peek(l); err != nil {
		return nil, err
	}
	if l.begun != (l.rep > 0) {
		return nil, r.misfit(l)
	}
	l.begun, l.peeked = true, false
	l.inPage--
	if l.def < l.node.def {
		return nil, nil
	}
	v, ok := l.vals.next()
	if !ok || l.size >= 0 && len(v) != l.size {
		return nil, r.inPage(l, errValues)
	}
	return v, nil
}

// misfit says that a column does not have what the others have.
func (r *Reader) misfit(l *leaf) error {
	return invalid("the columns of row group %d do not fit together at column %.50q", r.group, l.name)
}

// scalar reads a column whose rows have one value each. It is false if the value is
// none that is meant.
func (r *Reader) scalar(l *leaf) (ok bool, err error) {
	l.begun = false
	v, err := r.value(l)
	if err != nil || v == nil && l.def < l.node.def {
		return true, err
	}
	return r.text(l, v), nil
}

// text appends the text of a value.
func (r *Reader) text(l *leaf, v []byte) bool {
	switch {
	case r.Over():
	case l.logical == text:
		r.Keep(v)
	case l.logical == octets:
		r.Text = rows.AppendBytes(r.Text, r.Room(v))
	case l.logical == decimal && len(v) > maxDecimalBytes:
		return false
	default:
		r.Text = l.append(r.Text, v)
	}
	return true
}
