// Package spool keeps records on a local disk until Kafka takes them. What Append
// has returned for is fsynced and checksummed: neither a kill nor a power cut takes it.
//
// A spool is a directory of segment files, a mark that says how much of them has been
// drained, the schemas that the records were written with, its own name, and a lock, so that no
// two processes use it. A segment is a row of batches, each written and fsynced as one:
//
//	magic    4 bytes
//	length   uint32, of the body
//	records  uint32, in the body
//	number   uint64, one more than that of the batch before
//	time     int64, microseconds since 1970
//	checksum uint32, CRC-32C of all above but the magic, and of the body
//	body     records: see appendRecord
//
// A batch is begun only when the one before is durable. So one that cannot be read was
// never acknowledged if no batch follows it, and has been damaged if one does.
//
// Records do not hold the registry's ids, which are not known while it is away; the
// schemas lie beside them, and whoever drains encodes anew.
package spool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Entry is a record on its way to a topic.
type Entry struct {
	Topic  topic.Name
	Key    string
	Record event.Record
}

var (
	// ErrFull says that the spool's bound is reached. Nothing was kept.
	ErrFull = errors.New("the spool is full")
	// ErrLocked says that another process uses the spool.
	ErrLocked = errors.New("the spool is in use by another process")
	// ErrLabel says that the spool holds somebody else's records.
	ErrLabel = errors.New("it is somebody else's")
	// ErrEmpty says that everything has been read.
	ErrEmpty = errors.New("nothing is left in the spool")
	// ErrClosed says that the spool was closed.
	ErrClosed = errors.New("the spool is closed")
)

// Options say where a spool is and how large it may grow.
type Options struct {
	Dir string
	// Label says whose records these are. A spool with another label is not opened.
	Label string
	// Owner is what the name of a spool that has none yet begins with. Unless given, it stays without.
	Owner string
	// MaxBytes bounds all segments together; 0 keeps a spool from growing.
	MaxBytes int64
	// SegmentBytes is how large a segment grows before the next is begun: room is made
	// by whole segments. An eighth of MaxBytes, at most 64 MiB, unless given.
	SegmentBytes int64
	// Salvage passes over what is damaged: for an operator who has decided so.
	Salvage bool
	Log     *slog.Logger

	now  func() time.Time
	sync func(*os.File) error // fails in tests
}

// Spool is an open spool. Append may be called concurrently; Next, Rewind and Advance are for
// one goroutine.
type Spool struct {
	o       Options
	lock    *os.File
	name    string
	schemas schemas

	mu       sync.Mutex
	queue    []*Ticket // gathered, none of it written
	gathered int64     // bytes of it, of what is being written too
	segments []*segment
	mark     position // before it all is drained
	records  int64    // durable and not drained
	closed   bool

	wake      chan struct{} // to the goroutine that writes
	committed chan struct{} // from it
	written   chan struct{} // closed when it has ended

	// Of the goroutine that writes.
	file   *os.File
	broken bool   // behind the durable end of file there may be more
	number uint64 // of the last batch

	// Of whoever drains.
	reading  *os.File
	readingN uint64
	next     position
	damage   int64 // bytes that were passed over
	read     int64 // records read since the mark
	drained  int64 // records before the mark, since the spool was opened
}

// segment is a file of batches.
type segment struct {
	number uint64
	bytes  int64 // durable
}

// position is a place between two batches.
type position struct {
	segment uint64
	offset  int64
}

// commitBytes is about how much is written and fsynced at once.
const commitBytes = 4 << 20

// Open opens a spool, or makes it. The end of the last segment that was never
// acknowledged, because it was not written whole, is set aside. Errors: ErrLocked; *CorruptError;
// what the disk says.
func Open(o Options) (*Spool, error) {
	s := &Spool{o: o, wake: make(chan struct{}, 1), committed: make(chan struct{}, 1), written: make(chan struct{})}
	if s.o.SegmentBytes == 0 {
		s.o.SegmentBytes = min(o.MaxBytes/8, 64<<20)
	}
	if s.o.now == nil {
		s.o.now = time.Now
	}
	if s.o.sync == nil {
		s.o.sync = (*os.File).Sync
	}
	if s.o.Log == nil {
		s.o.Log = slog.New(slog.DiscardHandler)
	}
	if err := s.open(); err != nil {
		if s.lock != nil {
			_ = s.unlock()
		}
		return nil, fmt.Errorf("opening the spool %s: %w", o.Dir, err)
	}
	go s.write()
	return s, nil
}

func (s *Spool) open() error {
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	// It goes with the process, however that ends.
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return ErrLocked
		}
		return fmt.Errorf("locking: %w", err)
	}
	if err := s.checkLabel(); err != nil {
		return err
	}
	if err := s.readName(); err != nil {
		return err
	}
	if err := s.schemas.load(s.path("schemas")); err != nil {
		return err
	}
	if s.mark, err = readMark(s.path("mark")); err != nil {
		// All that is there is drained again: copies, and no loss.
		s.o.Log.Warn("the spool's mark cannot be read, so that all of it is drained again", "dir", s.o.Dir, "error", err)
		s.mark = position{}
	}
	if err := s.survey(); err != nil {
		return err
	}
	s.next = s.mark
	return syncDir(s.o.Dir)
}

