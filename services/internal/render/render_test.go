package render_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gomail "github.com/emersion/go-message/mail"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

var update = flag.Bool("update", false, "write the golden files anew")

func keys(t testing.TB) *token.Keys {
	t.Helper()
	k, err := token.NewKeys("1", map[string][]byte{"1": []byte("a secret for tests only")})
	require.NoError(t, err)
	return k
}

func renderer(t testing.TB) *render.Renderer {
	t.Helper()
	return render.New("https://t.example.test/", keys(t), 1<<20)
}

func request() *event.MessageRequest {
	return &event.MessageRequest{MessageID: identity.Hash("m"), RunID: identity.Hash("r"), CampaignID: "autumn", CampaignVersion: 3, TemplateID: "box", TemplateVersion: 7,
		Lane: "bulk", UserID: "u-1", Channel: "email", Address: "mika@example.test", Policy: "at_most_once", KeyID: "1",
		RequestedAt: time.Date(2026, 11, 21, 9, 30, 0, 123456000, time.UTC), ExpiresAt: time.Date(2026, 11, 24, 9, 30, 0, 0, time.UTC),
		Attributes: []event.NamedValue{{Name: "items", Value: event.JSON(`["tea","<b>rice</b>"]`)}, {Name: "name", Value: event.String(`Mika & "Søn" 美香`)}, {Name: "points", Value: event.Int(1200)}},
		Segments:   []event.SegmentValues{{SegmentID: "tasters", Attributes: []event.NamedValue{{Name: "coupon", Value: event.String("ABC-1")}}}}}
}

var campaign = &definition.Campaign{ID: "autumn", Audience: "all", Template: "box", From: definition.Sender{Name: "飛脚 Hikyaku", Address: "hello@mail.example.test"}, ReplyTo: "help@example.test"}

func template() *definition.Template {
	return &definition.Template{ID: "box", Channel: "email", Subject: "Hello {{ name }}\n— your box", Strict: true,
		HTML: `<!doctype html><html><body class=x>
<p>Hello {{ name }}, {{ points }} points.</p>
<ul>{% for i in items %}<li>{{ i }}</li>{% endfor %}</ul>
<A title="a>b" HREF='https://shop.example.test/?a=1&amp;u={{ user_id }}'>shop</A>
<a href=http://plain.example.test/x>plain</a> <a href="mailto:help@example.test">write</a> <a href="#top">top</a> <a name=here>here</a>
<a href="{{ unsubscribe_url }}">leave</a> <img src="https://shop.example.test/i.png">
<p>Coupon {{ segment.tasters.coupon }}</p>
</body></html>
`, Text: "Hello {{ name }}\nLeave: {{ unsubscribe_url }}\n"}
}

