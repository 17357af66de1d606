package render

import (
	"bytes"
	"html"
	"strings"

	nethtml "golang.org/x/net/html"
)

// rewriteLinks replaces the target of every http and https link of an <a> or
// <area> by what track returns for it. Everything else keeps its bytes.
func rewriteLinks(b []byte, src string, track func(target string) (string, error)) ([]byte, error) {
	z := nethtml.NewTokenizer(strings.NewReader(src))
	z.SetMaxBuf(len(src) + 1)
	for read := 0; ; read += len(z.Raw()) {
		switch z.Next() {
		case nethtml.ErrorToken:
			// The input is in memory: the only error is its end, perhaps within a tag.
			return append(b, src[read:]...), nil
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			raw := bytes.Clone(z.Raw()) // reading attributes changes it
			name, more := z.TagName()
			if !more || !isLink(name) {
				b = append(b, raw...)
				continue
			}
			var err error
			if b, err = appendLinkTag(b, raw, z, track); err != nil {
				return b, err
			}
		default:
			b = append(b, z.Raw()...)
		}
	}
}

func isLink(name []byte) bool { return string(name) == "a" || string(name) == "area" }

// appendLinkTag appends a tag with its href replaced, or as it stands if there
// is nothing to track.
func appendLinkTag(b, raw []byte, z *nethtml.Tokenizer, track func(string) (string, error)) ([]byte, error) {
	target := ""
	for more := true; more; {
		var key, value []byte
		key, value, more = z.TagAttr()
		if target == "" && string(key) == "href" {
			target = strings.TrimSpace(string(value))
		}
	}
	if !tracked(target) {
		return append(b, raw...), nil
	}
	link, err := track(target)
	if err != nil || link == target {
		return append(b, raw...), err
	}
	from, to, ok := hrefSpan(raw)
	if !ok {
		return append(b, raw...), nil
	}
	b = append(b, raw[:from]...)
	b = append(b, '"')
	b = append(b, html.EscapeString(link)...)
	b = append(b, '"')
	return append(b, raw[to:]...), nil
}

// tracked reports whether a link leads to a web page; mailto:, tel:, anchors
// and relative links are left alone.
func tracked(target string) bool {
	scheme, _, ok := strings.Cut(target, "://")
	return ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https"))
}

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

// addPixel puts the open pixel before </body>, or at the end.
func addPixel(b []byte, src string) []byte {
	pixel := `<img src="` + html.EscapeString(src) + `" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0">`
	at := bytes.LastIndex(b, []byte("</body>"))
	if at < 0 {
		at = bytes.LastIndex(b, []byte("</BODY>"))
	}
	if at < 0 {
		return append(b, pixel...)
	}
	tail := string(b[at:])
	return append(append(b[:at], pixel...), tail...)
}
