package spool

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// CorruptError says that something was acknowledged and can no longer be read.
type CorruptError struct {
	File   string
	Offset int64
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d: %s; what lies there was acknowledged, so nothing is passed over by itself", e.File, e.Offset, e.Reason)
}

// Batch is a part of the spool, in order.
type Batch struct {
	Entries []Entry
	end     position
	through int64 // records from the opening of the spool to its end
}

// survey finds the segments and how much of them counts. Of the last it reads everything: only
// there may something be that was not written whole.
func (s *Spool) survey() error {
	files, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		digits, ours := strings.CutSuffix(f.Name(), segmentSuffix)
		number, err := strconv.ParseUint(digits, 10, 64)
		if !ours || err != nil {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		g := &segment{number: number, bytes: info.Size()}
		if number < s.mark.segment {
			if s.lock != nil {
				s.remove(g) // drained, and not removed in time
			}
			continue
		}
		s.segments = append(s.segments, g)
	}
	slices.SortFunc(s.segments, func(a, b *segment) int { return int(int64(a.number) - int64(b.number)) })
	for i, g := range s.segments {
		if s.o.Salvage {
			if err := s.countReadable(g); err != nil {
				return err
			}
			continue
		}
		if i > 0 && g.number != s.segments[i-1].number+1 || i == 0 && s.mark.segment > 0 && g.number > s.mark.segment+1 {
			return &CorruptError{File: s.segmentPath(g.number - 1), Reason: "it is missing"}
		}
		last := i == len(s.segments)-1
		if last && s.lock != nil {
			if err := s.cutTail(g); err != nil {
				return err
			}
		}
		err := s.count(g)
		var short *CorruptError
		if last && s.lock == nil && errors.As(err, &short) {
			g.bytes, err = short.Offset, nil // somebody may be writing there
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Look says what a spool holds, without opening it: another process may be using it. Errors: fs.ErrNotExist
// if there is no spool; *CorruptError.
func Look(dir string) (label string, st Stats, err error) {
	for {
		s := &Spool{o: Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}}
		b, err := os.ReadFile(s.path("label"))
		if err != nil {
			return "", st, err
		}
		if s.mark, err = readMark(s.path("mark")); err != nil {
			s.mark = position{} // as Open has it: all of it
		}
		if err = s.survey(); err == nil {
			return strings.TrimSuffix(string(b), "\n"), s.Stats(), nil
		}
		// What was drained meanwhile is gone, which is no damage.
		if mark, _ := readMark(s.path("mark")); mark == s.mark && !errors.Is(err, os.ErrNotExist) {
			return "", st, err
		}
	}
}

// count adds what a segment holds that is not drained, by its headers.
func (s *Spool) count(g *segment) error {
	f, err := os.Open(s.segmentPath(g.number))
	if err != nil {
		return err
	}
	defer f.Close()
	var b [headerBytes]byte
	for at := int64(0); at < g.bytes; {
		if _, err := f.ReadAt(b[:], at); err != nil && err != io.EOF {
			return err
		}
		h, err := parseHeader(b[:])
		if err == nil && at+headerBytes+int64(h.length) > g.bytes {
			err = fmt.Errorf("%d bytes of a batch of %d", g.bytes-at, headerBytes+h.length)
		}
		if err != nil {
			return &CorruptError{f.Name(), at, err.Error()}
		}
		if g.number > s.mark.segment || at >= s.mark.offset {
			s.records += int64(h.records)
		}
		s.number = h.number
		at += headerBytes + int64(h.length)
	}
	return nil
}

// cutTail sets aside what was not written whole at the end of the last segment: it was
// never acknowledged, because a batch is begun only when the one before is durable.
func (s *Spool) cutTail(g *segment) error {
	path := s.segmentPath(g.number)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	good, last := 0, uint64(0)
	var why error
	for good < len(b) {
		var h header
		if h, why = parseBatch(b[good:]); why != nil {
			break
		}
		last = h.number
		good += headerBytes + h.length
	}
	if good == len(b) {
		return nil
	}
	if findBatch(b, good+1, last) < len(b) {
		return &CorruptError{path, int64(good), why.Error()}
	}
	aside := fmt.Sprintf("%s.torn-%d", path, good)
	if err := replaceFile(aside, b[good:]); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(good)), s.o.sync(f), f.Close()); err != nil {
		return err
	}
	s.o.Log.Warn("the spool ends in something that was not written whole, hence not acknowledged; it is set aside",
		"file", filepath.Base(aside), "bytes", len(b)-good, "reason", why.Error())
	g.bytes = int64(good)
	return nil
}

