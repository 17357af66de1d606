// Package smtp is a small SMTP client for one purpose: handing over one message
// to one recipient, thousands of times a second, and saying afterwards with
// certainty whether the server could have taken it.
//
// It promises that an error for which MayBeAccepted is false comes from a
// message that the server cannot have accepted: the terminating line was not
// written, or the server refused. Where the server announces PIPELINING (RFC
// 2920) it sends the envelope in one write, and where it announces CHUNKING (RFC
// 3030) the message as one chunk, in which nobody looks for a line with a dot: a
// message costs two round trips instead of five, and both sides less of their
// time. The Go clients at hand wait after each command and do not send chunks.
//
// The envelope and the message are never one write, although chunks allow it: a
// server that has closed an old connection meanwhile is then found out before
// anything was sent that it might have accepted.
package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/crash"
)

// TLS says what to do about STARTTLS.
type TLS string

// The values of TLS.
const (
	// TLSOff never asks for it.
	TLSOff TLS = "off"
	// TLSOpportunistic encrypts when the server offers it and does not check
	// whose certificate it is, as mail servers do among each other: it keeps
	// out who only listens (RFC 7435).
	TLSOpportunistic TLS = "opportunistic"
	// TLSRequired sends nothing without a verified certificate.
	TLSRequired TLS = "required"
)

// Config is how to reach a server.
type Config struct {
	Addr      string // host:port
	Hello     string // name given with EHLO
	TLS       TLS
	TLSConfig *tls.Config // nil: the system's roots; ServerName defaults to Addr's host
	Username  string      // AUTH PLAIN when not empty
	Password  string
	NoChunks  bool // DATA, whatever the server announces

	ConnectTimeout time.Duration // TCP, greeting, EHLO, STARTTLS and AUTH together
	ReplyTimeout   time.Duration // each reply before the message's last line
	DataTimeout    time.Duration // the reply to the message's last line
}

// Conn is one connection with its greeting done. It is not safe for concurrent use.
type Conn struct {
	cfg  Config
	nc   net.Conn
	in   *bufio.Reader
	out  []byte // commands being put together
	tls  bool
	ext  extensions
	sent int
	used time.Time // when the last reply came
}

type extensions struct {
	pipelining, chunking, eightBit, utf8, startTLS, authPlain bool
	sizeBytes                                                 int64 // 0: not announced or without limit
}

// Dial connects, says EHLO and, as configured, STARTTLS and AUTH. Its errors
// have one of the stages up to StageAuth and say nothing about any message.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	c, err := open(ctx, cfg)
	if err == nil && cfg.TLS != TLSOff && (c.ext.startTLS || cfg.TLS == TLSRequired) {
		err = c.startTLS(ctx)
		if err != nil && cfg.TLS == TLSOpportunistic {
			// The handshake has spoilt the connection. A server whose TLS is
			// broken still gets its mail: that is what opportunistic means.
			c.nc.Close()
			c, err = open(ctx, cfg)
		}
	}
	if err == nil && cfg.Username != "" {
		err = c.auth()
	}
	if err != nil {
		if c != nil {
			c.nc.Close()
		}
		return nil, err
	}
	c.used = time.Now()
	return c, nil
}

func open(ctx context.Context, cfg Config) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, &Error{Stage: StageConnect, Err: err}
	}
	c := &Conn{cfg: cfg, nc: nc, in: bufio.NewReaderSize(nc, 4096)}
	if deadline, ok := ctx.Deadline(); ok {
		nc.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	reply, err := c.read(StageGreeting)
	if err == nil && reply.Code != 220 {
		err = refused(StageGreeting, reply)
	}
	if err == nil {
		err = c.hello()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) hello() error {
	reply, err := c.command(StageHello, "EHLO "+c.cfg.Hello)
	if err != nil {
		return err
	}
	c.ext = extensions{}
	if reply.Code != 250 {
		reply, err = c.command(StageHello, "HELO "+c.cfg.Hello)
		if err == nil && reply.Code != 250 {
			err = refused(StageHello, reply)
		}
		return err
	}
	lines := strings.Split(reply.Text, "\n")
	for _, line := range lines[1:] { // the first line is the server's name
		word, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToUpper(word) {
		case "PIPELINING":
			c.ext.pipelining = true
		case "CHUNKING":
			c.ext.chunking = !c.cfg.NoChunks
		case "8BITMIME":
			c.ext.eightBit = true
		case "SMTPUTF8":
			c.ext.utf8 = true
		case "STARTTLS":
			c.ext.startTLS = true
		case "SIZE":
			c.ext.sizeBytes, _ = strconv.ParseInt(strings.TrimSpace(args), 10, 64)
		case "AUTH":
			for _, mechanism := range strings.Fields(args) {
				c.ext.authPlain = c.ext.authPlain || strings.EqualFold(mechanism, "PLAIN")
			}
		}
	}
	return nil
}

func (c *Conn) startTLS(ctx context.Context) error {
	if !c.ext.startTLS {
		return &Error{Stage: StageTLS, Err: errors.New("the server does not offer STARTTLS, which is required")}
	}
	reply, err := c.command(StageTLS, "STARTTLS")
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		return refused(StageTLS, reply)
	}
	if c.in.Buffered() > 0 {
		// Whatever stands behind the 220 was written before encryption and by
		// whoever sits between: it must not be read as an answer from inside.
		return &Error{Stage: StageTLS, Err: errors.New("the server sent data before the handshake")}
	}
	conf := &tls.Config{}
	if c.cfg.TLSConfig != nil {
		conf = c.cfg.TLSConfig.Clone()
	}
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(c.cfg.Addr)
	}
	if c.cfg.TLS == TLSOpportunistic {
		conf.InsecureSkipVerify = true // see TLSOpportunistic
	}
	secure := tls.Client(c.nc, conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		return &Error{Stage: StageTLS, Err: err}
	}
	c.nc, c.in, c.tls = secure, bufio.NewReaderSize(secure, 4096), true
	return c.hello()
}

