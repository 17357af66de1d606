// Package outbox is a mail server that delivers nothing: every message it
// accepts is kept in an mbox file and listed in an index, and can be looked at
// on a web page.
//
// What it promises. A message is written to outbox/mail-NNNN.mbox and its line
// to outbox/index.tsv before it is answered with 250, so a message answered
// with 250 is in both after kill -9 (with Sync also after a power cut), and
// the index is the truth: a mail in a file without a line there was not
// accepted. Fields of a line, separated by tabs: time (RFC 3339, UTC), envelope
// sender, recipient, Message-ID, file, offset and length in bytes. A message
// to several recipients is kept once and has a line for each.
//
// Addresses ask for failures by the end of their local part:
//
//	c1+550@example.test   550 5.1.1 at RCPT, always
//	c1+451@example.test   451 4.3.0 at RCPT, once per address and process; then accepted
//	c1+hang@example.test  kept, then the connection is closed without an answer
//
// With CountOnly the index is kept and the messages are not (file "-", offset
// 0): that is the counting sink of the benchmarks.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
)

const (
	// DefaultSMTPAddr is where senders expect the server.
	DefaultSMTPAddr = "127.0.0.1:1025"
	// DefaultPageAddr is where people expect the page.
	DefaultPageAddr = "127.0.0.1:8025"

	// DefaultRollBytes is the size after which a new mbox file is begun.
	DefaultRollBytes = 64 << 20

	maxMessageBytes = 32 << 20 // announced as SIZE
	maxRecipients   = 1000     // of one message; RFC 5321 asks for 100

	// idleTimeout is above the five minutes that RFC 5321 grants a client.
	idleTimeout = 10 * time.Minute

	// closeTimeout is how long Close waits for messages that are under way.
	closeTimeout = 2 * time.Second
)

// Options says where the mail is kept. Only Dir is required.
type Options struct {
	Dir       string // made if missing; one process at a time
	CountOnly bool   // keep the index only
	Sync      bool   // fsync before 250
	RollBytes int64  // DefaultRollBytes if 0
	Logger    *slog.Logger
}

// Outbox is an open outbox. Serve listeners with ServeSMTP, the page with Handler.
type Outbox struct {
	store  *store
	server *smtp.Server
	dir    string
	log    *slog.Logger

	busy atomic.Int64 // messages between DATA and their answer

	mu        sync.Mutex
	delayed   map[string]struct{} // +451 addresses that have had their 451
	listeners []net.Listener
}

// Open opens the outbox in o.Dir and continues after what is there.
func Open(o Options) (*Outbox, error) {
	if o.Dir == "" {
		return nil, errors.New("opening outbox: no directory")
	}
	if o.RollBytes == 0 {
		o.RollBytes = DefaultRollBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := openStore(o)
	if err != nil {
		return nil, fmt.Errorf("opening outbox: %w", err)
	}
	b := &Outbox{store: s, dir: o.Dir, log: o.Logger, delayed: map[string]struct{}{}}
	b.server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &session{box: b, conn: c.Conn()}, nil
	}))
	b.server.Domain = "outbox.invalid"
	b.server.MaxMessageBytes = maxMessageBytes
	b.server.MaxRecipients = maxRecipients
	b.server.ReadTimeout = idleTimeout
	b.server.WriteTimeout = time.Minute
	b.server.EnableSMTPUTF8 = true // nothing here minds
	b.server.ErrorLog = smtpLog{o.Logger}
	return b, nil
}

// ServeSMTP accepts mail on l until Close.
func (b *Outbox) ServeSMTP(l net.Listener) error {
	b.mu.Lock()
	b.listeners = append(b.listeners, l)
	b.mu.Unlock()
	if err := b.server.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving smtp on %s: %w", l.Addr(), err)
	}
	return nil
}

// Handler serves the page, and GET /healthz.
func (b *Outbox) Handler() http.Handler { return newPage(b.dir) }

// Accepted counts the lines written to the index by this process.
func (b *Outbox) Accepted() int64 { return b.store.accepted.Load() }

// Close lets messages that are under way be answered, for two seconds, and
// then drops every connection.
func (b *Outbox) Close() error {
	b.mu.Lock()
	for _, l := range b.listeners {
		l.Close()
	}
	b.mu.Unlock()
	deadline, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for b.busy.Load() > 0 && deadline.Err() == nil {
		select {
		case <-poll.C:
		case <-deadline.Done():
		}
	}
	_ = b.server.Close() // the listeners are closed already, which it reports
	if err := b.store.close(); err != nil {
		return fmt.Errorf("closing outbox: %w", err)
	}
	return nil
}

// firstTime says whether a +451 address is seen for the first time.
func (b *Outbox) firstTime(address string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, seen := b.delayed[address]
	b.delayed[address] = struct{}{}
	return !seen
}

// smtpLog takes go-smtp's complaints, which are about connections that
// clients broke off. They may quote addresses, so the text stays out.
type smtpLog struct{ log *slog.Logger }

func (l smtpLog) Printf(format string, _ ...any) {
	l.log.Debug("smtp connection ended badly", "kind", strings.TrimSpace(format))
}
func (l smtpLog) Println(...any) { l.log.Debug("smtp connection ended badly") }
