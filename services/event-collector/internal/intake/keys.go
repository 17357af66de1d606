package intake

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Scopes are what a write key may send.
type Scopes uint8

// The scopes: what is written with them.
const (
	ScopeEvents   Scopes = 1 << iota // events: track, page, screen
	ScopeProfiles                    // profiles: identify; group needs both
)

const allScopes = ScopeEvents | ScopeProfiles

// String names them as in WRITE_KEYS.
func (s Scopes) String() string {
	var names []string
	if s&ScopeEvents != 0 {
		names = append(names, "events")
	}
	if s&ScopeProfiles != 0 {
		names = append(names, "profiles")
	}
	return strings.Join(names, "+")
}

func parseScopes(s string) (Scopes, error) {
	var scopes Scopes
	for _, name := range strings.Split(s, "+") {
		switch name {
		case "events":
			scopes |= ScopeEvents
		case "profiles":
			scopes |= ScopeProfiles
		default:
			return 0, errors.New("a scope is neither events nor profiles; several are joined by +")
		}
	}
	return scopes, nil
}

// Keys are the write keys.
type Keys []*Key

// Key is one write key: the name that records carry in its stead, and what may be sent with it.
type Key struct {
	Name   string
	Scopes Scopes
	source string
	hash   [sha256.Size]byte
	pace   pace
}

// DefaultKeyName is the name of a key that has none.
const DefaultKeyName = "default"

// ParseKeys reads "key", or "name:key,name:key:scope+scope". A key without scopes has
// all. Several keys may share a name, so that one can be replaced while the other is
// still in use. Each may send eventsPerSecond on the average; 0 is no limit.
func ParseKeys(s string, eventsPerSecond float64) (Keys, error) {
	var keys Keys
	for _, part := range strings.Split(s, ",") {
		fields := strings.SplitN(strings.TrimSpace(part), ":", 3)
		if len(fields) == 1 {
			fields = []string{DefaultKeyName, fields[0]}
		}
		name, text, scopes := fields[0], fields[1], allScopes
		if name == "" || text == "" {
			return nil, errors.New("a write key or its name is empty")
		}
		if len(name) > 64 {
			return nil, fmt.Errorf("the name of a write key is longer than 64 bytes")
		}
		if len(fields) == 3 {
			var err error
			if scopes, err = parseScopes(fields[2]); err != nil {
				return nil, err
			}
		}
		keys = append(keys, &Key{Name: name, Scopes: scopes, source: "api:" + name, hash: sha256.Sum256([]byte(text)), pace: pace{perSecond: eventsPerSecond}})
	}
	return keys, nil
}

// Find returns a write key, nil if there is none. It takes as long for one that is almost
// right as for any other: what is compared are hashes, all of them.
func (k Keys) Find(text string) (found *Key) {
	hash := sha256.Sum256([]byte(text))
	for _, key := range k {
		if subtle.ConstantTimeCompare(key.hash[:], hash[:]) == 1 {
			found = key
		}
	}
	return found
}

// pace is how much may still be sent. Whoever has sent more than a second's worth has to
// wait until the debt is paid: so a batch larger than that is taken too, and paid for later.
type pace struct {
	perSecond float64 // events; 0 is no limit

	mu   sync.Mutex
	left float64 // events; below 0 is debt
	at   time.Time
}

// wait is how long it is until something may be sent again, 0 if it may now.
func (p *pace) wait(now time.Time) time.Duration {
	if p.perSecond == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() {
		p.left, p.at = p.perSecond, now
	}
	if passed := now.Sub(p.at).Seconds(); passed > 0 {
		p.left, p.at = min(p.perSecond, p.left+passed*p.perSecond), now
	}
	if p.left > 0 {
		return 0
	}
	return time.Duration((1 - p.left) / p.perSecond * float64(time.Second))
}

// pay takes so many events off what may be sent.
func (p *pace) pay(events int) {
	if p.perSecond == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left -= float64(events)
}