func (c *Conn) auth() error {
	if !c.ext.authPlain {
		return &Error{Stage: StageAuth, Err: errors.New("the server does not offer AUTH PLAIN")}
	}
	secret := base64.StdEncoding.EncodeToString([]byte("\x00" + c.cfg.Username + "\x00" + c.cfg.Password))
	reply, err := c.command(StageAuth, "AUTH PLAIN "+secret)
	if err == nil && reply.Code != 235 {
		err = refused(StageAuth, reply)
	}
	return err
}

// Send hands over one message to one recipient and returns the server's final
// reply. The message's lines are ended by CRLF on the wire whatever they end
// with in mime. Every error is an *Error. After an error for which Usable is
// false the connection must be closed.
func (c *Conn) Send(ctx context.Context, from, to string, mime []byte) (Reply, error) {
	params, err := c.parameters(from, to, mime)
	if err != nil {
		return Reply{}, err
	}
	if c.in.Buffered() > 0 && !bytes.HasPrefix(peek(c.in), []byte("421")) {
		return Reply{}, errUnasked(StageMail)
	}
	// The context ends the call at any point, a read included.
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.sent++

	c.out = c.out[:0]
	c.out = append(append(append(append(c.out, "MAIL FROM:<"...), from...), '>'), params...)
	c.out = append(append(append(append(c.out, "\r\nRCPT TO:<"...), to...), '>'), "\r\n"...)
	stages := []Stage{StageMail, StageRcpt}
	if !c.ext.chunking {
		c.out = append(c.out, "DATA\r\n"...)
		stages = append(stages, StageData)
	}
	if err := c.envelope(ctx, stages); err != nil {
		return Reply{}, err
	}
	crash.At(crash.SenderInvited)
	return c.body(ctx, mime)
}

// ErrNoChunks says that the server announced CHUNKING and does not know BDAT. It
// has accepted nothing.
var ErrNoChunks = errors.New("the server announces CHUNKING and does not take chunks")

// errUnasked: a line more than there were commands would be read as the answer to
// the next one, and "accepted" be said of the wrong message.
func errUnasked(s Stage) *Error {
	return &Error{Stage: s, Err: errors.New("the server spoke without being asked")}
}

func peek(in *bufio.Reader) []byte {
	b, _ := in.Peek(in.Buffered())
	return b
}

// envelope sends what c.out holds, MAIL, RCPT and, unless the message goes as a
// chunk, DATA, in one write or each in its own.
func (c *Conn) envelope(ctx context.Context, stages []Stage) error {
	rest := c.out
	var first *Error
	for i, stage := range stages {
		if i == 0 || !c.ext.pipelining {
			n := len(rest)
			if !c.ext.pipelining {
				n = bytes.IndexByte(rest, '\n') + 1
			}
			c.deadline(ctx, c.cfg.ReplyTimeout)
			if _, err := c.nc.Write(rest[:n]); err != nil {
				return &Error{Stage: stage, Err: err}
			}
			rest = rest[n:]
		}
		reply, err := c.read(stage)
		if err != nil {
			// The answer that came before the connection broke is the better
			// one: "421 shutting down" and then nothing.
			if first != nil {
				first.broken = true
				return first
			}
			return err
		}
		want := 250
		if stage == StageData {
			want = 354
		} else if stage == StageRcpt && reply.Code == 251 {
			continue
		}
		if reply.Code == want {
			if stage == StageData && first != nil {
				// RFC 2920 3.1: the server invites a message that has no
				// recipient. An empty one must be sent, and is refused.
				if err := c.endEmpty(ctx); err != nil {
					first.broken = true
				}
				return first
			}
			continue
		}
		if first == nil {
			first = refused(stage, reply)
		}
		if reply.Code == 421 {
			first.broken = true // the server closes after it
			return first
		}
		if !c.ext.pipelining {
			break
		}
	}
	if first == nil {
		if c.in.Buffered() > 0 {
			return errUnasked(StageData)
		}
		return nil
	}
	return c.reset(ctx, first)
}