// findBatch returns where, from a place on, a batch with a higher number begins; the end of b if none does.
func findBatch(b []byte, from int, last uint64) int {
	for at := min(from, len(b)); ; at++ {
		i := bytes.Index(b[at:], []byte(magic))
		if i < 0 {
			return len(b)
		}
		at += i
		if h, err := parseBatch(b[at:]); err == nil && h.number > last {
			return at
		}
	}
}

// countReadable is count for what can be read between what cannot.
func (s *Spool) countReadable(g *segment) error {
	b, err := os.ReadFile(s.segmentPath(g.number))
	if err != nil {
		return err
	}
	for at := 0; at < len(b); {
		h, err := parseBatch(b[at:])
		if err != nil {
			next := findBatch(b, at+1, 0)
			s.damage += int64(next - at)
			at = next
			continue
		}
		if g.number > s.mark.segment || int64(at) >= s.mark.offset {
			s.records += int64(h.records)
		}
		s.number = max(s.number, h.number)
		at += headerBytes + h.length
	}
	return nil
}

// Damage is how many bytes of a spool that is salvaged cannot be read.
func (s *Spool) Damage() int64 { return s.damage }

// passOver lets Next go on behind what cannot be read, if that is why it cannot.
func (s *Spool) passOver() bool {
	s.mu.Lock()
	p := s.settle(s.next)
	s.mu.Unlock()
	b, err := os.ReadFile(s.segmentPath(p.segment))
	if err != nil || p.offset >= int64(len(b)) {
		return false
	}
	if _, err := parseBatch(b[p.offset:]); err == nil {
		return false // its records are wrong, which is not for us to judge
	}
	s.next = position{p.segment, int64(findBatch(b, int(p.offset)+1, 0))}
	return true
}

// settle is p, or where the next segment begins if p is the end of one. s.mu is held.
func (s *Spool) settle(p position) position {
	for _, g := range s.segments {
		if g.number == p.segment && p.offset < g.bytes {
			return p
		}
		if g.number > p.segment && g.bytes > 0 {
			return position{g.number, 0}
		}
	}
	return p
}

// durable is how many bytes of a segment are. s.mu is held.
func (s *Spool) durable(number uint64) int64 {
	for _, g := range s.segments {
		if g.number == number {
			return g.bytes
		}
	}
	return 0
}

// timeAt is when the batch at p was written; zero if that cannot be read now.
func (s *Spool) timeAt(p position) time.Time {
	f, err := os.Open(s.segmentPath(p.segment))
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	var b [headerBytes]byte
	if _, err := f.ReadAt(b[:], p.offset); err != nil {
		return time.Time{}
	}
	h, err := parseHeader(b[:])
	if err != nil {
		return time.Time{}
	}
	return h.at
}

// Next reads on. Errors: ErrEmpty; *CorruptError, and then nothing was passed over, unless Salvage asks for it; what
// the disk says.
func (s *Spool) Next() (Batch, error) {
	for {
		b, err := s.nextBatch()
		var corrupt *CorruptError
		if s.o.Salvage && errors.As(err, &corrupt) && s.passOver() {
			continue
		}
		return b, err
	}
}

