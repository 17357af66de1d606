// Package reader plays the people who get the mail. It shares no code with the
// services: it reads the outbox's index and files as their format is
// documented, decodes the mails with the standard library, and fetches the
// links it finds in them, as mail programs and fingers do.
package reader

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Delivery is a line of the outbox's index: a mail for a recipient.
type Delivery struct {
	Recipient string
	MessageID string
	file      string
	offset    int64
	length    int64
}

// IndexSize is how long the outbox's index is now, in bytes; mails that come
// later stand behind. An outbox that does not exist yet is empty.
func IndexSize(outbox string) (int64, error) {
	info, err := os.Stat(filepath.Join(outbox, "index.tsv"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking at the outbox: %w", err)
	}
	return info.Size(), nil
}

// Deliveries reads the index from a byte on.
func Deliveries(outbox string, from int64) ([]Delivery, error) {
	f, err := os.Open(filepath.Join(outbox, "index.tsv"))
	if errors.Is(err, os.ErrNotExist) && from == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	var all []Delivery
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return all, nil // a line without its end is still being written
		}
		if err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		// time, envelope sender, recipient, Message-ID, file, offset, length
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 7 {
			return nil, fmt.Errorf("reading the outbox: %d fields in a line of its index, want 7", len(fields))
		}
		d := Delivery{Recipient: fields[2], MessageID: fields[3], file: fields[4]}
		var errs [2]error
		d.offset, errs[0] = strconv.ParseInt(fields[5], 10, 64)
		d.length, errs[1] = strconv.ParseInt(fields[6], 10, 64)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("reading the outbox: %w", err)
		}
		all = append(all, d)
	}
}

// Mail is what a reader's program makes of a message.
type Mail struct {
	Subject     string
	HTML, Text  string // decoded
	Unsubscribe string // the HTTP address in List-Unsubscribe, if one click is offered (RFC 8058)
}

// Open reads a delivered mail.
func Open(outbox string, d Delivery) (*Mail, error) {
	f, err := os.Open(filepath.Join(outbox, filepath.Base(d.file)))
	if err != nil {
		return nil, fmt.Errorf("reading mail %s: %w", d.MessageID, err)
	}
	defer f.Close()
	raw := make([]byte, d.length)
	if _, err := f.ReadAt(raw, d.offset); err != nil {
		return nil, fmt.Errorf("reading mail %s: %w", d.MessageID, err)
	}
	m, err := parse(unquote(raw))
	if err != nil {
		return nil, fmt.Errorf("reading mail %s: %w", d.MessageID, err)
	}
	return m, nil
}

var quotedFrom = regexp.MustCompile(`(?m)^>(>*From )`)

// unquote undoes mboxrd: a line that begins with From, after any number of >, has got one > more.
func unquote(raw []byte) []byte { return quotedFrom.ReplaceAll(raw, []byte("$1")) }

func parse(raw []byte) (*Mail, error) {
	message, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	m := &Mail{}
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(message.Header.Get("Subject")); err != nil {
		return nil, fmt.Errorf("decoding the subject: %w", err)
	}
	if strings.EqualFold(message.Header.Get("List-Unsubscribe-Post"), "List-Unsubscribe=One-Click") {
		for _, part := range strings.Split(message.Header.Get("List-Unsubscribe"), ",") {
			part = strings.Trim(strings.TrimSpace(part), "<>")
			if strings.HasPrefix(part, "http://") || strings.HasPrefix(part, "https://") {
				m.Unsubscribe = part
				break
			}
		}
	}
	return m, m.body(message.Header.Get("Content-Type"), message.Header.Get("Content-Transfer-Encoding"), message.Body)
}

// body takes the first HTML and the first plain text, at any depth.
func (m *Mail) body(contentType, encoding string, body io.Reader) error {
	if contentType == "" {
		contentType = "text/plain"
	}
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("reading content type %q: %w", contentType, err)
	}
	if strings.HasPrefix(kind, "multipart/") {
		for parts := multipart.NewReader(body, params["boundary"]); ; {
			part, err := parts.NextRawPart()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading a part: %w", err)
			}
			if err := m.body(part.Header.Get("Content-Type"), part.Header.Get("Content-Transfer-Encoding"), part); err != nil {
				return err
			}
		}
	}
	into := &m.Text
	switch kind {
	case "text/html":
		into = &m.HTML
	case "text/plain":
	default:
		return nil // an attachment
	}
	switch strings.ToLower(encoding) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("decoding %s: %w", kind, err)
	}
	if *into == "" {
		*into = string(text)
	}
	return nil
}

var (
	imageAddress = regexp.MustCompile(`(?is)<img\b[^>]*?\ssrc\s*=\s*["']([^"']+)["']`)
	linkAddress  = regexp.MustCompile(`(?is)<a\b[^>]*?\shref\s*=\s*["']([^"']+)["']`)
	plainAddress = regexp.MustCompile(`https?://[^\s<>"]+`)
)

// Pixels are the images under the tracking address, fetched when the mail is shown.
func (m *Mail) Pixels(tracking string) []string { return under(tracking+"/o/", imageAddress, m.HTML) }

// Links are the tracked links, in the order in which they stand; those of the
// plain text if there is no HTML.
func (m *Mail) Links(tracking string) []string {
	if m.HTML == "" {
		var found []string
		for _, a := range plainAddress.FindAllString(m.Text, -1) {
			if strings.HasPrefix(a, tracking+"/c/") {
				found = append(found, a)
			}
		}
		return found
	}
	return under(tracking+"/c/", linkAddress, m.HTML)
}

func under(prefix string, pattern *regexp.Regexp, text string) []string {
	var found []string
	for _, match := range pattern.FindAllStringSubmatch(text, -1) {
		if a := html.UnescapeString(match[1]); strings.HasPrefix(a, prefix) {
			found = append(found, a)
		}
	}
	return found
}