// reset ends a transaction that the next message must not join, after a refusal.
func (c *Conn) reset(ctx context.Context, first *Error) *Error {
	c.deadline(ctx, c.cfg.ReplyTimeout)
	if _, err := io.WriteString(c.nc, "RSET\r\n"); err != nil {
		first.broken = true
		return first
	}
	if reply, err := c.read(first.Stage); err != nil || reply.Code != 250 {
		first.broken = true
	}
	return first
}

func (c *Conn) endEmpty(ctx context.Context) error {
	c.deadline(ctx, c.cfg.ReplyTimeout)
	if _, err := io.WriteString(c.nc, ".\r\n"); err != nil {
		return err
	}
	_, err := c.read(StageData)
	return err
}

var (
	lastLine   = []byte("\r\n.\r\n")
	justTheDot = lastLine[2:]
)

// body writes the message, as a chunk or with its last line, and reads the final
// reply.
func (c *Conn) body(ctx context.Context, mime []byte) (Reply, error) {
	dots := !c.ext.chunking
	if !plain(mime, dots) {
		mime = stuffed(mime, dots)
	}
	ended := len(mime) == 0 || bytes.HasSuffix(mime, lastLine[:2])
	tail := lastLine
	switch {
	case !dots && ended:
		tail = nil
	case !dots:
		tail = lastLine[:2]
	case ended:
		tail = justTheDot
	}
	c.out = c.out[:0]
	if c.ext.chunking {
		c.out = append(strconv.AppendInt(append(c.out, "BDAT "...), int64(len(mime)+len(tail)), 10), " LAST\r\n"...)
	}
	c.deadline(ctx, c.cfg.DataTimeout)
	all := int64(len(c.out) + len(mime) + len(tail))
	parts := net.Buffers{c.out, mime, tail}
	n, err := parts.WriteTo(c.nc)
	if err != nil {
		// Without its last byte the message is not accepted. How much of a
		// failed write left an encrypted connection cannot be known.
		return Reply{}, &Error{Stage: StageBody, Err: err, MayBeAccepted: c.tls || n == all}
	}
	crash.At(crash.SenderAsked)
	reply, err := c.read(StageEnd)
	if err != nil {
		// From here on the message may lie in the mailbox.
		err.(*Error).MayBeAccepted = true
		return Reply{}, err
	}
	if reply.Code/100 == 2 {
		return reply, nil
	}
	e := refused(StageEnd, reply)
	switch {
	case reply.Code == 421:
		e.broken = true
	case c.ext.chunking && reply.Code >= 500 && reply.Code <= 504:
		// The chunk may be taken for commands now.
		return Reply{}, &Error{Stage: StageHello, Err: fmt.Errorf("%w: %s", ErrNoChunks, reply)}
	case c.ext.chunking:
		return Reply{}, c.reset(ctx, e) // RFC 3030 2: what is left of the transaction is not defined
	}
	return Reply{}, e
}

// plain reports whether a message can go as it is: each line feed stands behind a
// carriage return and, where dots matter, no line begins with one.
func plain(mime []byte, dots bool) bool {
	lines := 0
	for rest := mime; len(rest) > 0; lines++ {
		if dots && rest[0] == '.' {
			return false
		}
		n := bytes.IndexByte(rest, '\n')
		if n < 0 {
			break
		}
		if n == 0 || rest[n-1] != '\r' {
			return false
		}
		rest = rest[n+1:]
	}
	return bytes.Count(mime, lastLine[:1]) == lines
}

// stuffed makes every end of line CRLF, as a bare one means different things to
// different servers, and where dots matter doubles the one at the beginning of a
// line.
func stuffed(mime []byte, dots bool) []byte {
	out := make([]byte, 0, len(mime)+len(mime)/32+16)
	begin := true
	for i := 0; i < len(mime); i++ {
		b := mime[i]
		switch {
		case b == '\r':
			if i+1 < len(mime) && mime[i+1] == '\n' {
				i++
			}
			out, begin = append(out, '\r', '\n'), true
			continue
		case b == '\n':
			out, begin = append(out, '\r', '\n'), true
			continue
		case b == '.' && begin && dots:
			out = append(out, '.')
		}
		out, begin = append(out, b), false
	}
	return out
}

