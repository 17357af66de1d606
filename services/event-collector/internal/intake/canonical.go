package intake

import (
	"encoding/json"
	"slices"
	"strings"
)

// canonical appends one value as event.FromJSON writes it: no white space, keys sorted, of
// equal keys the last, numbers as they are read. The value is JSON and not nested too deep.
// Reason is why it cannot be taken, empty if it can.
func (p *scanner) canonical(b []byte) (_ []byte, reason string) {
	switch c := p.peek(); c {
	case '"':
		return appendText(b, p.text()), ""
	case '[':
		b = append(b, c)
		for more, first := p.opened(']'), true; more; more, first = p.more(']'), false {
			if !first {
				b = append(b, ',')
			}
			if b, reason = p.canonical(b); reason != "" {
				return b, reason
			}
		}
		return append(b, ']'), ""
	case '{':
		return p.canonicalObject(b)
	case 't', 'f', 'n':
		start := p.at
		p.word()
		return append(b, p.s[start:p.at]...), ""
	}
	v, _, reason := numberOf(p.number())
	if reason != "" {
		return b, reason
	}
	b, _ = v.AppendJSON(b) // numberOf makes only what JSON can hold
	return b, ""
}

// member is one of an object's, where it stands in the output.
type member struct {
	key      string
	from, to int
}

func (p *scanner) canonicalObject(b []byte) (_ []byte, reason string) {
	var few [8]member
	members := few[:0]
	b = append(b, '{')
	start, sorted := len(b), true
	for more := p.opened('}'); more; more = p.more('}') {
		key, _ := p.key()
		m := member{key: key, from: len(b)}
		b = append(appendText(b, key), ':')
		if b, reason = p.canonical(b); reason != "" {
			return b, reason
		}
		b = append(b, ',')
		m.to = len(b)
		if n := len(members); n > 0 && key <= members[n-1].key {
			sorted = false
		}
		members = append(members, m)
	}
	if !sorted {
		was := string(b)
		b = b[:start]
		slices.SortStableFunc(members, func(x, y member) int { return strings.Compare(x.key, y.key) })
		for i, m := range members {
			if i+1 == len(members) || members[i+1].key != m.key {
				b = append(b, was[m.from:m.to]...)
			}
		}
	}
	if len(members) > 0 {
		b = b[:len(b)-1] // the comma after the last
	}
	return append(b, '}'), ""
}

// appendText appends a string as encoding/json does where it does not escape for HTML. It
// is UTF-8; most need no escape.
func appendText(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !plainByte[c] && (c < 0x80 || strings.HasPrefix(s[i:], "\u2028") || strings.HasPrefix(s[i:], "\u2029")) {
			var quoted strings.Builder
			e := json.NewEncoder(&quoted)
			e.SetEscapeHTML(false)
			_ = e.Encode(s) // a string always can be
			return append(b, strings.TrimSuffix(quoted.String(), "\n")...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
