package intake

import (
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// scanner reads JSON in one pass, as encoding/json would: the same texts are JSON, the
// same strings and numbers are read from them, of equal keys the last counts. It makes
// nothing on its way but what is asked for; a string without escapes is a part of the
// input. The first error sticks, and moves the position to the end.
type scanner struct {
	s   string
	at  int
	bad string // what is wrong with the text, empty if nothing was yet
	pos int    // where
	// nest is the kinds of the arrays and objects that skip is in, one bit for each.
	nest []uint64
}

// maxNesting is how deep arrays and objects may lie within each other, as in encoding/json.
const maxNesting = 10_000

func (p *scanner) fail(what string) {
	if p.bad == "" {
		p.bad, p.pos = what, p.at
	}
	p.at = len(p.s)
}

// problem says what is wrong with the text, nil if nothing is.
func (p *scanner) problem() *Problem {
	if p.bad == "" {
		return nil
	}
	return &Problem{Code: "json", Reason: fmt.Sprintf("not JSON at byte %d: %s", p.pos, p.bad)}
}

// peek skips white space and returns the next byte, 0 at the end.
func (p *scanner) peek() byte {
	for p.at < len(p.s) {
		c := p.s[p.at]
		if c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
		p.at++
	}
	return 0
}

// end requires that nothing follows.
func (p *scanner) end() {
	p.peek()
	if p.at < len(p.s) {
		p.fail("something follows the value")
	}
}

// opened passes the first byte of an object or array, and says whether anything is in it.
func (p *scanner) opened(closing byte) bool {
	p.at++
	if p.peek() != closing {
		return p.bad == ""
	}
	p.at++
	return false
}

// more passes what is between two items of an object or array, and says whether there is another.
func (p *scanner) more(closing byte) bool {
	switch c := p.peek(); {
	case c == ',':
		p.at++
		return true
	case c == closing:
		p.at++
	case p.at >= len(p.s):
		p.fail("the text ends too early")
	default:
		p.fail("a comma or the end of the object or array was expected")
	}
	return false
}

// key reads an object's next key and its colon; false after an error.
func (p *scanner) key() (string, bool) {
	if p.peek() != '"' {
		p.fail("a key in quotes was expected")
		return "", false
	}
	key := p.text()
	if p.peek() != ':' {
		p.fail("a colon was expected")
		return "", false
	}
	p.at++
	return key, true
}

// plainByte tells which bytes stand for themselves in a string.
var plainByte = func() (plain [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// text reads a string; the position is at its quote.
func (p *scanner) text() string {
	start := p.at + 1
	i := start
	for i < len(p.s) && plainByte[p.s[i]] {
		i++
	}
	if i < len(p.s) && p.s[i] == '"' {
		p.at = i + 1
		return p.s[start:i]
	}
	return p.longText(start, i)
}

// longText reads a string that may have escapes and more than ASCII; up to i it is plain.
func (p *scanner) longText(start, i int) string {
	escaped := false
	for ; ; i++ {
		if i >= len(p.s) {
			p.at = i
			p.fail("a string does not end")
			return ""
		}
		c := p.s[i]
		if c == '"' {
			break
		}
		if c < ' ' {
			p.at = i
			p.fail("a control character stands in a string")
			return ""
		}
		if c != '\\' {
			continue
		}
		escaped = true
		n := escapeBytes(p.s[i:])
		if n == 0 {
			p.at = i
			p.fail("a string has an escape that there is not")
			return ""
		}
		i += n - 1
	}
	p.at = i + 1
	inside := p.s[start:i]
	if !escaped && utf8.ValidString(inside) {
		return inside
	}
	return unquote(inside)
}

// escapeBytes is the length of the escape at the beginning of s, 0 if it is none.
func escapeBytes(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) >= 6 && hex4(s[2:]) >= 0 {
			return 6
		}
	}
	return 0
}

// hex4 is the number that four hex digits write, -1 if they are not.
func hex4(s string) rune {
	var r rune
	for i := range 4 {
		c := s[i]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unquote resolves escapes, which have been checked. Half a surrogate pair, and each
// byte that is not UTF-8, becomes U+FFFD.
func unquote(s string) string {
	b := make([]byte, 0, len(s)+2*utf8.UTFMax)
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\\' && s[i+1] == 'u':
			r := hex4(s[i+2:])
			i += 6
			if utf16.IsSurrogate(r) {
				var second rune = -1
				if i+6 <= len(s) && s[i] == '\\' && s[i+1] == 'u' {
					second = hex4(s[i+2:])
				}
				if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
					i += 6
				}
			}
			b = utf8.AppendRune(b, r)
		case c == '\\':
			b = append(b, meant[s[i+1]])
			i += 2
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += size
		}
	}
	return string(b)
}

