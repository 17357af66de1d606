package render

import (
	"bytes"
	"strings"

	nethtml "golang.org/x/net/html"
)

// tracker appends the link that stands for target, escaped for an attribute; or
// nothing, and the target stays as it is.
type tracker func(b []byte, target string) ([]byte, error)

// rewriteLinks appends src to b with the target of every http and https link of an
// <a> or <area> replaced by what track makes of it. Everything else keeps its
// bytes.
//
// It finds the same tags and the same targets as the tokenizer of x/net does,
// which reads every byte one by one and is left what is rare: scripts, and
// targets with unusual entities.
func rewriteLinks(b, src []byte, track tracker) ([]byte, error) {
	copied := 0 // src up to here is in b
	for i := 0; ; {
		lt := bytes.IndexByte(src[i:], '<')
		if lt < 0 || i+lt+1 >= len(src) {
			return append(b, src[copied:]...), nil
		}
		start := i + lt
		switch c := src[start+1]; {
		case c == '!' || c == '?' || c == '/' && start+2 < len(src) && !isLetter(src[start+2]):
			i = declarationEnd(src, start)
		case c == '/' && start+2 < len(src):
			i = readTag(src, start+2).end
		case isLetter(c):
			t := readTag(src, start+1)
			i = t.end
			switch name := src[start+1 : t.nameEnd]; {
			case t.end < 0:
			case isLink(name):
				var err error
				b = append(b, src[copied:start]...)
				if b, err = appendLinkTag(b, src[start:t.end], src[t.hrefFrom:t.hrefTo], track); err != nil {
					return b, err
				}
				copied = t.end
			case bytes.EqualFold(name, []byte("script")):
				return rewriteLinksByToken(append(b, src[copied:start]...), src[start:], track)
			case isRawText(name):
				i = rawTextEnd(src, t.end, name)
			}
		default:
			i = start + 1
		}
		if i < 0 { // what nothing ends keeps its bytes
			return append(b, src[copied:]...), nil
		}
	}
}

// rewriteLinksByToken does the same for any HTML, at a fraction of the speed.
func rewriteLinksByToken(b, src []byte, track tracker) ([]byte, error) {
	z := nethtml.NewTokenizer(bytes.NewReader(src))
	z.SetMaxBuf(len(src) + 1)
	for read := 0; ; read += len(z.Raw()) {
		switch z.Next() {
		case nethtml.ErrorToken:
			// The input is in memory: the only error is its end, perhaps within a tag.
			return append(b, src[read:]...), nil
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			raw := src[read : read+len(z.Raw())]
			name, more := z.TagName()
			target := ""
			for link := isLink(name); link && more; {
				var key, value []byte
				key, value, more = z.TagAttr()
				if target == "" && string(key) == "href" {
					target = string(value)
				}
			}
			var err error
			if b, err = appendTracked(b, raw, target, track); err != nil {
				return b, err
			}
		default:
			b = append(b, z.Raw()...)
		}
	}
}

// appendLinkTag appends the tag of a link whose href is written as given.
func appendLinkTag(b, tag, href []byte, track tracker) ([]byte, error) {
	target := string(href)
	if n := bytes.Count(href, []byte("&")); n > 0 && n == bytes.Count(href, []byte("&amp;")) {
		target = strings.ReplaceAll(target, "&amp;", "&")
	} else if n > 0 || bytes.ContainsAny(href, "\r\x00") {
		return rewriteLinksByToken(b, tag, track)
	}
	return appendTracked(b, tag, target, track)
}

// appendTracked appends a tag with its href replaced, or as it stands if there is
// nothing to track.
func appendTracked(b, tag []byte, target string, track tracker) ([]byte, error) {
	before := len(b)
	if target = strings.TrimSpace(target); tracked(target) {
		if from, to, ok := hrefSpan(tag); ok {
			b = append(append(b, tag[:from]...), '"')
			at := len(b)
			var err error
			if b, err = track(b, target); err != nil {
				return b[:before], err
			}
			if len(b) > at {
				return append(append(b, '"'), tag[to:]...), nil
			}
		}
	}
	return append(b[:before], tag...), nil
}

// tracked reports whether a link leads to a web page; mailto:, tel:, anchors
// and relative links are left alone.
func tracked(target string) bool {
	scheme, _, ok := strings.Cut(target, "://")
	return ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https"))
}

func isLink(name []byte) bool {
	return len(name) == 1 && name[0]|0x20 == 'a' || len(name) == 4 && bytes.EqualFold(name, []byte("area"))
}

// declarationEnd is the end of a comment, a doctype or another piece of markup that
// is no tag and begins at start; -1 if it has none.
func declarationEnd(src []byte, start int) int {
	if !bytes.HasPrefix(src[start:], []byte("<!--")) {
		end := bytes.IndexByte(src[start+2:], '>')
		if end < 0 {
			return -1
		}
		return start + 2 + end + 1
	}
	text := src[start+4:]
	for i := 0; ; i++ {
		gt := bytes.IndexByte(text[i:], '>')
		if gt < 0 {
			return -1
		}
		i += gt
		switch t := text[:i]; {
		case len(t) == 0, string(t) == "-", bytes.HasSuffix(t, []byte("--")), bytes.HasSuffix(t, []byte("--!")):
			return start + 4 + i + 1
		}
	}
}

