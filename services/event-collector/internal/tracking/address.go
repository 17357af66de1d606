package tracking

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/token"
)

// What is kept of a client's address.
const (
	Truncated = "truncated" // its network: /24, or /48
	Hashed    = "hashed"    // a keyed hash that is another one every day
	None      = "none"
)

// ParseProxies reads networks and single addresses.
func ParseProxies(list []string) ([]netip.Prefix, error) {
	var proxies []netip.Prefix
	for _, text := range list {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("%q is neither a network nor an address", text)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		proxies = append(proxies, p.Masked())
	}
	return proxies, nil
}

// client is the address a request came from, or none. What proxies say is believed
// as far as it was said by a proxy that is trusted: read from the end, the first
// address that is none of ours is the client's, and whatever stands before it the
// client may have written itself.
func (h *Handler) client(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := at.Addr().Unmap()
	if len(h.Proxies) == 0 || !h.trusted(addr) {
		return addr
	}
	said, node := r.Header["X-Forwarded-For"], strings.TrimSpace
	if len(said) == 0 {
		said, node = r.Header["Forwarded"], forwardedFor
	}
	for i := len(said) - 1; i >= 0; i-- {
		for rest := said[i]; rest != ""; {
			last := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, last = rest[:comma], rest[comma+1:]
			} else {
				rest = ""
			}
			if addr = parseNode(node(last)); !addr.IsValid() || !h.trusted(addr) {
				return addr // a proxy that does not say, or the client
			}
		}
	}
	return addr
}

func (h *Handler) trusted(addr netip.Addr) bool {
	for _, p := range h.Proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// forwardedFor is the for= of one element of Forwarded (RFC 7239).
func forwardedFor(element string) string {
	for pair := range strings.SplitSeq(element, ";") {
		if name, value, ok := strings.Cut(pair, "="); ok && strings.EqualFold(strings.TrimSpace(name), "for") {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return ""
}

// parseNode reads an address that may have a port, and brackets.
func parseNode(text string) netip.Addr {
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at.Addr().Unmap().WithZone("")
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

// keep is what is kept of a client's address.
func keep(how string, keys *token.Keys, addr netip.Addr, now time.Time) string {
	switch {
	case !addr.IsValid() || how == None:
		return ""
	case how == Hashed:
		sum := keys.Sum("address " + now.UTC().Format(time.DateOnly) + " " + addr.WithZone("").String())
		return "hashed:" + hex.EncodeToString(sum[:8])
	}
	return network(addr)
}

// network cuts a client's address to what is not one household's: /24, or /48.
func network(addr netip.Addr) string {
	bits := 24
	if addr.Is6() {
		addr, bits = addr.WithZone(""), 48
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}
