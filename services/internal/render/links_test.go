package render

import (
	"html"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyTheTargetsOfLinksChange(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`<a href='https://x.test/?a=1&amp;b=2'>q</a>`:          `<a href="T(https://x.test/?a=1&amp;b=2)">q</a>`,
		`<A title="a>b" HREF=http://x.test/>q</A>`:             `<A title="a>b" HREF="T(http://x.test/)">q</A>`,
		`<a href="mailto:a@b.test">m</a> <a href="#top">t</a>`: `<a href="mailto:a@b.test">m</a> <a href="#top">t</a>`,
		`<!-- <a href="https://c.test"> -->`:                   `<!-- <a href="https://c.test"> -->`,
		`<img src="https://x.test/i.png">`:                     `<img src="https://x.test/i.png">`,
		`1 < 2 & fewer than <b`:                                `1 < 2 & fewer than <b`,
		`<p>a</p><a href='https://x.test`:                      `<p>a</p><a href='https://x.test`,
		``:                                                     ``,
	} {
		got, err := rewriteLinks(nil, []byte(in), func(b []byte, target string) ([]byte, error) {
			return append(b, html.EscapeString("T("+target+")")...), nil
		})
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}
