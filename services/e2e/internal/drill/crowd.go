package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// crowd are the people who join, unsubscribe and click while services die. They
// ask again until they are answered well, as browsers and client libraries do.
type crowd struct {
	d      *drill
	keys   *token.Keys
	client *http.Client
	apis   []string // http://host:port of every collector; links lead to the first
	run    identity.ID
	stop   context.CancelFunc
	wg     sync.WaitGroup

	clicked, opened atomic.Int64

	mu           sync.Mutex
	joined       []string
	unsubscribed []string
	failed       []string // what was never answered well
}

// A request that is not answered well for so long never will be.
const crowdPatience = 90 * time.Second

const trackingSecret = "a secret of the drill"

func newCrowd(d *drill, apis []string) (*crowd, error) {
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte(trackingSecret)})
	if err != nil {
		return nil, err
	}
	return &crowd{d: d, keys: keys, apis: apis, client: &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{MaxIdleConnsPerHost: 8},
	}}, nil
}

// begin lets the crowd loose. leavers are people of the list who unsubscribe
// over HTTP whether or not they have got their mail yet.
func (c *crowd) begin(run identity.ID, leavers []string) {
	ctx, cancel := context.WithCancel(c.d.ctx)
	c.run, c.stop = run, cancel
	c.wg.Go(func() { c.join(ctx) })
	c.wg.Go(func() { c.leave(ctx, leavers) })
	c.wg.Go(func() { c.read(ctx) })
}

// end sends everybody home; who is waiting for an answer waits on.
func (c *crowd) end() {
	if c.stop != nil {
		c.stop()
	}
	c.wg.Wait()
}

func (c *crowd) join(ctx context.Context) {
	for i := 0; command.Wait(ctx, 50*time.Millisecond); i++ {
		c.wg.Go(func() {
			id := fmt.Sprintf("j%06d", i)
			if c.identify(i, id, map[string]any{"name": "Joiner", "email": id + "@example.test", "age": 30, "points": i}, nil) {
				c.mu.Lock()
				c.joined = append(c.joined, id)
				c.mu.Unlock()
			}
		})
	}
}

func (c *crowd) leave(ctx context.Context, leavers []string) {
	for i, id := range leavers {
		if !command.Wait(ctx, 100*time.Millisecond) {
			return
		}
		c.wg.Go(func() {
			if c.identify(i, id, map[string]any{}, map[string]any{"consents": map[string]string{"email": "unsubscribed"}}) {
				c.left(id)
			}
		})
	}
}

func (c *crowd) left(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsubscribed = append(c.unsubscribed, id)
}

// identify posts a profile update until it is acknowledged.
func (c *crowd) identify(i int, id string, traits, ours map[string]any) bool {
	body, err := json.Marshal(map[string]any{"type": "identify", "userId": id, "messageId": "m-" + id, "timestamp": time.Now().UTC().Format(time.RFC3339Nano),
		"traits": traits, "context": map[string]any{"hikyaku": ours}, "writeKey": "dev"})
	if err != nil {
		return false
	}
	return c.until("identify "+id, func(try int) (*http.Request, error) {
		req, err := http.NewRequestWithContext(c.d.ctx, http.MethodPost, c.apis[(i+try)%len(c.apis)]+"/v1/identify", bytes.NewReader(body))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
		}
		return req, err
	}, http.StatusOK)
}

// read follows the mail server's index and lets some of those who got a mail
// open and click (20 of a thousand) and unsubscribe (5 of a thousand).
func (c *crowd) read(ctx context.Context) {
	if c.d.index == "" {
		c.readBlind(ctx)
		return
	}
	at := c.d.indexFrom
	var rest []byte
	for command.Wait(ctx, 100*time.Millisecond) {
		f, err := os.Open(c.d.index)
		if err != nil {
			continue
		}
		if _, err = f.Seek(at, io.SeekStart); err == nil {
			var more []byte
			more, err = io.ReadAll(f)
			at += int64(len(more))
			rest = append(rest, more...)
		}
		f.Close()
		if err != nil {
			continue
		}
		for {
			line, after, whole := bytes.Cut(rest, []byte{'\n'})
			if !whole {
				break
			}
			rest = after
			fields := strings.Split(string(line), "\t")
			recipient := fields[0]
			if len(fields) >= 4 {
				recipient = fields[2]
			}
			c.react(personOf(recipient))
		}
	}
}

// readBlind is for a mail server whose index cannot be seen: people of the list
// follow links that lead to them if they got any.
func (c *crowd) readBlind(ctx context.Context) {
	for i := 0; command.Wait(ctx, 5*time.Millisecond); i++ {
		if id := userID(i); i < c.d.people && c.d.list.Audience[id] {
			c.react(id)
		}
	}
}

func (c *crowd) react(person string) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", c.d.seed, person)
	lot := rand.New(rand.NewPCG(h.Sum64(), 1)).IntN(1000)
	switch {
	case lot < 20:
		c.wg.Go(func() {
			if c.follow(token.Open, person, ".gif", http.StatusOK) {
				c.opened.Add(1)
			}
			if c.follow(token.Click, person, "", http.StatusFound) {
				c.clicked.Add(1)
			}
		})
	case lot < 25:
		c.wg.Go(func() {
			if c.follow(token.Unsubscribe, person, "", http.StatusOK) {
				c.left(person)
			}
		})
	}
}

// follow asks for a link as it stands in the person's mail.
func (c *crowd) follow(purpose token.Purpose, person, suffix string, want int) bool {
	t := &token.Token{Purpose: purpose, MessageID: identity.Message(c.d.namespace, campaignID, c.run.String(), person, ""), RunID: c.run,
		Channel: "email", CampaignID: campaignID, UserID: person}
	if purpose == token.Click {
		t.Target = "https://shop.example.test/relay"
	}
	text, err := c.keys.Append(nil, "1", t)
	if err != nil {
		return false
	}
	method, body := http.MethodGet, ""
	if purpose == token.Unsubscribe {
		method, body = http.MethodPost, "List-Unsubscribe=One-Click"
	}
	return c.until(string(purpose)+" of "+person, func(int) (*http.Request, error) {
		req, err := http.NewRequestWithContext(c.d.ctx, method, c.apis[0]+"/"+string(purpose)+"/"+string(text)+suffix, strings.NewReader(body))
		if err == nil && body != "" {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}, want)
}

// until asks again until the answer is the wanted one.
func (c *crowd) until(what string, request func(try int) (*http.Request, error), want int) bool {
	last := "no answer"
	for try, end := 0, time.Now().Add(crowdPatience); time.Now().Before(end); try++ {
		if try > 0 && !command.Wait(c.d.ctx, 200*time.Millisecond) {
			return false
		}
		req, err := request(try)
		if err != nil {
			return false
		}
		resp, err := c.client.Do(req)
		if err != nil {
			last = "no answer"
			continue
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection can be used again
		resp.Body.Close()
		if resp.StatusCode == want {
			return true
		}
		last = resp.Status
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = append(c.failed, what+": "+last)
	return false
}