// The whole message, byte for byte: a change here needs a new render.Version,
// because it makes messages already sent unreconstructable.
func TestMessageIsTheSameForEver(t *testing.T) {
	t.Parallel()
	got, err := renderer(t).Email(context.Background(), request(), campaign, template())
	require.NoError(t, err)
	golden := filepath.Join("testdata", "message.v"+render.Version+".eml")
	if *update {
		require.NoError(t, os.WriteFile(golden, got.MIME, 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got.MIME))

	again, err := renderer(t).Email(context.Background(), request(), campaign, template())
	require.NoError(t, err)
	require.Equal(t, got.Hash, again.Hash)
}

// What a mail client reads is what was meant, and links say who clicked.
func TestMailClientReadsWhatWasMeant(t *testing.T) {
	t.Parallel()
	got, err := renderer(t).Email(context.Background(), request(), campaign, template())
	require.NoError(t, err)
	r, err := gomail.CreateReader(bytes.NewReader(got.MIME))
	require.NoError(t, err)
	subject, err := r.Header.Subject()
	require.NoError(t, err)
	require.Equal(t, `Hello Mika & "Søn" 美香 — your box`, subject)
	from, err := r.Header.AddressList("From")
	require.NoError(t, err)
	require.Equal(t, []*gomail.Address{{Name: "飛脚 Hikyaku", Address: "hello@mail.example.test"}}, from)
	id, err := r.Header.MessageID()
	require.NoError(t, err)
	require.Equal(t, identity.Hash("m").String()+"@mail.example.test", id)
	require.Equal(t, "List-Unsubscribe=One-Click", r.Header.Get("List-Unsubscribe-Post"))

	leave := strings.Trim(r.Header.Get("List-Unsubscribe"), "<>")
	tok, err := keys(t).Parse(token.Unsubscribe, strings.TrimPrefix(leave, "https://t.example.test/u/"))
	require.NoError(t, err)
	require.Equal(t, token.Token{Purpose: token.Unsubscribe, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "autumn", UserID: "u-1",
		RequestedAt: request().RequestedAt.Truncate(time.Millisecond)}, *tok)

	bodies := map[string]string{}
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		b, err := io.ReadAll(p.Body)
		require.NoError(t, err)
		mediaType, _, err := p.Header.(*gomail.InlineHeader).ContentType()
		require.NoError(t, err)
		bodies[mediaType] = strings.ReplaceAll(string(b), "\r\n", "\n")
	}
	require.Equal(t, "Hello Mika & \"Søn\" 美香\nLeave: "+leave+"\n", bodies["text/plain"])
	html := bodies["text/html"]
	require.Contains(t, html, "Hello Mika &amp; &#34;Søn&#34; 美香, 1200 points.")
	require.Contains(t, html, "<li>&lt;b&gt;rice&lt;/b&gt;</li>", "values are escaped")
	require.Contains(t, html, "Coupon ABC-1")
	for _, untouched := range []string{`<a href="mailto:help@example.test">`, `<a href="#top">`, `<a name=here>`, `<a href="` + leave + `">`, `<img src="https://shop.example.test/i.png">`, `<body class=x>`} {
		require.Contains(t, html, untouched)
	}
	links := regexp.MustCompile(`"https://t\.example\.test/c/([^"]+)"`).FindAllStringSubmatch(html, -1)
	var targets []string
	for _, l := range links {
		tok, err := keys(t).Parse(token.Click, l[1])
		require.NoError(t, err)
		targets = append(targets, tok.Target)
	}
	require.Equal(t, []string{"https://shop.example.test/?a=1&u=u-1", "http://plain.example.test/x"}, targets)
	require.Contains(t, html, `<A title="a>b" HREF="https://t.example.test/c/`)
	require.Regexp(t, `<img src="https://t\.example\.test/o/[^"]+" width="1"[^>]*></body>`, html)
}

func TestOnePersonsFaultIsARejectionOfThatMessage(t *testing.T) {
	t.Parallel()
	r := renderer(t)
	for _, c := range []struct {
		name, reason, contains string
		change                 func(*event.MessageRequest, *definition.Template)
	}{
		{"a variable without a value", render.TemplateError, "subject", func(q *event.MessageRequest, _ *definition.Template) { q.Attributes = nil }},
		{"no address at all", render.InvalidAddress, "name@domain", func(q *event.MessageRequest, _ *definition.Template) { q.Address = "nobody" }},
		{"an address that smuggles a header", render.InvalidAddress, "name@domain", func(q *event.MessageRequest, _ *definition.Template) { q.Address = "a@b.test\r\nBcc: x@y.test" }},
		{"an address with a name", render.InvalidAddress, "name@domain", func(q *event.MessageRequest, _ *definition.Template) { q.Address = "A <a@b.test>" }},
		{"too large", render.TooLarge, "bytes", func(_ *event.MessageRequest, tpl *definition.Template) {
			tpl.Text += strings.Repeat("x", 1<<20-1000)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q, tpl := request(), template()
			tpl.ID = c.name
			c.change(q, tpl)
			_, err := r.Email(context.Background(), q, campaign, tpl)
			var rejection *render.Rejection
			require.ErrorAs(t, err, &rejection)
			require.Equal(t, c.reason, rejection.Reason)
			require.Contains(t, rejection.Detail, c.contains)
			require.NotContains(t, rejection.Detail, "Mika", "a reason holds no values of the person")
		})
	}
}

