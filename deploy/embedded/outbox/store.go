package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// store writes mail and index. Many sessions hand over at once; one goroutine
// writes what has gathered with one write(2) to each file, and only then lets
// the sessions answer. That is what makes thousands of messages a second cheap.
type store struct {
	dir       string
	countOnly bool
	sync      bool
	rollBytes int64

	in   chan *delivery
	stop chan struct{}
	done chan struct{}
	once sync.Once

	accepted atomic.Int64

	// Of the writing goroutine.
	index      *os.File
	indexBytes int64
	mbox       *os.File
	mboxName   string
	mboxNumber int
	mboxBytes  int64
	mail, line []byte // what the next writes will be
}

// delivery is one message on its way into the store.
type delivery struct {
	from   string
	to     []string
	id     string
	body   []byte // nil if it is only counted
	length int64
	kept   chan error // made once, used again
}

const (
	gather      = 256     // messages in one write
	gatherBytes = 4 << 20 // and the size after which no more are added
)

var errClosed = errors.New("the outbox is closed")

func openStore(o Options) (*store, error) {
	s := &store{
		dir: o.Dir, countOnly: o.CountOnly, sync: o.Sync, rollBytes: o.RollBytes,
		in: make(chan *delivery), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	last, err := s.openIndex()
	if err != nil {
		return nil, err
	}
	if err := s.openMbox(last); err != nil {
		s.index.Close()
		return nil, err
	}
	go s.run()
	return s, nil
}

// openIndex cuts off a torn last line, which was not answered, and returns
// the last whole one.
func (s *store) openIndex() (last Entry, err error) {
	s.index, err = os.OpenFile(filepath.Join(s.dir, indexName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return Entry{}, err
	}
	defer func() {
		if err != nil {
			s.index.Close()
		}
	}()
	size, err := s.index.Seek(0, io.SeekEnd)
	if err != nil {
		return Entry{}, err
	}
	var line string
	rows := backwards{f: s.index, end: size}
	if rows.next() { // its text may be torn; where it begins is what counts
		if rows.torn {
			size = rows.at
			if rows.next() {
				line = rows.line
			}
		} else {
			line = rows.line
		}
	}
	if rows.err != nil {
		return Entry{}, rows.err
	}
	if err := s.index.Truncate(size); err != nil {
		return Entry{}, err
	}
	s.indexBytes, err = s.index.Seek(size, io.SeekStart)
	if err != nil || line == "" {
		return Entry{}, err
	}
	return ParseEntry(line)
}

// openMbox continues the newest file if it ends where the index says, and
// begins the next otherwise: what a kill left behind the last indexed message
// stays, unlisted.
func (s *store) openMbox(last Entry) error {
	if s.countOnly {
		return nil
	}
	names, err := filepath.Glob(filepath.Join(s.dir, "mail-*.mbox"))
	if err != nil {
		return err
	}
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(name), "mail-%d.mbox", &n); err == nil {
			s.mboxNumber = max(s.mboxNumber, n)
		}
	}
	if s.mboxNumber == 0 || last.File != mboxName(s.mboxNumber) {
		return s.roll()
	}
	f, err := os.OpenFile(filepath.Join(s.dir, last.File), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return err
	}
	tail := make([]byte, max(0, end-last.Offset-last.Length))
	if _, err := f.ReadAt(tail, last.Offset+last.Length); err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return err
	}
	if strings.Trim(string(tail), "\n") != "" || len(tail) == 0 {
		f.Close()
		return s.roll()
	}
	s.mbox, s.mboxName, s.mboxBytes = f, last.File, end
	return nil
}

func mboxName(n int) string { return fmt.Sprintf("mail-%04d.mbox", n) }

// roll begins the next mbox file.
func (s *store) roll() error {
	if s.mbox != nil {
		if err := s.mbox.Close(); err != nil {
			return err
		}
		s.mbox = nil
	}
	name := mboxName(s.mboxNumber + 1)
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	s.mboxNumber++
	s.mbox, s.mboxName, s.mboxBytes = f, name, 0
	return nil
}

// keep returns when the message is written, or why it is not.
func (s *store) keep(d *delivery) error {
	if d.kept == nil {
		d.kept = make(chan error, 1)
	}
	select {
	case s.in <- d:
		return <-d.kept
	case <-s.stop:
		return errClosed
	}
}

