package outbox

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/charset"
	"github.com/emersion/go-message/mail"
)

//go:embed page
var pageFiles embed.FS

// Security policies. The page runs no script at all. A mail's HTML is shown
// in a sandboxed frame: links open elsewhere, pictures of other hosts are
// loaded only when asked for, since that is what an open is counted by.
const (
	policyPage = "default-src 'none'; style-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	policyMail = "default-src 'none'; style-src 'unsafe-inline'; font-src data:; img-src data:%s; form-action 'none'; base-uri 'none'; " +
		"frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
	policyNothing = "default-src 'none'; frame-ancestors 'none'; sandbox"
)

const rowsPerPage = 50

// page shows an outbox directory; it reads the files and needs no open Outbox.
type page struct {
	dir       string
	templates *template.Template
}

func newPage(dir string) http.Handler {
	p := &page{dir: dir}
	p.templates = template.Must(template.New("").Funcs(template.FuncMap{
		"when": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") },
		"size": size,
	}).ParseFS(pageFiles, "page/*.html"))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.list)
	mux.HandleFunc("GET /mail/{at}", p.mail)
	mux.HandleFunc("GET /mail/{at}/html", p.html)
	mux.HandleFunc("GET /mail/{at}/raw", p.raw)
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, pageFiles, "page/style.css")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policyPage)
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
}

// row is a line of the index; its place there names it.
type row struct {
	Entry
	At int64
}

type listed struct {
	row
	Subject string
}

func (p *page) openIndex() (*os.File, int64, error) {
	f, err := os.Open(filepath.Join(p.dir, indexName))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// list shows the newest messages first; ?to= searches recipients, ?before=
// is the place in the index where the page before ended.
func (p *page) list(w http.ResponseWriter, r *http.Request) {
	data := struct {
		To     string
		Rows   []listed
		Newest bool
		Older  string
	}{To: strings.TrimSpace(r.FormValue("to")), Newest: true}
	f, end, err := p.openIndex()
	if errors.Is(err, os.ErrNotExist) {
		p.render(w, "list.html", data)
		return
	}
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close()
	if before, err := strconv.ParseInt(r.FormValue("before"), 10, 64); err == nil && before >= 0 && before < end {
		end, data.Newest = before, false
	}
	wanted := strings.ToLower(data.To)
	rows := backwards{f: f, end: end}
	for rows.next() {
		if rows.torn {
			continue
		}
		e, err := ParseEntry(rows.line)
		if err != nil {
			fail(w, err)
			return
		}
		if wanted != "" && !strings.Contains(strings.ToLower(e.To), wanted) {
			continue
		}
		if len(data.Rows) == rowsPerPage {
			older := url.Values{"before": {strconv.FormatInt(data.Rows[rowsPerPage-1].At, 10)}}
			if data.To != "" {
				older.Set("to", data.To)
			}
			data.Older = "/?" + older.Encode()
			break
		}
		data.Rows = append(data.Rows, listed{row{e, rows.at}, p.subject(e)})
	}
	if rows.err != nil {
		fail(w, rows.err)
		return
	}
	p.render(w, "list.html", data)
}

// subject reads the header of a message, and no more of it than is likely to be header.
func (p *page) subject(e Entry) string {
	if e.File == NotKept {
		return ""
	}
	e.Length = min(e.Length, 16<<10)
	raw, err := ReadMail(p.dir, e)
	if err != nil {
		return ""
	}
	m, err := message.Read(bytes.NewReader(raw))
	if m == nil || (err != nil && !message.IsUnknownCharset(err)) {
		return ""
	}
	return decoded(m.Header.Get("Subject"))
}

// find reads the message whose index line begins at the place in the path.
func (p *page) find(w http.ResponseWriter, r *http.Request) (row, []byte, bool) {
	at, err := strconv.ParseInt(r.PathValue("at"), 10, 64)
	if err != nil || at < 0 {
		http.NotFound(w, r)
		return row{}, nil, false
	}
	f, size, err := p.openIndex()
	if err != nil {
		http.NotFound(w, r)
		return row{}, nil, false
	}
	defer f.Close()
	if at >= size {
		http.NotFound(w, r)
		return row{}, nil, false
	}
	line := make([]byte, min(8<<10, size-at))
	if _, err := f.ReadAt(line, at); err != nil && !errors.Is(err, io.EOF) {
		fail(w, err)
		return row{}, nil, false
	}
	text, _, whole := bytes.Cut(line, []byte("\n"))
	e, err := ParseEntry(string(text))
	if !whole || err != nil {
		http.NotFound(w, r)
		return row{}, nil, false
	}
	raw, err := ReadMail(p.dir, e)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fail(w, err)
		return row{}, nil, false
	}
	return row{Entry: e, At: at}, raw, true
}

