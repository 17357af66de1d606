package collector

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// conns bounds the connections that are open. Beyond the bound the one is closed on which
// nothing has happened for longest, no request begun and none answered: whoever opens many and sends
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
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.open[conn]
	switch {
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