// parameters returns what follows MAIL FROM, or a refusal by our own judgement
// where the server's announced limits make the answer certain.
func (c *Conn) parameters(from, to string, mime []byte) (string, error) {
	if !address(from, true) {
		return "", local(553, "5.1.7", "not an address for MAIL FROM")
	}
	if !address(to, false) {
		return "", local(553, "5.1.3", "not an address for RCPT TO")
	}
	if c.ext.sizeBytes > 0 && int64(len(mime)) > c.ext.sizeBytes {
		return "", local(552, "5.3.4", fmt.Sprintf("the message has %d bytes, the server takes %d", len(mime), c.ext.sizeBytes))
	}
	params := ""
	if c.ext.sizeBytes > 0 {
		params = " SIZE=" + strconv.Itoa(len(mime))
	}
	if !ascii(mime) {
		if !c.ext.eightBit {
			return "", local(554, "5.6.3", "the message has 8-bit bytes, which the server does not take")
		}
		params += " BODY=8BITMIME"
	}
	if !ascii([]byte(from)) || !ascii([]byte(to)) {
		if !c.ext.utf8 {
			return "", local(553, "5.6.7", "an address beyond ASCII, which the server does not take")
		}
		params += " SMTPUTF8"
	}
	return params, nil
}

// address reports whether s can stand between the angle brackets without being
// read as something else. It does not judge whether anybody lives there.
func address(s string, emptyAllowed bool) bool {
	if s == "" {
		return emptyAllowed // the null sender of bounces
	}
	if len(s) > 320 || s[0] == '"' { // a quoted local part may hide a bracket
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == '<' || s[i] == '>' || s[i] == 0x7f {
			return false
		}
	}
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1
}

func ascii(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return false
		}
	}
	for _, x := range b {
		if x >= 0x80 {
			return false
		}
	}
	return true
}

// Ping asks with NOOP whether an idle connection is still there.
func (c *Conn) Ping(ctx context.Context) error {
	c.deadline(ctx, c.cfg.ReplyTimeout)
	reply, err := c.command(StageHello, "NOOP")
	if err == nil && reply.Code/100 != 2 {
		err = refused(StageHello, reply)
	}
	return err
}

// Messages is how many messages the connection was asked to hand over.
func (c *Conn) Messages() int { return c.sent }

// Idle is for how long the server has said nothing.
func (c *Conn) Idle() time.Duration { return time.Since(c.used) }

// Close says goodbye without waiting for an answer.
func (c *Conn) Close() {
	c.nc.SetDeadline(time.Now().Add(100 * time.Millisecond))
	io.WriteString(c.nc, "QUIT\r\n")
	c.nc.Close()
}

// Abort closes a connection whose state is not known.
func (c *Conn) Abort() { c.nc.Close() }

// deadline gives the next write and reply d, or what is left of ctx.
func (c *Conn) deadline(ctx context.Context, d time.Duration) {
	t := time.Now().Add(d)
	if limit, ok := ctx.Deadline(); ok && limit.Before(t) {
		t = limit
	}
	c.nc.SetDeadline(t)
	if ctx.Err() != nil { // AfterFunc may have run before the line above
		c.nc.SetDeadline(time.Unix(1, 0))
	}
}

func (c *Conn) command(stage Stage, line string) (Reply, error) {
	if _, err := io.WriteString(c.nc, line+"\r\n"); err != nil {
		return Reply{}, &Error{Stage: stage, Err: err}
	}
	return c.read(stage)
}

// maxReplyLines bounds what a server can make us keep.
const maxReplyLines = 128

func (c *Conn) read(stage Stage) (Reply, error) {
	var r Reply
	for n := 0; n < maxReplyLines; n++ {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return Reply{}, &Error{Stage: stage, Err: err}
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) < 3 || line[0] < '2' || line[0] > '5' || (len(line) > 3 && line[3] != ' ' && line[3] != '-') {
			return Reply{}, &Error{Stage: stage, Err: errors.New("the server's answer is not SMTP")}
		}
		code, err := strconv.Atoi(string(line[:3]))
		if err != nil || (r.Code != 0 && code != r.Code) {
			return Reply{}, &Error{Stage: stage, Err: errors.New("the server's answer is not SMTP")}
		}
		text := ""
		if len(line) > 4 {
			text = string(line[4:])
		}
		if r.Code != 0 {
			text = r.Text + "\n" + text
		}
		r.Code, r.Text = code, text
		if len(line) == 3 || line[3] == ' ' {
			c.used = time.Now()
			return r, nil
		}
	}
	return Reply{}, &Error{Stage: stage, Err: errors.New("the server's answer does not end")}
}