// meant is what an escape of one letter stands for.
var meant = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// number passes a number and returns it as it is written, and whether it has neither fraction nor exponent.
func (p *scanner) number() (written string, whole bool) {
	s, start, i := p.s, p.at, p.at
	digits := func() bool {
		from := i
		for i < len(s) && '0' <= s[i] && s[i] <= '9' {
			i++
		}
		return i > from
	}
	if s[i] == '-' {
		i++
	}
	whole = true
	ok := true
	if i < len(s) && s[i] == '0' {
		i++
	} else {
		ok = digits()
	}
	if ok && i < len(s) && s[i] == '.' {
		i++
		whole, ok = false, digits()
	}
	if ok && i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		whole, ok = false, digits()
	}
	p.at = i
	if !ok {
		p.fail("a number is not complete")
		return "", false
	}
	return s[start:i], whole
}

// word passes true, false or null, of which the first letter is there.
func (p *scanner) word() {
	for _, w := range [...]string{"true", "false", "null"} {
		if len(p.s)-p.at >= len(w) && p.s[p.at:p.at+len(w)] == w {
			p.at += len(w)
			return
		}
	}
	p.fail("a value was expected")
}

// null passes a null and says whether there was one.
func (p *scanner) null() bool {
	if p.peek() == 'n' {
		p.word()
		return p.bad == ""
	}
	return false
}

// skip passes one value of any kind, and says how deep it is: 0 for one that has no others in it.
func (p *scanner) skip() (depth int) {
	p.nest = p.nest[:0]
	within := 0
	for p.bad == "" {
		// One value, or the beginning of one.
		switch c := p.peek(); {
		case c == '"':
			p.text()
		case c == '{' || c == '[':
			if within++; within > maxNesting {
				p.fail("it is nested too deep")
				return depth
			}
			depth = max(depth, within)
			word, bit := (within-1)/64, uint64(1)<<((within-1)%64)
			if word == len(p.nest) {
				p.nest = append(p.nest, 0)
			}
			closing := byte(']')
			p.nest[word] &^= bit
			if c == '{' {
				closing = '}'
				p.nest[word] |= bit
			}
			if p.opened(closing) {
				if c == '{' {
					p.key()
				}
				continue
			}
			within--
		case c == '-' || '0' <= c && c <= '9':
			p.number()
		case p.at >= len(p.s):
			p.fail("the text ends too early")
		default:
			p.word()
		}
		// What follows it: another, or the end of what it lies in.
		for {
			if within == 0 || p.bad != "" {
				return depth
			}
			object := p.nest[(within-1)/64]>>((within-1)%64)&1 == 1
			closing := byte(']')
			if object {
				closing = '}'
			}
			if p.more(closing) {
				if object {
					p.key()
				}
				break
			}
			within--
		}
	}
	return depth
}

// maxDepth is how deep a property or trait may be: whoever reads it later reads it recursively.
const maxDepth = 64

// value reads a property or trait. Problem is why it cannot be taken though it is JSON.
func (p *scanner) value() (v event.Value, problem, reason string) {
	switch c := p.peek(); {
	case c == '"':
		return event.String(p.text()), "", ""
	case c == '-' || '0' <= c && c <= '9':
		return numberOf(p.number())
	case c == '{' || c == '[':
		start := p.at
		depth := p.skip()
		if p.bad != "" {
			return v, "", ""
		}
		if depth > maxDepth {
			return v, "depth", fmt.Sprintf("arrays and objects lie %d deep within each other, at most %d are allowed", depth, maxDepth)
		}
		again := scanner{s: p.s[start:p.at]}
		text, reason := again.canonical(make([]byte, 0, len(again.s)+16))
		if reason != "" {
			return v, "value", reason
		}
		return event.JSON(string(text)), "", ""
	default:
		p.word()
		switch c {
		case 't':
			return event.Bool(true), "", ""
		case 'f':
			return event.Bool(false), "", ""
		}
		return event.Null(), "", ""
	}
}

// numberOf is the value that a number writes: see event.FromJSON.
func numberOf(written string, whole bool) (v event.Value, problem, reason string) {
	if whole {
		if i, err := strconv.ParseInt(written, 10, 64); err == nil {
			return event.Int(i), "", ""
		}
	}
	f, err := strconv.ParseFloat(written, 64)
	if err != nil && written != "" {
		return v, "value", fmt.Sprintf("number %.40s does not fit 64 bits", written)
	}
	if f == 0 {
		f = 0 // not -0
	}
	return event.Float(f), "", ""
}

// kindOf is JSON's word for what begins with this byte.
func kindOf(c byte) string {
	switch c {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "bool"
	case 'n':
		return "null"
	}
	return "number"
}
