package outbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	indexName = "index.tsv"

	// NotKept is the file of a message that was only counted.
	NotKept = "-"
)

// Entry is one line of the index: one accepted message for one recipient.
type Entry struct {
	Time      time.Time
	From, To  string // envelope addresses
	MessageID string // as in the header, angle brackets included; may be empty
	File      string // in the outbox's directory, or NotKept
	Offset    int64  // of the message's first byte
	Length    int64  // in bytes; in the file it is quoted as mboxrd (">From ")
}

func (e Entry) appendTo(line []byte) []byte {
	line = e.Time.UTC().AppendFormat(line, time.RFC3339Nano)
	for _, field := range [...]string{e.From, e.To, e.MessageID, e.File} {
		line = append(line, '\t')
		at := len(line)
		line = append(line, field...)
		for i := at; i < len(line); i++ {
			if line[i] < ' ' { // a tab or a line's end would be another field or line
				line[i] = ' '
			}
		}
	}
	line = strconv.AppendInt(append(line, '\t'), e.Offset, 10)
	line = strconv.AppendInt(append(line, '\t'), e.Length, 10)
	return append(line, '\n')
}

// ParseEntry reads one line of the index, with or without its end.
func ParseEntry(line string) (Entry, error) {
	fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	if len(fields) != 7 {
		return Entry{}, fmt.Errorf("reading an index line: %d fields, want 7", len(fields))
	}
	e := Entry{From: fields[1], To: fields[2], MessageID: fields[3], File: fields[4]}
	var errs [3]error
	e.Time, errs[0] = time.Parse(time.RFC3339Nano, fields[0])
	e.Offset, errs[1] = strconv.ParseInt(fields[5], 10, 64)
	e.Length, errs[2] = strconv.ParseInt(fields[6], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return Entry{}, fmt.Errorf("reading an index line: %w", err)
	}
	return e, nil
}

// ReadIndex calls fn for each accepted message in dir, oldest first, until it
// returns an error. It may be called while the outbox is open, by any process;
// a last line that is still being written is left out. An outbox that does not
// exist yet is empty.
func ReadIndex(dir string, fn func(Entry) error) error {
	f, err := os.Open(filepath.Join(dir, indexName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the outbox: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the outbox: %w", err)
		}
		e, err := ParseEntry(line)
		if err != nil {
			return fmt.Errorf("reading the outbox: %w", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// ReadMail returns a message as it was received, byte for byte.
func ReadMail(dir string, e Entry) ([]byte, error) {
	if e.File == NotKept {
		return nil, fmt.Errorf("reading mail: %w: it was only counted", os.ErrNotExist)
	}
	if filepath.Base(e.File) != e.File || e.Length < 0 {
		return nil, fmt.Errorf("reading mail: bad place %q", e.File)
	}
	f, err := os.Open(filepath.Join(dir, e.File))
	if err != nil {
		return nil, fmt.Errorf("reading mail: %w", err)
	}
	defer f.Close()
	raw := make([]byte, e.Length)
	if _, err := f.ReadAt(raw, e.Offset); err != nil {
		return nil, fmt.Errorf("reading mail: %s at %d: %w", e.File, e.Offset, err)
	}
	return unquote(raw), nil
}

var fromWord = []byte("From ")

// appendQuoted appends a message as mboxrd keeps it: each line that begins
// with any number of ">" and "From " gets one more ">".
func appendQuoted(to, message []byte) []byte {
	copied := 0
	for i, from := 0, 0; ; from = i + len(fromWord) {
		next := bytes.Index(message[from:], fromWord)
		if next < 0 {
			return append(to, message[copied:]...)
		}
		i = from + next
		at := i
		for at > copied && message[at-1] == '>' {
			at--
		}
		if at == 0 || message[at-1] == '\n' {
			to = append(append(to, message[copied:at]...), '>')
			copied = at
		}
	}
}

func unquote(raw []byte) []byte {
	out := raw[:0]
	for line := range bytes.Lines(raw) {
		if rest := bytes.TrimLeft(line, ">"); len(rest) < len(line) && bytes.HasPrefix(rest, fromWord) {
			line = line[1:]
		}
		out = append(out, line...)
	}
	return out
}