// checkLabel refuses a spool that holds somebody else's records.
func (s *Spool) checkLabel() error {
	b, err := os.ReadFile(s.path("label"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return replaceFile(s.path("label"), []byte(s.o.Label+"\n"))
	case err != nil:
		return err
	case string(b) != s.o.Label+"\n":
		return fmt.Errorf("%w: it holds records of %q, not of %q", ErrLabel, string(b[:max(0, len(b)-1)]), s.o.Label)
	}
	return nil
}

// readName finds the spool's name, or gives it one.
func (s *Spool) readName() error {
	b, err := os.ReadFile(s.path("name"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.name = strings.TrimSuffix(string(b), "\n")
	if s.name != "" || s.o.Owner == "" {
		return nil
	}
	var chance [8]byte
	_, _ = rand.Read(chance[:]) // never fails: crypto/rand ends the process instead
	s.name = fmt.Sprintf("%s-%x", s.o.Owner, chance)
	return replaceFile(s.path("name"), []byte(s.name+"\n"))
}

// Name is the spool's own, which no other has, wherever its directory is moved; empty if nobody
// has given it one.
func (s *Spool) Name() string { return s.name }

func (s *Spool) path(name string) string { return filepath.Join(s.o.Dir, name) }

func (s *Spool) segmentPath(number uint64) string {
	return s.path(fmt.Sprintf("%016d%s", number, segmentSuffix))
}

const segmentSuffix = ".spool"

// Dir is where the spool lies.
func (s *Spool) Dir() string { return s.o.Dir }

// Stats is what a spool holds.
type Stats struct {
	Records  int64     `json:"records"` // durable and not drained
	Bytes    int64     `json:"bytes"`   // that they take
	Oldest   time.Time `json:"oldest"`  // when the first of them came; zero if there is none
	MaxBytes int64     `json:"max_bytes"`
	Segments int       `json:"segments"`
}

// Stats returns what the spool holds now.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Records: s.records, MaxBytes: s.o.MaxBytes, Segments: len(s.segments)}
	for _, g := range s.segments {
		st.Bytes += g.bytes
		if g.number == s.mark.segment {
			st.Bytes -= s.mark.offset
		}
	}
	if s.records > 0 {
		st.Oldest = s.timeAt(s.settle(s.mark))
	}
	return st
}

// Empty reports whether there is nothing that has not been drained, nor anything about
// to be written.
func (s *Spool) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gathered == 0 && s.records == 0
}

// Used reports whether there has ever been anything in it, in whichever process.
func (s *Spool) Used() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records > 0 || s.mark != position{}
}

// Committed tells, by a value now and then, that something has become durable.
func (s *Spool) Committed() <-chan struct{} { return s.committed }

// Append returns when entries are durable, all of them or none. Errors: ErrFull; what the disk
// says; that of ctx, and then they may be.
func (s *Spool) Append(ctx context.Context, entries ...Entry) error {
	b, err := Encode(nil, entries)
	if err != nil {
		return err
	}
	t, err := s.Add(entries, b)
	if err != nil {
		return err
	}
	return t.Wait(ctx)
}

// Ticket stands for what will become durable at once.
type Ticket struct {
	body    []byte
	records int
	sealed  bool // nothing may be added
	done    chan struct{}
	err     error
	end     position
}

