// Package fake is a mail server that does what a test tells it to: it refuses,
// stays silent or hangs up at any point of the dialogue, by recipient and by
// how often that recipient has been tried.
package fake

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// What a script answers instead of a line.
const (
	Accept = ""       // the usual positive reply
	Drop   = "<drop>" // close the connection without an answer
	Hang   = "<hang>" // never answer; the connection stays open until the client closes it
)

// Script decides the server's replies. A nil function accepts. try counts from
// 1, per recipient (Rcpt, End) or over all (Greeting, Mail). A reply of code
// 421 is sent, and the connection closed.
type Script struct {
	Extensions []string // announced after EHLO; nil: PIPELINING, 8BITMIME, SMTPUTF8, SIZE 10485760, ENHANCEDSTATUSCODES. BDAT is understood with CHUNKING
	TLS        *tls.Config
	Greeting   func(try int) string
	Auth       func(argument string) string
	Mail       func(try int) string
	Rcpt       func(to string, try int) string
	Data       func(to string, try int) string
	End        func(to string, try int) string // after the last line, or the last byte of a chunk
}

// Mail is a message that was accepted or, with Answered false, fully received
// and never answered.
type Mail struct {
	From, Params, To string
	Bytes            []byte // as it came, dots undone
	Answered         bool
	Connection       int
}

// Server listens on a port of its own until the test ends.
type Server struct {
	Addr string

	mu       sync.Mutex
	script   Script
	mails    []Mail
	tries    map[string]int
	conns    map[net.Conn]int
	accepted int
	answered int
	writes   []string // command chunks as they arrived, one per read
	ln       net.Listener
}

// Start begins to listen on addr, or on a free port if that is empty.
func Start(t testing.TB, addr string, s Script) *Server {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f := &Server{Addr: ln.Addr().String(), script: s, tries: map[string]int{}, conns: map[net.Conn]int{}, ln: ln}
	go f.serve(ln)
	t.Cleanup(f.Stop)
	return f
}

// Stop closes the port and every connection.
func (f *Server) Stop() {
	f.ln.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

// Mails returns what came in so far.
func (f *Server) Mails() []Mail {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Mail(nil), f.mails...)
}

// Accepted is how many messages were accepted so far.
func (f *Server) Accepted() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answered
}

// Tries is how often RCPT named the recipient.
func (f *Server) Tries(to string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tries["rcpt "+to]
}

// Connections is how many connections were opened.
func (f *Server) Connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accepted
}

// Chunks returns the client's writes as the server's reads saw them, without
// what came after DATA.
func (f *Server) Chunks() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.writes...)
}

func (f *Server) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries[what]++
	return f.tries[what]
}

func (f *Server) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.accepted++
		n := f.accepted
		f.conns[c] = n
		f.mu.Unlock()
		go func() {
			f.talk(c, n)
			c.Close()
			f.mu.Lock()
			delete(f.conns, c)
			f.mu.Unlock()
		}()
	}
}

type recorder struct {
	io.Reader
	f   *Server
	off bool
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 && !r.off {
		r.f.mu.Lock()
		r.f.writes = append(r.f.writes, string(p[:n]))
		r.f.mu.Unlock()
	}
	return n, err
}

