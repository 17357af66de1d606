// Package classify says of a hit (an open, a click) whether a person made it, a
// machine, or who knows whom. It goes by rules that are data (rules/N/rules.yaml), of which
// the first that holds decides, and knows nothing but the hit: the same hit has the
// same label in every process, today and when history is read again.
package classify

import (
	"net/netip"
	"strings"
	"sync"
	"time"
)

// The labels.
const (
	Human   = "human"
	Machine = "machine"
	Unknown = "unknown"
)

// Hit is what there is to know of a hit.
type Hit struct {
	Kind      string // opened, clicked, unsubscribed
	Method    string // of HTTP
	Purpose   string // prefetch, prerender, preview; or empty
	UserAgent string
	Network   string // as much of the client's address as is kept
	LatencyMs int64  // since the message was admitted, milliseconds; -1 if nobody knows
}

// Classifier is one version of the rules. It is safe for concurrent use.
type Classifier struct {
	version  uint32
	sha256   string
	rules    []rule
	crawlers *crawlers

	mu     sync.RWMutex
	agents map[string]mask
}

// Version is the number of the rules.
func (c *Classifier) Version() uint32 { return c.version }

// SHA256 is the hash of the rules and the list of crawlers, in hex.
func (c *Classifier) SHA256() string { return c.sha256 }

// Rules are the names of the rules in the order in which they are asked.
func (c *Classifier) Rules() []string {
	names := make([]string, len(c.rules))
	for i := range c.rules {
		names[i] = c.rules[i].name
	}
	return names
}

// Classify returns a hit's label and the name of the rule that decided, or unknown
// and nothing.
func (c *Classifier) Classify(h Hit) (label, rule string) {
	agent := c.agent(h.UserAgent)
	network := parseNetwork(h.Network)
	for i := range c.rules {
		if agent.has(i) && c.rules[i].holds(&h, network) {
			return c.rules[i].label, c.rules[i].name
		}
	}
	return Unknown, ""
}

// mask is a set of rules.
type mask [2]uint64

func (m *mask) has(i int) bool { return m[i/64]&(1<<(i%64)) != 0 }

// maxRules is how many a mask has room for.
const maxRules = 128

// maxAgents is how many user agents are remembered. There are some ten thousand in
// daily use, and to judge one anew takes a hundred times as long.
const maxAgents = 1 << 14

// agent is the set of rules that a user agent does not speak against.
func (c *Classifier) agent(text string) mask {
	c.mu.RLock()
	m, ok := c.agents[text]
	c.mu.RUnlock()
	if ok {
		return m
	}
	for i := range c.rules {
		if c.rules[i].takes(text, c.crawlers) {
			m[i/64] |= 1 << (i % 64)
		}
	}
	c.mu.Lock()
	if len(c.agents) >= maxAgents {
		clear(c.agents)
	}
	c.agents[strings.Clone(text)] = m
	c.mu.Unlock()
	return m
}

// parseNetwork reads a network or an address; none if it is neither.
func parseNetwork(text string) netip.Prefix {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p
	}
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.Prefix{}
}

// holds reports whether everything holds but what is asked of the user agent.
func (r *rule) holds(h *Hit, network netip.Prefix) bool {
	return among(r.kinds, h.Kind) && among(r.methods, h.Method) && among(r.purposes, h.Purpose) &&
		(r.below == 0 || h.LatencyMs >= 0 && time.Duration(h.LatencyMs)*time.Millisecond < r.below) &&
		(len(r.networks) == 0 || within(r.networks, network))
}

func among(list []string, s string) bool {
	if len(list) == 0 {
		return true
	}
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// within reports whether all of a network lies in one of the list.
func within(list []netip.Prefix, network netip.Prefix) bool {
	if !network.IsValid() {
		return false
	}
	for _, p := range list {
		if p.Bits() <= network.Bits() && p.Contains(network.Addr()) {
			return true
		}
	}
	return false
}
