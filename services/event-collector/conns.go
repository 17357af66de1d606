package collector

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// conns bounds the connections that are open. Beyond the bound the one is closed on which
// no request has begun for longest: whoever opens many and sends
// little on each closes their own, and those who are at work are never at that end.
type conns struct {
	limit int

	mu   sync.Mutex
	open map[net.Conn]*list.Element
	rest list.List // of net.Conn, the longest at rest first
}

func newConns(limit int) *conns { return &conns{limit: limit, open: map[net.Conn]*list.Element{}} }

// changed is the server's ConnState.
func (c *conns) changed(conn net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		return // it is at rest since its request began, which is as good an order
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch at := c.open[conn]; {
	case state == http.StateClosed || state == http.StateHijacked:
		if at != nil {
			c.rest.Remove(at)
			delete(c.open, conn)
		}
	case at != nil:
		c.rest.MoveToBack(at)
	case state == http.StateNew:
		c.open[conn] = c.rest.PushBack(conn)
		if len(c.open) > c.limit {
			oldest := c.rest.Remove(c.rest.Front()).(net.Conn)
			delete(c.open, oldest)
			oldest.Close() // its goroutine finds out
		}
	}
}
