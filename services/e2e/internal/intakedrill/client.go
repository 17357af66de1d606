package intakedrill

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

const (
	workers    = 16
	people     = 1000
	batchLimit = 20 // events in one request
	// A request that is not answered well for so long never will be.
	clientPatience = 2 * time.Minute
)

// client posts events until each is acknowledged. A person's events are posted by one worker, one
// request after the other.
type client struct {
	d                 *drill
	prefix            string
	repeated, refused atomic.Int64

	mu           sync.Mutex
	acknowledged map[string]bool
	longest      time.Duration
	gaveUp       int
}

func (d *drill) newClient() *client {
	return &client{d: d, prefix: d.namespace, acknowledged: make(map[string]bool, d.events)}
}

func (c *client) acknowledgedCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acknowledged)
}

// id names the n-th event.
func (c *client) id(n int) string { return fmt.Sprintf("%s-%08d", c.prefix, n) }

// due is when the n-th event is to be posted.
func (c *client) due(began time.Time, n int) time.Time {
	return began.Add(time.Duration(float64(n) / c.d.rate * float64(time.Second)))
}

// post returns when all events are acknowledged, or given up.
func (c *client) post(began time.Time) {
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			// Whoever n falls to: person n%people, hence worker n%people%workers.
			var mine []int
			next := func(n int) int {
				for n++; n < c.d.events && n%people%workers != w; n++ {
				}
				return n
			}
			for n := next(-1); n < c.d.events; {
				if !command.Wait(c.d.ctx, time.Until(c.due(began, n))) {
					return
				}
				mine = mine[:0]
				for now := time.Now(); n < c.d.events && len(mine) < batchLimit && !c.due(began, n).After(now); n = next(n) {
					mine = append(mine, n)
				}
				if !c.send(mine) {
					return
				}
				c.noted(mine, time.Since(c.due(began, mine[0])))
			}
		})
	}
	all.Wait()
}

func (c *client) noted(events []int, waited time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range events {
		c.acknowledged[c.id(n)] = true
	}
	c.longest = max(c.longest, waited)
}

type track struct {
	Type       string         `json:"type"`
	MessageID  string         `json:"messageId"`
	UserID     string         `json:"userId"`
	Event      string         `json:"event"`
	Properties map[string]any `json:"properties"`
	Timestamp  time.Time      `json:"timestamp"`
	WriteKey   string         `json:"writeKey,omitempty"`
}

// send posts events, again and again, until they are acknowledged.
func (c *client) send(events []int) bool {
	var items []track
	for _, n := range events {
		items = append(items, track{Type: "track", MessageID: c.id(n), UserID: fmt.Sprintf("p%04d", n%people), Event: "numbered",
			Properties: map[string]any{"n": n, "page": "/tea/sencha", "price": 1234.5, "currency": "JPY", "gift": n%2 == 0}, Timestamp: time.Now().UTC()})
	}
	path, body := "/v1/batch", any(map[string]any{"batch": items, "writeKey": "dev"})
	if len(items) == 1 {
		items[0].WriteKey = "dev"
		path, body = "/v1/track", items[0]
	}
	text, err := json.Marshal(body)
	if err != nil {
		c.d.fail(err)
		return false
	}
	for try, end := 0, time.Now().Add(clientPatience); time.Now().Before(end); try++ {
		if try > 0 {
			c.repeated.Add(1)
			if !command.Wait(c.d.ctx, 100*time.Millisecond) {
				return false
			}
		}
		req, err := http.NewRequestWithContext(c.d.ctx, http.MethodPost, c.d.api+path, bytes.NewReader(text))
		if err != nil {
			c.d.fail(err)
			return false
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.d.http.Do(req)
		if err != nil {
			continue
		}
		var answer struct{ Accepted int }
		err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer)
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK && err == nil && answer.Accepted == len(items) {
			return true
		}
		if resp.StatusCode != http.StatusOK {
			c.refused.Add(1)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gaveUp += len(events)
	return true
}

// get returns a status, 0 without an answer.
func (d *drill) get(url string) int {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// metric is one of the collector's; 0 if it does not answer.
func (d *drill) metric(name string) float64 {
	return process.Metric(d.ctx, d.http, d.telemetry, name)
}