// isRawText names the elements in which only their own end tag is markup.
func isRawText(name []byte) bool {
	if len(name) < len("xmp") {
		return false
	}
	for _, n := range [...]string{"style", "title", "textarea", "iframe", "noembed", "noframes", "noscript", "plaintext", "xmp"} {
		if len(name) == len(n) && strings.EqualFold(string(name), n) {
			return true
		}
	}
	return false
}

// rawTextEnd is where the end tag of such an element begins; -1 if it has none.
func rawTextEnd(src []byte, i int, name []byte) int {
	for !bytes.EqualFold(name, []byte("plaintext")) {
		lt := bytes.Index(src[i:], []byte("</"))
		if lt < 0 {
			break
		}
		end := i + lt
		i = end + 2
		after := i + len(name)
		if after < len(src) && bytes.EqualFold(src[i:after], name) && (isSpace(src[after]) || src[after] == '/' || src[after] == '>') {
			return end
		}
	}
	return -1
}

// tag says where the parts of a tag lie.
type tag struct {
	nameEnd          int
	hrefFrom, hrefTo int // the value of its first href, without quotes; empty if it has none
	end              int // behind its >; -1 if nothing ends it
}

// readTag reads the tag whose name begins at i, as a browser would.
func readTag(src []byte, i int) tag {
	t := tag{end: -1}
	for i < len(src) && !endsName(src[i]) {
		i++
	}
	t.nameEnd = i
	for known := false; ; {
		if i = skipSpace(src, i); i >= len(src) {
			return t
		}
		if src[i] == '>' {
			t.end = i + 1
			return t
		}
		key := i
		for i < len(src) && !endsName(src[i]) && (src[i] != '=' || i == key) {
			i++
		}
		isHref := !known && i-key == 4 && bytes.EqualFold(src[key:i], []byte("href"))
		known = known || isHref
		if i = skipSpace(src, i); i >= len(src) {
			return t
		}
		if src[i] != '=' {
			if src[i] == '/' {
				i++
			}
			continue
		}
		if i = skipSpace(src, i+1); i >= len(src) {
			return t
		}
		from, to := i, i
		switch q := src[i]; q {
		case '>':
		case '"', '\'':
			n := bytes.IndexByte(src[i+1:], q)
			if n < 0 {
				return t
			}
			from, to, i = i+1, i+1+n, i+1+n+1
		default:
			for i < len(src) && !isSpace(src[i]) && src[i] != '>' {
				i++
			}
			to = i
		}
		if isHref {
			t.hrefFrom, t.hrefTo = from, to
		}
	}
}

func endsName(c byte) bool { return isSpace(c) || c == '/' || c == '>' }

func skipSpace(src []byte, i int) int {
	for i < len(src) && isSpace(src[i]) {
		i++
	}
	return i
}

func isLetter(c byte) bool { c |= 0x20; return 'a' <= c && c <= 'z' }

// hrefSpan finds the value of the first href of a start tag, quotes included.
// It follows the tokenizer's own rules for attributes.
func hrefSpan(tag []byte) (from, to int, ok bool) {
	i := 1
	for i < len(tag) && !isSpace(tag[i]) && tag[i] != '/' && tag[i] != '>' { // name
		i++
	}
	for i < len(tag) {
		for i < len(tag) && (isSpace(tag[i]) || tag[i] == '/') {
			i++
		}
		if i >= len(tag) || tag[i] == '>' {
			return 0, 0, false
		}
		start := i
		for i < len(tag) && !isSpace(tag[i]) && tag[i] != '=' && tag[i] != '>' && tag[i] != '/' {
			i++
		}
		key := tag[start:i]
		for i < len(tag) && isSpace(tag[i]) {
			i++
		}
		if i >= len(tag) || tag[i] != '=' {
			continue
		}
		i++
		for i < len(tag) && isSpace(tag[i]) {
			i++
		}
		if i >= len(tag) {
			return 0, 0, false
		}
		valueStart := i
		if q := tag[i]; q == '"' || q == '\'' {
			end := bytes.IndexByte(tag[i+1:], q)
			if end < 0 {
				return 0, 0, false
			}
			i += end + 2
		} else {
			for i < len(tag) && !isSpace(tag[i]) && tag[i] != '>' {
				i++
			}
		}
		if bytes.EqualFold(key, []byte("href")) {
			return valueStart, i, true
		}
	}
	return 0, 0, false
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' }

// appendPixel puts the open pixel before </body>, or at the end. Its address is
// written as in an attribute.
func appendPixel(b, src []byte) []byte {
	at := bodyEnd(b)
	if at < 0 {
		at = len(b)
	}
	end := len(b)
	b = append(b, `<img src="`...)
	b = append(b, src...)
	b = append(b, `" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0">`...)
	b = append(b, b[at:end]...)
	return append(b[:at], b[end:]...)
}

// bodyEnd is where the last </body> is, or the last </BODY>; -1 if there is none.
func bodyEnd(b []byte) int {
	upper := -1
	for i := len(b) - len("</body>"); i >= 0; i-- {
		if b[i] != '<' {
			continue
		}
		switch string(b[i : i+len("</body>")]) {
		case "</body>":
			return i
		case "</BODY>":
			upper = max(upper, i)
		}
	}
	return upper
}
