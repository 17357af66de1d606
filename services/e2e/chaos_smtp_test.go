package e2e

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// The moods of a mail server.
const (
	moodGreeting   = "421 at the greeting"
	moodSession    = "421 in the session"
	moodRecipient  = "451 for recipients"
	moodSilent     = "silent after the last line"
	moodPipeline   = "closes in the middle of a pipeline"
	moodDownbroken = "closes after the last line"
)

// provider is a mail server with moods that counts every copy it has got to the
// last line. It shares no code with the services.
type provider struct {
	t    *testing.T
	addr string

	mu     sync.Mutex
	ln     net.Listener
	conns  map[net.Conn]bool
	left   map[string]int // how often a mood shows before it is over; -1: until told otherwise
	shown  map[string]int // how often a mood has shown
	copies map[string]int // whole messages by recipient, answered or not
	silent map[string]int // those of them that were not answered
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{t: t, conns: map[net.Conn]bool{}, left: map[string]int{}, shown: map[string]int{}, copies: map[string]int{}, silent: map[string]int{}}
	p.addr = freeAddr(t)
	t.Cleanup(p.close)
	return p
}

// open begins to listen.
func (p *provider) open() {
	p.t.Helper()
	ln, err := net.Listen("tcp", p.addr)
	require.NoError(p.t, err)
	p.mu.Lock()
	p.ln = ln
	p.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[c] = true
			p.mu.Unlock()
			go func() {
				p.talk(c)
				c.Close()
				p.mu.Lock()
				delete(p.conns, c)
				p.mu.Unlock()
			}()
		}
	}()
}

// close refuses connections and ends those there are.
func (p *provider) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		p.ln.Close()
	}
	for c := range p.conns {
		c.Close()
	}
}

// be changes the moods to those given, each with how often it shows before it is over, -1
// for ever. Without any the server is good.
func (p *provider) be(moods map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = maps.Clone(moods)
}

// is tells whether the mood shows now, and notes that it does.
func (p *provider) is(mood string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left[mood] == 0 {
		return false
	}
	p.left[mood]--
	p.shown[mood]++
	return true
}

func (p *provider) seen(mood string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown[mood]
}

// people is how many recipients have a copy.
func (p *provider) people() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.copies)
}

// count returns the copies and those that were never answered, by recipient.
func (p *provider) count() (copies, silent map[string]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.copies, p.silent
}

func (p *provider) talk(c net.Conn) {
	in := bufio.NewReader(c)
	say := func(line string) { fmt.Fprintf(c, "%s\r\n", line) }
	if p.is(moodGreeting) {
		say("421 4.3.2 too busy")
		return
	}
	say("220 provider")
	to := ""
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(strings.TrimSpace(line)); {
		case strings.HasPrefix(verb, "EHLO"):
			say("250-provider\r\n250-PIPELINING\r\n250 8BITMIME")
		case strings.HasPrefix(verb, "MAIL"):
			if p.is(moodSession) {
				say("421 4.3.2 shutting down")
				return
			}
			to = ""
			say("250 ok")
			if p.is(moodPipeline) {
				return
			}
		case strings.HasPrefix(verb, "RCPT"):
			if p.is(moodRecipient) {
				say("451 4.7.1 try again later")
				continue
			}
			_, after, _ := strings.Cut(line, "<")
			to, _, _ = strings.Cut(after, ">")
			say("250 ok")
		case verb == "DATA" && to == "":
			say("554 no recipients")
		case verb == "DATA":
			say("354 go on")
			for line != ".\r\n" {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
			}
			hangs := p.is(moodSilent)
			breaks := !hangs && p.is(moodDownbroken)
			p.mu.Lock()
			p.copies[to]++
			if hangs || breaks {
				p.silent[to]++
			}
			p.mu.Unlock()
			switch {
			case breaks:
				return
			case hangs:
				_, _ = in.ReadString('\n') // until the client has had enough
				return
			}
			say("250 taken")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// forget closes the server and begins the books anew.
func (p *provider) forget() {
	p.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.copies, p.silent = map[string]int{}, map[string]int{}
}