// mail shows one message; ?view= is html, text or source.
func (p *page) mail(w http.ResponseWriter, r *http.Request) {
	found, raw, ok := p.find(w, r)
	if !ok {
		return
	}
	c := contentsOf(raw)
	data := struct {
		row
		contents
		Kept, Pictures bool
		View, Source   string
	}{row: found, contents: c, Kept: raw != nil, Source: string(raw), View: r.FormValue("view"), Pictures: r.FormValue("pictures") != ""}
	switch data.View {
	case "html", "text", "source":
	default:
		data.View = "text"
		if c.HTML != "" {
			data.View = "html"
		}
	}
	p.render(w, "mail.html", data)
}

// html is the document in the frame.
func (p *page) html(w http.ResponseWriter, r *http.Request) {
	_, raw, ok := p.find(w, r)
	if !ok {
		return
	}
	pictures := ""
	if r.FormValue("pictures") != "" {
		pictures = " http: https:"
	}
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policyMail, pictures))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	io.WriteString(w, withTarget(contentsOf(raw).HTML))
}

// withTarget lets links open a new window, since the frame is sandboxed.
func withTarget(html string) string {
	const base = `<base target="_blank">`
	lower := strings.ToLower(html)
	if head := strings.Index(lower, "<head"); head >= 0 {
		if end := strings.IndexByte(html[head:], '>'); end >= 0 && len(lower) == len(html) {
			at := head + end + 1
			return html[:at] + base + html[at:]
		}
	}
	return base + html
}

func (p *page) raw(w http.ResponseWriter, r *http.Request) {
	found, raw, ok := p.find(w, r)
	if !ok {
		return
	}
	w.Header().Set("Content-Security-Policy", policyNothing)
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": fmt.Sprintf("mail-%d.eml", found.At)}))
	_, _ = w.Write(raw)
}

func (p *page) render(w http.ResponseWriter, name string, data any) {
	var out bytes.Buffer
	if err := p.templates.ExecuteTemplate(&out, name, data); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}

func fail(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// contents is what a message holds, decoded.
type contents struct {
	Subject, Sender, Recipient, Date, Unsubscribe string

	HTML, Text  string
	Attachments []string
	Problem     string // why it could not be read to its end
}

func contentsOf(raw []byte) (c contents) {
	if raw == nil {
		return c
	}
	r, err := mail.CreateReader(bytes.NewReader(raw))
	if r == nil || (err != nil && !message.IsUnknownCharset(err)) {
		c.Problem = err.Error()
		return c
	}
	c.Subject = decoded(r.Header.Get("Subject"))
	c.Sender = decoded(r.Header.Get("From"))
	c.Recipient = decoded(r.Header.Get("To"))
	c.Date = r.Header.Get("Date")
	c.Unsubscribe = r.Header.Get("List-Unsubscribe")
	for {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return c
		}
		if part == nil || (err != nil && !message.IsUnknownCharset(err)) {
			c.Problem = err.Error()
			return c
		}
		switch h := part.Header.(type) {
		case *mail.AttachmentHeader:
			name, _ := h.Filename()
			c.Attachments = append(c.Attachments, name)
		case *mail.InlineHeader:
			kind, _, _ := h.ContentType()
			body, err := io.ReadAll(part.Body)
			if err != nil {
				c.Problem = err.Error()
				return c
			}
			switch {
			case kind == "text/html" && c.HTML == "":
				c.HTML = string(body)
			case kind == "text/plain" && c.Text == "":
				c.Text = string(body)
			}
		}
	}
}

// decoded undoes RFC 2047 encoding, and leaves what it cannot read as it is.
func decoded(header string) string {
	d := mime.WordDecoder{CharsetReader: charset.Reader}
	text, err := d.DecodeHeader(header)
	if err != nil {
		return header
	}
	return text
}
