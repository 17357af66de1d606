package export

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// sortBytes is how much of an answer is sorted in memory; more goes to a file in sorted runs.
const sortBytes = 24 << 20

// sorter brings rows into the order of their keys. ClickHouse could, but it merges sorted blocks
// row by row, over all columns, which takes several times as long.
type sorter struct {
	most int // bytes in memory
	b    []byte
	rows []span
	file *os.File // of runs; nil until there is one
	runs []run
}

// span is where a row lies in memory: its key, then its content.
type span struct {
	at, key, end int
	first        uint64 // the first bytes in which the keys differ, set to sort
}

type run struct{ from, to int64 }

func newSorter(most int) *sorter { return &sorter{most: most} }

func (s *sorter) add(key, row []byte) error {
	if len(s.rows) > 0 && len(s.b)+len(key)+len(row) > s.most {
		if err := s.spill(); err != nil {
			return fmt.Errorf("sorting on disk: %w", err)
		}
	}
	if s.b == nil {
		s.b = make([]byte, 0, s.most)
	}
	at := len(s.b)
	s.b = append(append(s.b, key...), row...)
	s.rows = append(s.rows, span{at: at, key: at + len(key), end: len(s.b)})
	return nil
}

// sort compares 8 bytes behind what all keys begin with, and whole keys only where these are equal.
func (s *sorter) sort() {
	if len(s.rows) == 0 {
		return
	}
	common := s.b[s.rows[0].at:s.rows[0].key]
	for _, r := range s.rows {
		key := s.b[r.at:r.key]
		n := 0
		for n < min(len(common), len(key)) && common[n] == key[n] {
			n++
		}
		common = common[:n]
	}
	for i := range s.rows {
		r := &s.rows[i]
		var first [8]byte
		copy(first[:], s.b[r.at+len(common):r.key])
		r.first = binary.BigEndian.Uint64(first[:])
	}
	slices.SortFunc(s.rows, func(x, y span) int {
		if x.first != y.first {
			return cmp.Compare(x.first, y.first)
		}
		return bytes.Compare(s.b[x.at:x.key], s.b[y.at:y.key])
	})
}

// spill writes what is in memory to the file.
func (s *sorter) spill() (err error) {
	if s.file == nil {
		if s.file, err = os.CreateTemp("", "hikyaku-export-*"); err != nil {
			return err
		}
		// It is nobody's but ours, and gone with the process.
		if err := os.Remove(s.file.Name()); err != nil {
			return err
		}
	}
	s.sort()
	from, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(s.file, 1<<20)
	to := from
	var head []byte
	for _, r := range s.rows {
		head = binary.AppendUvarint(binary.AppendUvarint(head[:0], uint64(r.key-r.at)), uint64(r.end-r.key))
		_, _ = w.Write(head) // a Writer keeps its first error for Flush
		_, _ = w.Write(s.b[r.at:r.end])
		to += int64(len(head) + r.end - r.at)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	s.runs = append(s.runs, run{from, to})
	s.b, s.rows = s.b[:0], s.rows[:0]
	return nil
}

// each hands over the rows in order. They are good until the call returns.
func (s *sorter) each(do func(row []byte) error) error {
	if len(s.runs) == 0 {
		s.sort()
		for _, r := range s.rows {
			if err := do(s.b[r.key:r.end]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.spill(); err != nil {
		return fmt.Errorf("sorting on disk: %w", err)
	}
	var m merge
	for _, r := range s.runs {
		one := &pairs{r: bufio.NewReaderSize(io.NewSectionReader(s.file, r.from, r.to-r.from), 64<<10)}
		switch err := one.next(); err {
		case nil:
			m = append(m, one)
		case io.EOF:
		default:
			return fmt.Errorf("sorting on disk: %w", err)
		}
	}
	heap.Init(&m)
	for len(m) > 0 {
		if err := do(m[0].row); err != nil {
			return err
		}
		switch err := m[0].next(); err {
		case nil:
			heap.Fix(&m, 0)
		case io.EOF:
			heap.Pop(&m)
		default:
			return fmt.Errorf("sorting on disk: %w", err)
		}
	}
	return nil
}

// close forgets everything; the memory can be used again.
func (s *sorter) close() {
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.runs, s.b, s.rows = nil, nil, s.b[:0], s.rows[:0]
}

// merge is the runs, the one with the least key first.
type merge []*pairs

func (m merge) Len() int           { return len(m) }
func (m merge) Less(i, j int) bool { return bytes.Compare(m[i].key, m[j].key) < 0 }
func (m merge) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }
func (m *merge) Push(x any)        { *m = append(*m, x.(*pairs)) }
func (m *merge) Pop() any {
	last := (*m)[len(*m)-1]
	*m = (*m)[:len(*m)-1]
	return last
}

// pairs reads a run of a sorter: for each row the lengths of key and content, then both.
type pairs struct {
	r        *bufio.Reader
	memory   []byte
	key, row []byte
}

// maxRowBytes is more than any row has: a record has at most 1 MiB.
const maxRowBytes = 64 << 20

var errBroken = errors.New("the answer of ClickHouse is not what was asked for")

// next reads a row; io.EOF after the last.
func (p *pairs) next() error {
	if _, err := p.r.Peek(1); err != nil {
		return err
	}
	key, err := p.length()
	if err != nil {
		return err
	}
	row, err := p.length()
	if err != nil {
		return err
	}
	p.memory = slices.Grow(p.memory[:0], key+row)[:key+row]
	if _, err := io.ReadFull(p.r, p.memory); err != nil {
		return unexpected(err)
	}
	p.key, p.row = p.memory[:key], p.memory[key:]
	return nil
}

func (p *pairs) length() (int, error) {
	n, err := binary.ReadUvarint(p.r)
	switch {
	case err != nil:
		return 0, unexpected(err)
	case n > maxRowBytes:
		return 0, errBroken
	}
	return int(n), nil
}

// unexpected is an error in the middle of a row.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
