package render

import (
	"bytes"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
)

// mime writes the message. I5: everything that libraries would draw at random or
// read from the clock is set: Date, Message-ID, boundary.
func mime(req *event.MessageRequest, campaign *definition.Campaign, m *Rendered, unsubscribe string) ([]byte, error) {
	var h mail.Header
	// Fields are written last added first.
	h.Set("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
	h.Set("List-Unsubscribe", "<"+unsubscribe+">")
	h.Set("MIME-Version", "1.0")
	h.SetMessageID(req.MessageID.String() + "@" + domain(campaign.From.Address))
	h.SetDate(req.RequestedAt.UTC())
	h.SetSubject(m.Subject)
	if campaign.ReplyTo != "" {
		h.SetAddressList("Reply-To", []*mail.Address{{Address: campaign.ReplyTo}})
	}
	h.SetAddressList("To", []*mail.Address{{Address: req.Address}})
	h.SetAddressList("From", []*mail.Address{{Name: campaign.From.Name, Address: campaign.From.Address}})

	var b bytes.Buffer
	b.Grow(len(m.HTML) + len(m.HTML)/4 + len(m.Text) + 2048)
	switch {
	case m.HTML == "":
		err := single(&b, h.Header, "text/plain", m.Text)
		return b.Bytes(), err
	case m.Text == "":
		err := single(&b, h.Header, "text/html", m.HTML)
		return b.Bytes(), err
	}
	h.SetContentType("multipart/alternative", map[string]string{"boundary": "hikyaku-" + req.MessageID.String()})
	w, err := message.CreateWriter(&b, h.Header)
	if err != nil {
		return nil, err
	}
	for _, part := range []struct{ mediaType, body string }{{"text/plain", m.Text}, {"text/html", m.HTML}} {
		ph := partHeader(message.Header{}, part.mediaType, part.body)
		pw, err := w.CreatePart(ph)
		if err != nil {
			return nil, err
		}
		if err := body(pw, part.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func single(b *bytes.Buffer, h message.Header, mediaType, text string) error {
	w, err := message.CreateWriter(b, partHeader(h, mediaType, text))
	if err != nil {
		return err
	}
	return body(w, text)
}

func partHeader(h message.Header, mediaType, text string) message.Header {
	h.Set("Content-Transfer-Encoding", encoding(text))
	h.SetContentType(mediaType, map[string]string{"charset": "utf-8"})
	return h
}

func body(w io.WriteCloser, text string) error {
	if _, err := io.WriteString(w, crlf(text)); err != nil {
		return err
	}
	return w.Close()
}

// encoding is 7bit for plain ASCII in short lines, which needs no encoding;
// quoted-printable for text that stays readable in it; base64 for scripts in
// which most characters are not ASCII. None needs 8BITMIME nor has a line
// beyond SMTP's 998 bytes.
func encoding(text string) string {
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
	case other == 0 && longest <= maxLineBytes:
		return "7bit"
	case other > len(text)/6:
		return "base64"
	}
	return "quoted-printable"
}

// maxLineBytes is SMTP's limit without the line's end.
const maxLineBytes = 998

// crlf makes every line end the one that mail has.
func crlf(s string) string {
	if !strings.Contains(s, "\r") {
		return strings.ReplaceAll(s, "\n", "\r\n")
	}
	return strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n"), "\n", "\r\n")
}

func domain(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return address[i+1:]
	}
	return address
}
