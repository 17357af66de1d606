package render

import (
	"bytes"
	"html"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// The words random HTML is made of: enough of each kind to be put together into
// what is right, what is broken and what nobody would write.
var htmlWords = []string{
	"<a ", "<A ", "<a\n", "<a\t", "<a/", "<a", "<area ", "<AREA\f", "<aside ", "<b>", "<p ", "</a>", "</p>", "</A >", "</", "</>", "< a", "<", "<<a ", "<1>", "</1>", "</ a>",
	"href=", "HREF=", "href", "href =", "href\n=\n", " href= ", "/href=", "=href=", "hrefs=", "data-href=", "hre\x00f=", "x=", "x", "=", "/", "//", "/>", ">", ">>", " ", "\n", "\r\n", "\t", "\f", "\x00",
	`"`, `'`, `"https://a.test/?x=1&amp;y=2"`, `'http://b.test/'`, `"HTTPS://c.test"`, `https://d.test/e`, `"mailto:a@b.test"`, `"#top"`, `"https://t.test/u/x"`, `" https://e.test "`, `"https://f.test/&copy;&copy=1&notit;&#x41;&#34&unknown;&"`,
	`"//g.test"`, `""`, `"ftp://h.test"`, "\"https://i.test/\r\nj\"", "https://k.test/?a=1&b=2>", `"https://` + "\u00a0" + `l.test"`, "\u00a0",
	"<!--", "-->", "--!>", "<!-->", "<!--->", "-", "--", "!", "<!", "<!DOCTYPE html>", "<!doctype", "<?xml ", "?>", "<![CDATA[", "]]>", "<!DOC>",
	"<script>", "</script>", "<script ", "<SCRIPT/>", "<style>", "</style>", "</STYLE ", "<title>", "</title>", "</ti</title>", "<textarea ", "</textarea/", "<noscript>", "</noscript>", "<xmp>", "</xmp>", "<iframe>", "<plaintext>", "<title/>", "<ſcript>", "<noembed>", "<noframes>",
	"text", "é", "美香", "&amp;", "&", ";", "</body>", "</BODY>", "</Body>", "<body>", "\xff",
}

func randomHTML(r *rand.Rand) string {
	var s strings.Builder
	for range r.IntN(30) {
		s.WriteString(htmlWords[r.IntN(len(htmlWords))])
	}
	return s.String()
}

// requireSameLinks compares all three ways of rewriting links.
func requireSameLinks(t *testing.T, src string) {
	t.Helper()
	var asked []string
	want, err := referenceLinks(nil, src, func(target string) (string, error) {
		asked = append(asked, target)
		if strings.HasPrefix(target, "https://t.test/u/") {
			return target, nil
		}
		return "T(" + target + ")&", nil
	})
	require.NoError(t, err)
	for _, rewrite := range []func(b, src []byte, track tracker) ([]byte, error){rewriteLinks, rewriteLinksByToken} {
		before := []byte("before")
		got, err := rewrite(before, []byte(src), func(b []byte, target string) ([]byte, error) {
			if strings.HasPrefix(target, "https://t.test/u/") {
				return b, nil
			}
			require.Contains(t, asked, target)
			return append(b, html.EscapeString("T("+target+")&")...), nil
		})
		require.NoError(t, err)
		require.Equal(t, "before"+string(want), string(got), "of %q", src)
	}
	pixel := "https://t.test/?a=1&b"
	require.Equal(t, string(referencePixel(bytes.Clone(want), pixel)), string(appendPixel(bytes.Clone(want), []byte(html.EscapeString(pixel)))))
}

func requireSameMIME(t *testing.T, req *event.MessageRequest, campaign *definition.Campaign, subject, text, html string) {
	t.Helper()
	m := &Rendered{Subject: subject, Text: []byte(text), HTML: []byte(html)}
	for _, unsubscribe := range []string{"https://t.test/u/x", "https://t.test/u/" + strings.Repeat("x", 970), "https://t.test/a b/" + strings.Repeat("x", 300)} {
		want, wantErr := referenceMIME(req, campaign, subject, text, html, unsubscribe)
		got, err := appendMIME([]byte("before"), req, campaign, m, unsubscribe)
		if wantErr != nil {
			require.EqualError(t, err, wantErr.Error())
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "before"+string(want), string(got), "of subject %q, text %q, html %q", subject, text, html)
	}
}

func sampleRequest() (*event.MessageRequest, *definition.Campaign) {
	return &event.MessageRequest{MessageID: identity.Hash("m"), Address: "mika@example.test", RequestedAt: time.Date(2026, 1, 2, 9, 30, 0, 123, time.FixedZone("", 3600))},
		&definition.Campaign{From: definition.Sender{Name: "飛脚", Address: "hello@mail.example.test"}, ReplyTo: "help@example.test"}
}

// I5: the scanner finds what the tokenizer finds, in any text.
func TestLinksAreThoseOfTheTokenizer(t *testing.T) {
	t.Parallel()
	for _, begin := range []string{"<!-- x --!>", "<!-- x --!", "<!-->", "<!--->", "<!---->", "<!---!>", "<!--->-->", "<!-- > -->", "<!DOCTYPE html>", "<!>", "</>", "</ >", "<?x>", "<a ='>' href=", "<a ='", "<a x=/", "<a/",
		"<title></ti</title>", "<TITLE/></title >", "<style></stylex></STYLE\n>", "<plaintext>", "<script><!--<script></script>", "<textarea></textarea", "<a href/ ", "<a href= ", "<a href>", "<a\x00 ", "<area/href="} {
		for _, end := range []string{"", "https://x.test>", `"https://x.test">`, `href="https://x.test">`, `<a href="https://x.test">y</a>`, `'<a href=https://x.test/>`} {
			requireSameLinks(t, begin+end)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		requireSameLinks(t, randomHTML(r))
	}
}

// I5: the bytes are the library's, in any text.
func TestMIMEIsThatOfTheLibrary(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	words := []string{"word ", "a", " ", "  ", "\t", "\n", "\r\n", "\r", "=", "é", "美香", "\x00", "\x7f", "\x01", "https://t.test/c/AXUBMUjDhAsiAN7LC4JFXrff97Nv-aw12LwuYOr5MLj60EmJBWVt", "\n\n", ".", "\n.", "--hikyaku-", strings.Repeat("x", 75), strings.Repeat("y", 997), "\xff"}
	body := func() string {
		var s strings.Builder
		foreign := r.IntN(3) // so that each encoding is met often
		for range r.IntN(25) {
			w := words[r.IntN(len(words))]
			if foreign == 0 && strings.ContainsFunc(w, func(r rune) bool { return r == 0 || r > unicode.MaxASCII }) {
				continue
			}
			s.WriteString(w)
			if foreign == 2 {
				s.WriteString("飛脚")
			}
		}
		return s.String()
	}
	names := []string{"", "Hikyaku", "飛脚", `A "quoted" name`, "comma, and (more)", "new\nline", strings.Repeat("long name ", 20)}
	addresses := []string{"a@b.test", `odd name@x.test`, strings.Repeat("l", 70) + "@example.test", "no-at", "é@b.test"}
	for range 4_000 {
		req, campaign := sampleRequest()
		if r.IntN(4) == 0 {
			campaign.From = definition.Sender{Name: names[r.IntN(len(names))], Address: addresses[r.IntN(len(addresses))]}
			campaign.ReplyTo, req.Address = addresses[r.IntN(len(addresses))], addresses[r.IntN(len(addresses))]
			if r.IntN(2) == 0 {
				campaign.ReplyTo, req.RequestedAt = "", time.Time{}
			}
		}
		requireSameMIME(t, req, campaign, strings.Join(strings.Fields(body()), " "), body(), body())
	}
}

func FuzzLinks(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		f.Add(randomHTML(r))
	}
	f.Fuzz(requireSameLinks)
}

func FuzzMIME(f *testing.F) {
	f.Add("Hello Mika", "Hello Søn\n", "<p>Hello \t\n  =美香</p>\r\n")
	f.Fuzz(func(t *testing.T, subject, text, html string) {
		req, campaign := sampleRequest()
		requireSameMIME(t, req, campaign, subject, text, html)
	})
}