func (s *Spool) nextBatch() (Batch, error) {
	s.mu.Lock()
	p := s.settle(s.next)
	end := s.durable(p.segment)
	s.mu.Unlock()
	if p.offset >= end {
		return Batch{}, ErrEmpty
	}
	if s.reading == nil || s.readingN != p.segment {
		if s.reading != nil {
			s.reading.Close()
			s.reading = nil
		}
		f, err := os.Open(s.segmentPath(p.segment))
		if err != nil {
			return Batch{}, fmt.Errorf("reading the spool: %w", err)
		}
		s.reading, s.readingN = f, p.segment
	}
	b, h, err := readBatch(s.reading, p.offset, end)
	if err != nil {
		return Batch{}, err
	}
	batch := Batch{Entries: make([]Entry, 0, h.records), end: position{p.segment, p.offset + int64(len(b))}}
	for body := b[headerBytes:]; len(body) > 0; {
		r, rest, err := readRecord(body)
		var e Entry
		if err == nil {
			e = Entry{Topic: topic.Name(r.topic), Key: string(r.key)}
			e.Record, err = s.schemas.decode(r)
		}
		if err != nil {
			return Batch{}, &CorruptError{s.reading.Name(), p.offset, fmt.Sprintf("record %d of its batch: %v", len(batch.Entries), err)}
		}
		batch.Entries = append(batch.Entries, e)
		body = rest
	}
	if len(batch.Entries) != h.records {
		return Batch{}, &CorruptError{s.reading.Name(), p.offset, fmt.Sprintf("%d records in a batch of %d", len(batch.Entries), h.records)}
	}
	s.next = batch.end
	s.read += int64(h.records)
	batch.through = s.read + s.drained
	return batch, nil
}

// readBatch reads the batch at an offset of a segment whose durable part ends at end.
func readBatch(f *os.File, at, end int64) ([]byte, header, error) {
	var head [headerBytes]byte
	if _, err := f.ReadAt(head[:], at); err != nil && err != io.EOF {
		return nil, header{}, fmt.Errorf("reading the spool: %w", err)
	}
	h, err := parseHeader(head[:])
	if err == nil && int64(h.length) > end-at-headerBytes {
		err = fmt.Errorf("%d bytes of a batch of %d", end-at, headerBytes+h.length)
	}
	if err != nil {
		return nil, h, &CorruptError{f.Name(), at, err.Error()}
	}
	b := make([]byte, headerBytes+h.length)
	copy(b, head[:])
	if _, err := f.ReadAt(b[headerBytes:], at+headerBytes); err != nil && (err != io.EOF || h.length > 0) {
		return nil, h, fmt.Errorf("reading the spool: %w", err)
	}
	if got := crc32.Update(crc32.Checksum(b[4:28], castagnoli), castagnoli, b[headerBytes:]); got != h.checksum {
		return nil, h, &CorruptError{f.Name(), at, fmt.Sprintf("the checksum is %08x instead of %08x", got, h.checksum)}
	}
	return b, h, nil
}

// Rewind lets Next begin again with what is not drained.
func (s *Spool) Rewind() { s.next, s.read = s.mark, 0 }

// Advance says that a batch and all that was read before it are in Kafka. When it returns,
// that is remembered; segments that are drained are removed.
func (s *Spool) Advance(b Batch) error {
	if err := writeMark(s.path("mark"), b.end); err != nil {
		return fmt.Errorf("writing the spool's mark: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = b.end
	n := b.through - s.drained
	s.drained, s.records, s.read = b.through, s.records-n, s.read-n
	for len(s.segments) > 1 && s.segments[0].number < s.mark.segment {
		s.remove(s.segments[0])
		s.segments = s.segments[1:]
	}
	notify(s.wake) // to tidy up
	return nil
}

// Skip is Advance for all that was added up to a ticket, which has been waited for. It returns how many
// records that were.
func (s *Spool) Skip(t *Ticket) (records int, err error) {
	for {
		b, err := s.Next()
		if err != nil {
			return 0, err
		}
		records += len(b.Entries)
		if b.end == t.end {
			return records, s.Advance(b)
		}
	}
}