func (s *store) run() {
	defer close(s.done)
	batch := make([]*delivery, 0, gather)
	for {
		batch = batch[:0]
		select {
		case d := <-s.in:
			batch = append(batch, d)
		case <-s.stop:
			return
		}
		for bytes := batch[0].length; len(batch) < gather && bytes < gatherBytes; {
			select {
			case d := <-s.in:
				batch = append(batch, d)
				bytes += d.length
				continue
			default:
			}
			break
		}
		err := s.write(batch)
		for _, d := range batch {
			d.kept <- err
		}
	}
}

func (s *store) write(batch []*delivery) error {
	if !s.countOnly && (s.mbox == nil || s.mboxBytes >= s.rollBytes) {
		if err := s.roll(); err != nil {
			return fmt.Errorf("beginning a mail file: %w", err)
		}
	}
	s.mail, s.line = s.mail[:0], s.line[:0]
	lines := int64(0)
	for _, d := range batch {
		e := Entry{Time: time.Now(), From: d.from, MessageID: d.id, File: NotKept, Length: d.length}
		if !s.countOnly {
			s.mail = appendFromLine(s.mail, d.from, e.Time)
			e.File, e.Offset = s.mboxName, s.mboxBytes+int64(len(s.mail))
			begin := len(s.mail)
			s.mail = appendQuoted(s.mail, d.body)
			e.Length = int64(len(s.mail) - begin)
			if !bytes.HasSuffix(d.body, []byte("\n")) {
				s.mail = append(s.mail, '\n')
			}
			s.mail = append(s.mail, '\n')
		}
		for _, to := range d.to {
			e.To = to
			s.line = e.appendTo(s.line)
			lines++
		}
	}
	// First the mail, then its line: a line always points at a whole mail.
	if !s.countOnly {
		if err := s.append(s.mbox, s.mail); err != nil {
			s.mbox.Close()
			s.mbox = nil // part of it may be there: go on in another file
			return fmt.Errorf("writing %s: %w", s.mboxName, err)
		}
		s.mboxBytes += int64(len(s.mail))
	}
	if err := s.append(s.index, s.line); err != nil {
		if cut := s.index.Truncate(s.indexBytes); cut == nil {
			_, cut = s.index.Seek(s.indexBytes, io.SeekStart)
			err = errors.Join(err, cut)
		}
		return fmt.Errorf("writing %s: %w", indexName, err)
	}
	s.indexBytes += int64(len(s.line))
	s.accepted.Add(lines)
	if cap(s.mail) > 2*gatherBytes {
		s.mail = nil // one huge mail should not stay in memory
	}
	return nil
}

func (s *store) append(f *os.File, b []byte) error {
	if _, err := f.Write(b); err != nil {
		return err
	}
	if s.sync {
		return f.Sync()
	}
	return nil
}

func appendFromLine(to []byte, sender string, at time.Time) []byte {
	if sender == "" {
		sender = "MAILER-DAEMON"
	}
	to = append(append(to, fromWord...), strings.ReplaceAll(sender, " ", "_")...)
	to = append(to, ' ')
	return append(at.UTC().AppendFormat(to, time.ANSIC), '\n')
}

func (s *store) close() error {
	s.once.Do(func() { close(s.stop) })
	<-s.done
	err := s.index.Close()
	if s.mbox != nil {
		err = errors.Join(err, s.mbox.Close())
	}
	return err
}

// backwards reads the lines of a file from its end.
type backwards struct {
	f   io.ReaderAt
	end int64 // where the lines not yet read end

	line string // without its end
	at   int64  // where it begins
	torn bool   // it has no end; only the last line of a file can be
	err  error

	block []byte // read, up to end
}

const backwardsBytes = 64 << 10

func (b *backwards) next() bool {
	if b.end <= 0 || b.err != nil {
		return false
	}
	first := b.block == nil
	for {
		text := b.block
		if len(text) > 0 && text[len(text)-1] == '\n' {
			text = text[:len(text)-1]
		}
		cut := bytes.LastIndexByte(text, '\n') + 1
		whole := b.end == int64(len(b.block)) // the block reaches the file's begin
		if len(b.block) > 0 && (cut > 0 || whole) {
			b.torn = first && len(text) == len(b.block)
			b.line, b.at = string(text[cut:]), b.end-int64(len(b.block)-cut)
			b.block, b.end = b.block[:cut], b.at
			return true
		}
		more := min(backwardsBytes, b.end-int64(len(b.block)))
		block := make([]byte, more+int64(len(b.block)))
		if _, b.err = b.f.ReadAt(block[:more], b.end-int64(len(block))); b.err != nil {
			return false
		}
		copy(block[more:], b.block)
		b.block = block
	}
}