// Header injection through values ends as text in one line.
func TestSubjectStaysOneLine(t *testing.T) {
	t.Parallel()
	q := request()
	q.Attributes[1].Value = event.String("x\r\nBcc: victim@example.test")
	got, err := renderer(t).Email(context.Background(), q, campaign, template())
	require.NoError(t, err)
	m, err := mail.ReadMessage(bytes.NewReader(got.MIME))
	require.NoError(t, err)
	require.Empty(t, m.Header.Get("Bcc"))
	require.Equal(t, "Hello x Bcc: victim@example.test — your box", got.Subject)
}

func TestOnlyTextOrOnlyHTML(t *testing.T) {
	t.Parallel()
	for _, keep := range []string{"text", "html"} {
		tpl := template()
		tpl.ID = keep
		if keep == "text" {
			tpl.HTML = ""
		} else {
			tpl.Text = ""
		}
		got, err := renderer(t).Email(context.Background(), request(), campaign, tpl)
		require.NoError(t, err)
		m, err := mail.ReadMessage(bytes.NewReader(got.MIME))
		require.NoError(t, err)
		require.Contains(t, m.Header.Get("Content-Type"), "text/")
		for _, line := range strings.Split(string(got.MIME), "\r\n") {
			require.LessOrEqual(t, len(line), 998)
			require.NotContains(t, line, "\n")
		}
	}
}

func TestEncodingFitsTheText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"Hello\r\nyou", "7bit"}, {strings.Repeat("x", 998) + "\n", "7bit"}, {strings.Repeat("x", 999), "quoted-printable"},
		{"Hello Søn, how are you today?", "quoted-printable"}, {"こんにちは", "base64"}, {"a\x00b is not text, but it arrives", "quoted-printable"},
	} {
		tpl := template()
		tpl.ID, tpl.HTML, tpl.Text = c.want+c.text[:3], "", c.text
		got, err := renderer(t).Email(context.Background(), request(), campaign, tpl)
		require.NoError(t, err)
		m, err := mail.ReadMessage(bytes.NewReader(got.MIME))
		require.NoError(t, err)
		require.Equal(t, c.want, m.Header.Get("Content-Transfer-Encoding"), c.text)
		e, err := gomail.CreateReader(bytes.NewReader(got.MIME))
		require.NoError(t, err)
		part, err := e.NextPart()
		require.NoError(t, err)
		body, err := io.ReadAll(part.Body)
		require.NoError(t, err)
		require.Equal(t, strings.ReplaceAll(c.text, "\r\n", "\n"), strings.ReplaceAll(string(body), "\r\n", "\n"))
	}
}

// A mail of 10 KB with five fields and five links: in ASCII, with a few letters
// that are not, and mostly of such.
func BenchmarkEmail(b *testing.B) {
	for _, c := range []struct{ name, person, line string }{
		{"7bit", "Mika", "<p>Couriers ran in relays, each for a few miles, and handed on the letter box at the next station.</p>\n"},
		{"quoted-printable", "Søn", "<p style=\"margin:0\">Couriers ran in relays, each for a few miles, and handed on the letter box at the next.</p>\n"},
		{"base64", "美香", "<p>飛脚は宿駅ごとに交代し、手紙の入った箱を次の走者に渡した。</p>\n"},
	} {
		b.Run(c.name, func(b *testing.B) {
			r, q, tpl := renderer(b), request(), template()
			q.Attributes[1].Value = event.String(c.person)
			tpl.Subject, tpl.Text = "{{ name }}, this is for you", ""
			tpl.HTML = "<!doctype html><html><body>\n<p>Hello {{ name }} from {{ user_id }}, {{ address }}, plan {{ campaign_id }}, {{ points }} points.</p>\n"
			for i := range 5 {
				tpl.HTML += fmt.Sprintf("<p><a href=\"https://shop.example.test/offers/%d?plan=gold\">Offer %d</a></p>\n", i, i)
			}
			tpl.HTML += strings.Repeat(c.line, (10<<10-len(tpl.HTML))/len(c.line)) + "</body></html>\n"
			b.ReportAllocs()
			var out render.Rendered
			for b.Loop() {
				if err := r.EmailInto(context.Background(), &out, q, campaign, tpl); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(out.MIME)))
			}
		})
	}
}
