package rows

// Builder makes the rows of formats that are no text: the text of one column after
// the other is appended to Text and ended by End. It keeps no more of a row than
// MaxBytes; what comes after is dropped, and the row is malformed.
type Builder struct {
	Text []byte
	ends []int // of each column in Text
	over bool

	names  [][]byte // of the columns as JSON, with the colon
	quoted []bool
	fields []string
	raw    []byte
}

// NewBuilder returns a builder of rows of these columns. The text of those that are
// not quoted is JSON already: a number, a truth value, a list.
func NewBuilder(columns []string, quoted []bool) *Builder {
	names := make([][]byte, len(columns))
	for i, c := range columns {
		names[i] = append(AppendString(nil, c), ':')
	}
	return &Builder{names: names, quoted: quoted}
}

// Begin begins a row.
func (b *Builder) Begin() { b.Text, b.ends, b.over = b.Text[:0], b.ends[:0], false }

// End ends a column.
func (b *Builder) End() { b.ends = append(b.ends, len(b.Text)) }

// Over is true if the row is longer than it may be.
func (b *Builder) Over() bool { return b.over }

// Room returns as much of v as may be kept.
func (b *Builder) Room(v []byte) []byte {
	if b.over {
		return nil
	}
	if free := MaxBytes - len(b.Text); len(v) > free {
		b.over = true
		return v[:max(free, 0)]
	}
	return v
}

// Keep appends v.
func (b *Builder) Keep(v []byte) { b.Text = append(b.Text, b.Room(v)...) }

// Put appends a byte.
func (b *Builder) Put(c byte) {
	if b.over = b.over || len(b.Text) >= MaxBytes; !b.over {
		b.Text = append(b.Text, c)
	}
}

// Quote appends v as a JSON string.
func (b *Builder) Quote(v []byte) {
	if !b.over {
		b.Text = AppendString(b.Text, b.Room(v))
	}
}

// Row returns the row, all of whose columns have been ended.
func (b *Builder) Row(line int64) Row {
	row := Row{Line: line}
	s, from := string(b.Text), 0
	b.fields = b.fields[:0]
	for _, end := range b.ends {
		b.fields = append(b.fields, s[from:end])
		from = end
	}
	whole := b.appendRaw()
	row.Raw = b.raw
	if b.over || !whole {
		row.Malformed, row.Raw = TooLong, b.raw[:min(len(b.raw), peekBytes)]
	} else if row.Malformed = checkUTF8(s, b.fields); row.Malformed == nil {
		row.Fields = b.fields
	}
	return row
}

// appendRaw writes the row as Row.Raw has it: an object of the columns that have a
// value. It is false if that goes over MaxBytes.
func (b *Builder) appendRaw() bool {
	raw := append(b.raw[:0], '{')
	for i, f := range b.fields {
		if f == "" {
			continue
		}
		if len(raw) > 1 {
			raw = append(raw, ',')
		}
		raw = append(raw, b.names[i]...)
		if b.quoted[i] {
			raw = AppendString(raw, f)
		} else {
			raw = append(raw, f...)
		}
		if len(raw) > MaxBytes {
			b.raw = raw
			return false
		}
	}
	b.raw = append(raw, '}')
	return true
}
