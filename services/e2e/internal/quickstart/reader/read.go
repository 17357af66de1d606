package reader

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Shares of the delivered mails, per mille.
const (
	openPerMille        = 400
	clickPerMille       = 100
	unsubscribePerMille = 10
)

// Did is what the readers did, in people.
type Did struct {
	Opened, Clicked, Unsubscribed int
}

// Crowd is the readers of one run.
type Crowd struct {
	Outbox   string // directory
	Tracking string // TRACKING_URL, without a slash at its end
	Seed     uint64
	Client   *http.Client // must not follow redirects: they lead out of the demonstration
	Progress func(done, total int)
}

// program is what a reader has a mail fetched by: opening it, and following a link.
type program struct{ opens, clicks string }

// One reader in five is no person: a funnel shows both.
const machineEvery = 5

var (
	people = []program{
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
			"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Thunderbird/140.1.0",
			"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"},
		{"Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
			"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
	}
	// A mail program that loads every picture ahead, in front of which links are scanned.
	machine = program{"Mozilla/5.0", "Mozilla/5.0 (compatible; ExampleLinkScanner/1.0; +https://scanner.example/)"}
)

func programOf(i int) program {
	if i%machineEvery == machineEvery-1 {
		return machine
	}
	return people[i%len(people)]
}

// NewClient returns a client as Crowd needs it.
func NewClient() *http.Client {
	return &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{MaxIdleConnsPerHost: readersAtOnce, MaxConnsPerHost: readersAtOnce},
	}
}

const readersAtOnce = 16

// Plan chooses who does what: of n people the first opened open, the first
// clicked of these click, the first unsubscribed of those unsubscribe. As soon
// as there is anybody, somebody does each.
func Plan(n int) Did {
	share := func(perMille int) int {
		if n == 0 {
			return 0
		}
		return max(1, (n*perMille+500)/1000)
	}
	return Did{Opened: share(openPerMille), Clicked: share(clickPerMille), Unsubscribed: share(unsubscribePerMille)}
}

// Shuffle orders people by lot; the lot depends on the seed and the address only.
func Shuffle(people []Delivery, seed uint64) {
	lot := func(d Delivery) uint64 {
		h := sha256.Sum256(append(binary.BigEndian.AppendUint64(nil, seed), strings.ToLower(d.Recipient)...))
		return binary.BigEndian.Uint64(h[:])
	}
	slices.SortStableFunc(people, func(a, b Delivery) int {
		return cmp.Or(cmp.Compare(lot(a), lot(b)), cmp.Compare(a.MessageID, b.MessageID))
	})
}

// Read lets the people open, click and unsubscribe. Everything that a mail
// promised and did not hold is an error; the others go on.
func (c *Crowd) Read(ctx context.Context, readers []Delivery) (Did, error) {
	readers = slices.Clone(readers)
	Shuffle(readers, c.Seed)
	plan := Plan(len(readers))
	var (
		mu     sync.Mutex
		did    Did
		errs   []error
		failed int
		next   int
		wg     sync.WaitGroup
	)
	for range readersAtOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				if c.Progress != nil && i <= plan.Opened {
					c.Progress(i, plan.Opened)
				}
				mu.Unlock()
				if i >= plan.Opened || ctx.Err() != nil {
					return
				}
				clicks, unsubscribes := i < plan.Clicked, i < plan.Unsubscribed
				err := c.one(ctx, readers[i], programOf(i), clicks, unsubscribes)
				mu.Lock()
				if err != nil {
					failed++
					if len(errs) < 3 {
						errs = append(errs, err)
					}
				} else {
					did.Opened++
					if clicks {
						did.Clicked++
					}
					if unsubscribes {
						did.Unsubscribed++
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return did, context.Cause(ctx)
	}
	if failed > 0 {
		return did, fmt.Errorf("%d of %d readers did not get what their mail promised: %w", failed, plan.Opened, errors.Join(errs...))
	}
	return did, nil
}

func (c *Crowd) one(ctx context.Context, d Delivery, by program, clicks, unsubscribes bool) error {
	m, err := Open(c.Outbox, d)
	if err != nil {
		return err
	}
	pixels := m.Pixels(c.Tracking)
	if len(pixels) == 0 {
		return fmt.Errorf("mail %s has no pixel under %s", d.MessageID, c.Tracking)
	}
	for _, p := range pixels {
		err := c.fetch(ctx, http.MethodGet, p, by.opens, "", func(r *http.Response) bool {
			return r.StatusCode == http.StatusOK && strings.HasPrefix(r.Header.Get("Content-Type"), "image/")
		})
		if err != nil {
			return fmt.Errorf("opening mail %s: %w", d.MessageID, err)
		}
	}
	if clicks {
		links := m.Links(c.Tracking)
		if len(links) == 0 {
			return fmt.Errorf("mail %s has no link under %s", d.MessageID, c.Tracking)
		}
		err := c.fetch(ctx, http.MethodGet, links[0], by.clicks, "", func(r *http.Response) bool {
			to := r.Header.Get("Location")
			return r.StatusCode >= 300 && r.StatusCode < 400 && to != "" && !strings.HasPrefix(to, c.Tracking)
		})
		if err != nil {
			return fmt.Errorf("clicking in mail %s: %w", d.MessageID, err)
		}
	}
	if unsubscribes {
		if !strings.HasPrefix(m.Unsubscribe, c.Tracking+"/u/") {
			return fmt.Errorf("mail %s offers no one-click unsubscription under %s", d.MessageID, c.Tracking)
		}
		err := c.fetch(ctx, http.MethodPost, m.Unsubscribe, by.clicks, "List-Unsubscribe=One-Click", func(r *http.Response) bool {
			return r.StatusCode >= 200 && r.StatusCode < 300 // RFC 8058 allows no redirect
		})
		if err != nil {
			return fmt.Errorf("unsubscribing by mail %s: %w", d.MessageID, err)
		}
	}
	return nil
}

// fetch asks a few times: a mail program does too, and the server may have been killed by hand.
func (c *Crowd) fetch(ctx context.Context, method, address, agent, form string, good func(*http.Response) bool) error {
	var last error
	for attempt := range 20 {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(500 * time.Millisecond):
			}
		}
		req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form))
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", agent)
		if form != "" {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		r, err := c.Client.Do(req)
		if err != nil {
			last = err
			continue
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20)) // so that the connection can be used again
		r.Body.Close()
		if good(r) {
			return nil
		}
		last = fmt.Errorf("%s answered %s", method, r.Status)
		if r.StatusCode < 500 {
			return last // asking again changes nothing
		}
	}
	return last
}