// talk holds one dialogue.
func (f *Server) talk(c net.Conn, number int) {
	s := f.script
	rec := &recorder{Reader: c, f: f}
	in := bufio.NewReaderSize(rec, 64<<10)
	// say returns false when the dialogue is over.
	say := func(reply, usual string) bool {
		switch reply {
		case Accept:
			reply = usual
		case Drop:
			return false
		case Hang:
			_, _ = io.Copy(io.Discard, in)
			return false
		}
		fmt.Fprintf(c, "%s\r\n", reply)
		return !strings.HasPrefix(reply, "421")
	}
	greeting := Accept
	if n := f.count("greeting"); s.Greeting != nil {
		greeting = s.Greeting(n)
	}
	if !say(greeting, "220 fake ready") {
		return
	}
	var m Mail
	var mailOK, rcptOK bool
	// received answers for a whole message.
	received := func(body []byte) bool {
		reply := Accept
		m.Bytes = body
		if n := f.count("end " + m.To); s.End != nil {
			reply = s.End(m.To, n)
		}
		m.Answered = reply == Accept
		if m.Answered || reply == Hang || reply == Drop {
			f.mu.Lock()
			f.mails = append(f.mails, m)
			if m.Answered {
				f.answered++
			}
			f.mu.Unlock()
		}
		return say(reply, fmt.Sprintf("250 2.0.0 Ok: queued as Q%d", number))
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, arg, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			ext := s.Extensions
			if ext == nil {
				ext = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10485760", "ENHANCEDSTATUSCODES"}
			}
			if _, secure := c.(*tls.Conn); s.TLS != nil && !secure {
				ext = append(ext, "STARTTLS")
			}
			fmt.Fprintf(c, "250%s fake\r\n", map[bool]string{true: "-", false: " "}[len(ext) > 0])
			for i, e := range ext {
				fmt.Fprintf(c, "250%s%s\r\n", map[bool]string{true: "-", false: " "}[i < len(ext)-1], e)
			}
		case "STARTTLS":
			fmt.Fprint(c, "220 go ahead\r\n")
			secure := tls.Server(c, s.TLS)
			if secure.Handshake() != nil {
				return
			}
			c, rec = secure, &recorder{Reader: secure, f: f}
			in = bufio.NewReaderSize(rec, 64<<10)
		case "AUTH":
			reply := "535 5.7.8 no"
			if s.Auth != nil {
				reply = s.Auth(arg)
			}
			if !say(reply, "235 welcome") {
				return
			}
		case "MAIL":
			reply := Accept
			if n := f.count("mail"); s.Mail != nil {
				reply = s.Mail(n)
			}
			addr, params, _ := strings.Cut(strings.TrimPrefix(arg, "FROM:<"), ">")
			m = Mail{From: addr, Params: strings.TrimSpace(params), Connection: number}
			mailOK, rcptOK = reply == Accept, false
			if !say(reply, "250 2.1.0 sender ok") {
				return
			}
		case "RCPT":
			m.To, _, _ = strings.Cut(strings.TrimPrefix(arg, "TO:<"), ">")
			reply := Accept
			n := f.count("rcpt " + m.To)
			if !mailOK {
				reply = "503 5.5.1 no sender"
			} else if s.Rcpt != nil {
				reply = s.Rcpt(m.To, n)
			}
			rcptOK = mailOK && reply == Accept
			if !say(reply, "250 2.1.5 recipient ok") {
				return
			}
		case "DATA":
			reply := Accept
			if !rcptOK {
				reply = "554 5.5.1 no valid recipients"
			} else if n := f.count("data " + m.To); s.Data != nil {
				reply = s.Data(m.To, n)
			}
			if !say(reply, "354 go on") {
				return
			}
			if reply != Accept {
				continue
			}
			rec.off = true
			var body bytes.Buffer
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				body.WriteString(strings.TrimPrefix(line, "."))
			}
			rec.off = false
			if !received(body.Bytes()) {
				return
			}
		case "BDAT":
			var size int
			if n, _ := fmt.Sscanf(arg, "%d LAST", &size); n != 1 || !slices.Contains(s.Extensions, "CHUNKING") {
				fmt.Fprint(c, "502 5.5.1 unknown\r\n")
				continue
			}
			rec.off = true
			body := make([]byte, size)
			if _, err := io.ReadFull(in, body); err != nil {
				return
			}
			rec.off = false
			if !rcptOK {
				fmt.Fprint(c, "503 5.5.1 no valid recipients\r\n")
				continue
			}
			mailOK, rcptOK = false, false
			if !received(body) {
				return
			}
		case "RSET", "NOOP":
			mailOK, rcptOK = false, false
			fmt.Fprint(c, "250 2.0.0 ok\r\n")
		case "QUIT":
			fmt.Fprint(c, "221 2.0.0 bye\r\n")
			return
		default:
			fmt.Fprint(c, "502 5.5.1 unknown\r\n")
		}
	}
}