// Wait returns when what was added is durable, or is not going to be.
func (t *Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Add gathers entries, which Encode has made into b, for the next commit, in the order of its calls.
// It does not wait, but for a schema that is new here. Errors: ErrFull, ErrClosed; what the
// disk says to a schema.
func (s *Spool) Add(entries []Entry, b []byte) (*Ticket, error) {
	for _, e := range entries {
		if err := s.schemas.keep(e.Record); err != nil {
			return nil, fmt.Errorf("keeping the schema of %s in the spool: %w", e.Record.SchemaName(), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	taken := s.gathered + int64(len(b)) + headerBytes
	for _, g := range s.segments {
		taken += g.bytes
	}
	if taken > s.o.MaxBytes {
		return nil, ErrFull
	}
	var t *Ticket
	if n := len(s.queue); n > 0 && !s.queue[n-1].sealed && len(s.queue[n-1].body)+len(b) <= commitBytes {
		t = s.queue[n-1]
	} else {
		t = &Ticket{done: make(chan struct{}), body: make([]byte, headerBytes, headerBytes+max(len(b), 4<<10))}
		s.queue = append(s.queue, t)
		s.gathered += headerBytes
	}
	t.body = append(t.body, b...)
	t.records += len(entries)
	s.gathered += int64(len(b))
	notify(s.wake)
	return t, nil
}

// Seal keeps what is added from now on apart from what was added before: Skip passes the one
// and not the other.
func (s *Spool) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.queue); n > 0 {
		s.queue[n-1].sealed = true
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// write makes durable what is gathered, many callers' at once, until the spool is closed.
func (s *Spool) write() {
	defer close(s.written)
	for range s.wake {
		for {
			s.mu.Lock()
			queue, closed := s.queue, s.closed
			s.queue = nil
			s.mu.Unlock()
			if len(queue) == 0 {
				s.tidy()
				if closed {
					return
				}
				break
			}
			s.commit(queue)
		}
	}
}

// commit writes and fsyncs tickets, and tells who waits for them.
func (s *Spool) commit(queue []*Ticket) {
	for len(queue) > 0 {
		n, err := s.commitSome(queue)
		for _, t := range queue[:n] {
			t.err = err
			close(t.done)
		}
		queue = queue[n:]
	}
	notify(s.committed)
}

// commitSome makes one or more tickets durable, as many as one segment takes, or returns why
// those that it returns the number of are not.
func (s *Spool) commitSome(queue []*Ticket) (n int, err error) {
	records, gathered := int64(0), int64(0)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.gathered -= gathered
		if err == nil {
			s.records += records
			s.segments[len(s.segments)-1].bytes = queue[n-1].end.offset
		}
	}()
	take := func() *Ticket {
		t := queue[n]
		n++
		records += int64(t.records)
		gathered += int64(len(t.body))
		return t
	}
	if err := s.roll(); err != nil {
		take()
		return n, fmt.Errorf("beginning a segment: %w", err)
	}
	at := s.last()
	size := at.bytes
	for n < len(queue) && (n == 0 || size < s.o.SegmentBytes) {
		t := take()
		s.number++
		seal(t.body, t.records, s.number, s.o.now())
		if _, err := s.file.Write(t.body); err != nil {
			s.broken = true
			return n, fmt.Errorf("writing: %w", err)
		}
		size += int64(len(t.body))
		t.end = position{at.number, size}
		t.body = nil
	}
	if err := s.o.sync(s.file); err != nil {
		s.broken = true
		return n, fmt.Errorf("syncing: %w", err)
	}
	return n, nil
}

// roll makes sure that there is a segment with room, and nothing in it that does not count.
func (s *Spool) roll() error {
	if s.broken {
		if err := s.repair(); err != nil {
			return err
		}
	}
	if s.file != nil && s.last().bytes < s.o.SegmentBytes {
		return nil
	}
	if err := s.letGo(); err != nil {
		return err
	}
	s.mu.Lock()
	number := s.mark.segment + 1
	if n := len(s.segments); n > 0 {
		number = s.segments[n-1].number + 1
	}
	s.mu.Unlock()
	// One that could not be begun may lie there, with nothing in it that counts.
	f, err := os.OpenFile(s.segmentPath(number), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// A file is on the disk when its directory is.
	if err := errors.Join(s.o.sync(f), syncDir(s.o.Dir)); err != nil {
		f.Close()
		return err
	}
	s.file = f
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments = append(s.segments, &segment{number: number})
	return nil
}

// last is the segment that is written.
func (s *Spool) last() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segments[len(s.segments)-1]
}

func (s *Spool) letGo() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// repair takes back what is behind the durable end of a segment after the disk has failed:
// how much of it is there nobody knows, and nothing may follow it.
func (s *Spool) repair() error {
	at := s.last().bytes
	if err := errors.Join(s.file.Truncate(at), s.o.sync(s.file)); err != nil {
		return fmt.Errorf("taking back what was not written whole: %w", err)
	}
	s.broken = false
	return s.letGo()
}

// tidy removes the last segment too when all of it is drained: nobody's records stay longer
// than they must.
func (s *Spool) tidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken || s.records > 0 || s.gathered > 0 {
		return
	}
	if err := s.letGo(); err != nil {
		s.o.Log.Warn("closing a segment of the spool", "error", err)
	}
	for _, g := range s.segments {
		s.remove(g)
	}
	s.segments = nil
}

// remove removes a segment that is drained. If it stays, the next start removes it.
func (s *Spool) remove(g *segment) {
	if err := os.Remove(s.segmentPath(g.number)); err != nil {
		s.o.Log.Warn("removing a segment of the spool that is drained", "error", err)
	}
}

// Close waits until what was added is durable, and lets go of the spool.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	notify(s.wake)
	<-s.written
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	if s.reading != nil {
		s.reading.Close()
	}
	return errors.Join(err, s.unlock())
}

// unlock gives the lock back. Closing the file would not do: a process that is being started
// has all of ours open until it runs its own program, and the lock with them.
func (s *Spool) unlock() error {
	return errors.Join(syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN), s.lock.Close())
}
