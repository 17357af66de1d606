package render

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/bits"
	"mime"
	"strings"

	"github.com/emersion/go-message/mail"
	"github.com/emersion/go-message/textproto"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
)

// appendMIME appends the message to b. I5: everything that libraries would draw at
// random or read from the clock is set: Date, Message-ID, boundary.
//
// The bytes are those of go-message, which takes ten times as long for them.
func appendMIME(b []byte, req *event.MessageRequest, campaign *definition.Campaign, m *Rendered, unsubscribe string) ([]byte, error) {
	id := req.MessageID.String()
	boundary := "hikyaku-" + id
	text, html := newPart("text/plain", m.Text), newPart("text/html", m.HTML)
	alternatives := len(m.Text) > 0 && len(m.HTML) > 0
	only := &text
	if len(m.HTML) > 0 {
		only = &html
	}
	if alternatives {
		b = append(append(append(b, "Content-Type: multipart/alternative;\r\n boundary="...), boundary...), "\r\n"...)
	} else {
		b = only.appendHeader(b)
	}
	h := header{b: b}
	h.add("From", (&mail.Address{Name: campaign.From.Name, Address: campaign.From.Address}).String())
	h.add("To", (&mail.Address{Address: req.Address}).String())
	if campaign.ReplyTo != "" {
		h.add("Reply-To", (&mail.Address{Address: campaign.ReplyTo}).String())
	}
	h.add("Subject", mime.QEncoding.Encode("utf-8", m.Subject))
	if !req.RequestedAt.IsZero() {
		h.add("Date", req.RequestedAt.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	}
	h.add("Message-Id", "<"+id+"@"+domain(campaign.From.Address)+">")
	h.add("Mime-Version", "1.0")
	h.add("List-Unsubscribe", "<"+unsubscribe+">")
	h.add("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	if h.err != nil {
		return h.b, h.err
	}
	b = append(h.b, "\r\n"...)
	if !alternatives {
		return only.appendBody(b), nil
	}
	for _, p := range []*part{&text, &html} {
		b = append(append(append(b, "--"...), boundary...), "\r\n"...)
		b = append(p.appendHeader(b), "\r\n"...)
		b = append(p.appendBody(b), "\r\n"...)
	}
	return append(append(append(b, "--"...), boundary...), "--\r\n"...), nil
}

// header writes header fields. The first error stays.
type header struct {
	b   []byte
	err error
}

// add writes a field. One that must be folded, or cannot be written, is the
// library's to judge.
func (h *header) add(key, value string) {
	size := len(key) + len(": ") + len(value)
	if strings.ContainsAny(value, "\r\n") || size > 76 && (size > maxLineBytes || strings.ContainsAny(value, " \t")) {
		var field textproto.Header
		field.Set(key, value)
		var b bytes.Buffer
		if err := textproto.WriteHeader(&b, field); err != nil && h.err == nil {
			h.err = err
		}
		h.b = append(h.b, bytes.TrimSuffix(b.Bytes(), []byte("\r\n"))...)
		return
	}
	h.b = append(append(append(append(h.b, key...), ": "...), value...), "\r\n"...)
}

// part is a body.
type part struct {
	mediaType, encoding string
	text                []byte // lines that end in \n
}

func newPart(mediaType string, text []byte) part {
	return part{mediaType, encoding(text), newlines(text)}
}

func (p *part) appendHeader(b []byte) []byte {
	b = append(append(append(b, "Content-Type: "...), p.mediaType...), "; charset=utf-8\r\n"...)
	return append(append(append(b, "Content-Transfer-Encoding: "...), p.encoding...), "\r\n"...)
}

func (p *part) appendBody(b []byte) []byte {
	switch p.encoding {
	case quotedPrintable:
		return appendQuotedPrintable(b, p.text)
	case base64Encoding:
		return appendBase64(b, p.text)
	}
	return appendCRLF(b, p.text)
}

// The transfer encodings.
const (
	sevenBit        = "7bit"
	quotedPrintable = "quoted-printable"
	base64Encoding  = "base64"
)

// maxLineBytes is SMTP's limit without the line's end.
const maxLineBytes = 998

// encoding is 7bit for plain ASCII in short lines, which needs no encoding;
// quoted-printable for text that stays readable in it; base64 for scripts in
// which most characters are not ASCII. None needs 8BITMIME nor has a line
// beyond SMTP's 998 bytes.
func encoding(text []byte) string {
	other := notText(text)
	switch {
	case other == 0 && longestLine(text) <= maxLineBytes:
		return sevenBit
	case other > len(text)/6:
		return base64Encoding
	}
	return quotedPrintable
}

// notText counts the bytes that are not ASCII, or 0.
func notText(b []byte) int {
	const each, top = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; len(b) >= 8; b = b[8:] {
		w := binary.LittleEndian.Uint64(b)
		n += bits.OnesCount64(w & top)
		if (w-each)&^w&top != 0 { // one of the eight is 0
			n += bytes.Count(b[:8], []byte{0})
		}
	}
	for _, c := range b {
		if c >= 0x80 || c == 0 {
			n++
		}
	}
	return n
}

func longestLine(b []byte) int {
	longest := 0
	for {
		n := bytes.IndexByte(b, '\n')
		if n < 0 {
			return max(longest, len(b))
		}
		longest = max(longest, n)
		b = b[n+1:]
	}
}

// newlines returns the text with every line end as \n.
func newlines(b []byte) []byte {
	if bytes.IndexByte(b, '\r') < 0 {
		return b
	}
	return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
}

// appendCRLF appends the text with the line ends that mail has.
func appendCRLF(b, text []byte) []byte {
	for {
		n := bytes.IndexByte(text, '\n')
		if n < 0 {
			return append(b, text...)
		}
		b = append(append(b, text[:n]...), "\r\n"...)
		text = text[n+1:]
	}
}

// appendBase64 appends lines of 76 characters with \r\n between them.
func appendBase64(b, text []byte) []byte {
	const lineBytes = 57
	start := len(b)
	b = appendCRLF(b, text) // for the moment: encoded behind it, then moved over it
	end := len(b)
	for i := start; i < end; i += lineBytes {
		if i > start {
			b = append(b, "\r\n"...)
		}
		b = base64.StdEncoding.AppendEncode(b, b[i:min(i+lineBytes, end)])
	}
	return b[:start+copy(b[start:], b[end:])]
}

// appendQuotedPrintable appends lines of at most 76 characters (RFC 2045, 6.7).
func appendQuotedPrintable(b, text []byte) []byte {
	const lineMax = 75 // and the = of a soft line break
	line := len(b)     // where the line begins
	escape := func(c byte) {
		if len(b)-line > lineMax-3 {
			b = append(b, "=\r\n"...)
			line = len(b)
		}
		b = append(b, '=', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
	}
	// A space before a line's end would be lost on the way.
	endLine := func() {
		if n := len(b) - 1; n >= line && (b[n] == ' ' || b[n] == '\t') {
			c := b[n]
			b = b[:n]
			escape(c)
		}
	}
	for len(text) > 0 {
		n := 0
		for n < len(text) && plain[text[n]] {
			n++
		}
		for run := text[:n]; len(run) > 0; {
			room := lineMax - (len(b) - line)
			if room == 0 {
				b = append(b, "=\r\n"...)
				line = len(b)
				continue
			}
			k := min(room, len(run))
			b = append(b, run[:k]...)
			run = run[k:]
		}
		if text = text[n:]; len(text) == 0 {
			break
		}
		if text[0] == '\n' {
			endLine()
			b = append(b, "\r\n"...)
			line = len(b)
		} else {
			escape(text[0])
		}
		text = text[1:]
	}
	endLine()
	return b
}

// plain are the characters that quoted-printable leaves as they are.
var plain = func() (t [256]bool) {
	for c := ' '; c <= '~'; c++ {
		t[c] = c != '='
	}
	t['\t'] = true
	return t
}()

func domain(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return address[i+1:]
	}
	return address
}
