package render

import (
	"bytes"
	"html"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"
	nethtml "golang.org/x/net/html"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
)

// What follows wrote the first messages, by means of libraries alone: links by the
// tokenizer of x/net, MIME by go-message. It is what the bytes of version 1 are
// compared with; it is not to be made faster.

func referenceLinks(b []byte, src string, track func(target string) (string, error)) ([]byte, error) {
	z := nethtml.NewTokenizer(strings.NewReader(src))
	z.SetMaxBuf(len(src) + 1)
	for read := 0; ; read += len(z.Raw()) {
		switch z.Next() {
		case nethtml.ErrorToken:
			return append(b, src[read:]...), nil
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			raw := bytes.Clone(z.Raw()) // reading attributes changes it
			name, more := z.TagName()
			if !more || string(name) != "a" && string(name) != "area" {
				b = append(b, raw...)
				continue
			}
			var err error
			if b, err = referenceLinkTag(b, raw, z, track); err != nil {
				return b, err
			}
		default:
			b = append(b, z.Raw()...)
		}
	}
}

func referenceLinkTag(b, raw []byte, z *nethtml.Tokenizer, track func(string) (string, error)) ([]byte, error) {
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

func referencePixel(b []byte, src string) []byte {
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

func referenceMIME(req *event.MessageRequest, campaign *definition.Campaign, subject, text, html, unsubscribe string) ([]byte, error) {
	var h mail.Header
	// Fields are written last added first.
	h.Set("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	h.Set("List-Unsubscribe", "<"+unsubscribe+">")
	h.Set("MIME-Version", "1.0")
	h.SetMessageID(req.MessageID.String() + "@" + domain(campaign.From.Address))
	h.SetDate(req.RequestedAt.UTC())
	h.SetSubject(subject)
	if campaign.ReplyTo != "" {
		h.SetAddressList("Reply-To", []*mail.Address{{Address: campaign.ReplyTo}})
	}
	h.SetAddressList("To", []*mail.Address{{Address: req.Address}})
	h.SetAddressList("From", []*mail.Address{{Name: campaign.From.Name, Address: campaign.From.Address}})

	var b bytes.Buffer
	switch {
	case html == "":
		err := referenceSingle(&b, h.Header, "text/plain", text)
		return b.Bytes(), err
	case text == "":
		err := referenceSingle(&b, h.Header, "text/html", html)
		return b.Bytes(), err
	}
	h.SetContentType("multipart/alternative", map[string]string{"boundary": "hikyaku-" + req.MessageID.String()})
	w, err := message.CreateWriter(&b, h.Header)
	if err != nil {
		return nil, err
	}
	for _, part := range []struct{ mediaType, body string }{{"text/plain", text}, {"text/html", html}} {
		pw, err := w.CreatePart(referencePartHeader(message.Header{}, part.mediaType, part.body))
		if err != nil {
			return nil, err
		}
		if err := referenceBody(pw, part.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func referenceSingle(b *bytes.Buffer, h message.Header, mediaType, text string) error {
	w, err := message.CreateWriter(b, referencePartHeader(h, mediaType, text))
	if err != nil {
		return err
	}
	return referenceBody(w, text)
}

func referencePartHeader(h message.Header, mediaType, text string) message.Header {
	h.Set("Content-Transfer-Encoding", referenceEncoding(text))
	h.SetContentType(mediaType, map[string]string{"charset": "utf-8"})
	return h
}

func referenceBody(w io.WriteCloser, text string) error {
	if _, err := io.WriteString(w, referenceCRLF(text)); err != nil {
		return err
	}
	return w.Close()
}

func referenceEncoding(text string) string {
	other, line, longest := 0, 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c >= utf8.RuneSelf || c == 0:
			other++
			line++
		case c == '\n':
			line = 0
		default:
			line++
		}
		longest = max(longest, line)
	}
	switch {
	case other == 0 && longest <= 998:
		return "7bit"
	case other > len(text)/6:
		return "base64"
	}
	return "quoted-printable"
}

func referenceCRLF(s string) string {
	if !strings.Contains(s, "\r") {
		return strings.ReplaceAll(s, "\n", "\r\n")
	}
	return strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n"), "\n", "\r\n")
}
