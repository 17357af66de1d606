package smtp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// PoolConfig bounds a pool.
type PoolConfig struct {
	Connections           int           // open at the same time
	MessagesPerConnection int           // a connection is closed after so many
	IdleLimit             time.Duration // a connection unused for longer is closed
}

// A server that counts connections says so in its greeting; then the pool makes
// do with those it has for this long before it tries one more.
const limitedFor = 30 * time.Second

// A connection that was silent for longer is asked with NOOP before a message
// is trusted to it: servers close idle connections after as little as a minute.
const pingAfter = 30 * time.Second

// Pool keeps connections open between messages. It is safe for concurrent use.
type Pool struct {
	dial     Config
	cfg      PoolConfig
	noChunks atomic.Bool // the server cannot do what it announces

	mu      sync.Mutex
	idle    []*Conn // the one used last is taken first, so that surplus ones age
	open    int
	limit   int
	until   time.Time // when limit may grow again
	waiting []chan struct{}
	closed  bool
}

// NewPool returns a pool that dials on demand.
func NewPool(dial Config, cfg PoolConfig) *Pool {
	return &Pool{dial: dial, cfg: cfg, limit: cfg.Connections}
}

// Send hands over one message; see Conn.Send. A message that meets the end of
// a connection which had served before, and which the server cannot have
// accepted, goes over a fresh one at once: the server may close an old
// connection whenever it likes, and that says nothing about the message.
func (p *Pool) Send(ctx context.Context, from, to string, mime []byte) (Reply, error) {
	for {
		c, fresh, err := p.take(ctx)
		if err != nil {
			return Reply{}, err
		}
		reply, err := c.Send(ctx, from, to, mime)
		var e *Error
		if err != nil && errors.As(err, &e) && !e.Usable() {
			p.drop(c)
			if errors.Is(err, ErrNoChunks) {
				p.noChunks.Store(true)
				continue
			}
			if !fresh && !e.MayBeAccepted && ctx.Err() == nil && (e.Err != nil || e.Reply.Code == 421 && e.Stage == StageMail) {
				continue
			}
			return reply, err
		}
		p.give(c)
		return reply, err
	}
}

func (p *Pool) take(ctx context.Context) (c *Conn, fresh bool, err error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, false, &Error{Stage: StageConnect, Err: errors.New("the pool is closed")}
		}
		now := time.Now()
		for len(p.idle) > 0 && p.idle[0].Idle() > p.cfg.IdleLimit {
			p.idle[0].Close()
			p.idle = p.idle[1:]
			p.open--
		}
		if n := len(p.idle); n > 0 {
			c = p.idle[n-1]
			p.idle = p.idle[:n-1]
			p.mu.Unlock()
			if c.Idle() > pingAfter && c.Ping(ctx) != nil {
				p.drop(c)
				continue
			}
			return c, false, nil
		}
		if p.limit < p.cfg.Connections && now.After(p.until) {
			p.limit++
			p.until = now.Add(limitedFor)
		}
		if p.open < p.limit {
			p.open++
			p.mu.Unlock()
			dial := p.dial
			dial.NoChunks = dial.NoChunks || p.noChunks.Load()
			c, err = Dial(ctx, dial)
			if err == nil {
				return c, true, nil
			}
			if !p.failed(err) {
				return nil, false, err
			}
			continue
		}
		free := make(chan struct{})
		p.waiting = append(p.waiting, free)
		p.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			p.leave(free)
			return nil, false, &Error{Stage: StageConnect, Err: fmt.Errorf("waiting for a free connection: %w", ctx.Err())}
		}
	}
}

// failed takes note of a connection that could not be opened and reports
// whether waiting for one of the others is the answer: the server said "421 too
// many connections" while it serves those it has.
func (p *Pool) failed(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	var e *Error
	if !errors.As(err, &e) || e.Stage != StageGreeting || e.Reply.Code != 421 || p.open == 0 {
		p.wakeLocked()
		return false
	}
	p.limit, p.until = p.open, time.Now().Add(limitedFor)
	return true
}

func (p *Pool) give(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.Messages() >= p.cfg.MessagesPerConnection || p.open > p.limit {
		p.open--
		// Close writes a goodbye, which may take its time.
		go c.Close()
	} else {
		p.idle = append(p.idle, c)
	}
	p.wakeLocked()
}

func (p *Pool) drop(c *Conn) {
	c.Abort()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.wakeLocked()
}

func (p *Pool) wakeLocked() {
	if len(p.waiting) > 0 {
		close(p.waiting[0])
		p.waiting = p.waiting[1:]
	}
}

// leave takes a waiter off the list, or passes on the wake-up that it can no
// longer use.
func (p *Pool) leave(free chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.waiting {
		if w == free {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return
		}
	}
	p.wakeLocked()
}

// Open is the number of connections that are open or being opened.
func (p *Pool) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// Close ends the idle connections; those in use are closed when they come back.
func (p *Pool) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.open -= len(idle)
	for len(p.waiting) > 0 {
		p.wakeLocked()
	}
	p.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}
