package outbox

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/emersion/go-smtp"
)

// session is one SMTP connection.
type session struct {
	box  *Outbox
	conn net.Conn

	// With BDAT, go-smtp runs Data beside the commands and may call Reset
	// before it has returned.
	mu sync.Mutex

	from string
	to   []string
	hang bool
	busy bool

	buf  []byte // the message, reused
	mail delivery
}

// keepBufferBytes is the largest buffer that an idle connection holds on to.
const keepBufferBytes = 1 << 20

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	local, _, _ := cutLast(to, "@")
	switch {
	case strings.HasSuffix(local, "+550"):
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such mailbox, as the address asks"}
	case strings.HasSuffix(local, "+451") && s.box.firstTime(to):
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "not now, as the address asks; try again"}
	case strings.HasSuffix(local, "+hang"):
		s.hang = true
	}
	s.to = append(s.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = true
	s.box.busy.Add(1) // until Reset, which go-smtp calls after the answer is written

	head, length, err := s.read(r)
	if err != nil {
		var known *smtp.SMTPError
		if errors.As(err, &known) {
			return known // too large
		}
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 4, 2}, Message: "message was broken off"}
	}
	s.mail.from, s.mail.to = s.from, s.to
	s.mail.id = messageID(head)
	s.mail.length = length
	s.mail.body = nil
	if !s.box.store.countOnly {
		s.mail.body = s.buf
	}
	if err := s.box.store.keep(&s.mail); err != nil {
		s.box.log.Error("keeping a message", "error", err)
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "cannot write the outbox"}
	}
	if s.hang {
		s.conn.Close()
	}
	return nil
}

// read takes in a message. When only counting, it keeps no more than the
// first piece, which holds the header.
func (s *session) read(r io.Reader) (head []byte, length int64, err error) {
	if s.buf == nil {
		s.buf = make([]byte, 0, 32<<10)
	}
	s.buf = s.buf[:0]
	for {
		if len(s.buf) == cap(s.buf) {
			if s.box.store.countOnly {
				break
			}
			s.buf = append(s.buf, 0)[:len(s.buf)]
		}
		n, err := r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+n]
		if errors.Is(err, io.EOF) {
			return s.buf, int64(len(s.buf)), nil
		}
		if err != nil {
			return nil, 0, err
		}
	}
	rest, err := io.Copy(io.Discard, r)
	return s.buf, int64(len(s.buf)) + rest, err
}

// Reset is called between messages and after each.
func (s *session) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from, s.to, s.hang = "", s.to[:0], false
	if cap(s.buf) > keepBufferBytes {
		s.buf = nil
	}
	if s.busy {
		s.busy = false
		s.box.busy.Add(-1)
	}
}

// Logout is called when the connection ends, in whatever state.
func (s *session) Logout() error { return nil }

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// messageID finds the Message-ID in a message's header; empty if there is none.
func messageID(message []byte) string {
	const name = "message-id:"
	for len(message) > 0 {
		line := message
		if end := bytes.IndexByte(message, '\n'); end >= 0 {
			line, message = message[:end], message[end+1:]
		} else {
			message = nil
		}
		if len(bytes.TrimRight(line, "\r")) == 0 {
			return "" // the header ends
		}
		if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
			continue
		}
		value := bytes.TrimSpace(line[len(name):])
		if len(value) == 0 && len(message) > 0 && (message[0] == ' ' || message[0] == '\t') { // folded
			next, _, _ := bytes.Cut(message, []byte("\n"))
			value = bytes.TrimSpace(next)
		}
		return string(value)
	}
	return ""
}
