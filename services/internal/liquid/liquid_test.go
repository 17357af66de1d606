package liquid

import (
	"context"
	"errors"
	"fmt"
	"html"
	"strings"
	"sync"
	"testing"
	"time"

	osteele "github.com/osteele/liquid"
	"github.com/stretchr/testify/require"
)

func rendered(t *testing.T, mode Mode, strict bool, src string, vars map[string]any) (string, error) {
	t.Helper()
	tpl, err := New(Options{}).Parse(src, mode, strict)
	require.NoError(t, err, src)
	return tpl.Render(context.Background(), vars)
}

func people() map[string]any {
	return map[string]any{
		"name": `<b>Ann & "Bo"</b>`, "city": "Zürich", "empty_text": "", "no": false, "n": 7, "price": 1234567.5, "big": 1e21, "whole": 3.0,
		"when":  time.Date(2011, 6, 1, 12, 30, 0, 0, time.UTC),
		"items": []any{map[string]any{"t": "a<b", "p": 2}, map[string]any{"t": "c", "p": 1}},
		"words": []string{"x", "y", "z"}, "m": map[string]any{"b": 2, "a": 1, "c": 3},
		"row":  map[string]any{"Column Name": "v&w"},
		"nada": nil, "n64": int64(42), "profile": map[string]any{"first": "Bo"},
	}
}

func TestRendering(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ src, text, html string }{
		// Escaping: once, values only, whatever the way.
		{`<i>{{ name }}</i>`, `<i><b>Ann & "Bo"</b></i>`, `<i>&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;</i>`},
		{`{{ name | raw }}`, `<b>Ann & "Bo"</b>`, `<b>Ann & "Bo"</b>`},
		{`{{ name | escape }}`, `&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;`, `&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;`},
		{`{{ name | escape | escape | raw }}`, `&amp;lt;b&amp;gt;Ann &amp;amp; &amp;#34;Bo&amp;#34;&amp;lt;/b&amp;gt;`, `&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;`},
		{`{{ name | upcase }}`, `<B>ANN & "BO"</B>`, `&lt;B&gt;ANN &amp; &#34;BO&#34;&lt;/B&gt;`},
		{`{{ name | append: '<' | prepend: name | size }}`, `35`, `35`},
		{`{{ '<' }}{{ "a" | append: "&" }}`, `<a&`, `&lt;a&amp;`},
		{`{% capture c %}<p>{{ name }}</p>{% endcapture %}{{ c }}`, `<p><b>Ann & "Bo"</b></p>`, `<p>&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;</p>`},
		{`{% capture c %} <p>{{ row['Column Name'] }}</p> {% endcapture %}{{ c | strip | append: row['Column Name'] }}`, `<p>v&w</p>v&w`, `<p>v&amp;w</p>v&amp;w`},
		{`{% capture c %}{{ row['Column Name'] }}{% endcapture %}{{ c | truncate: 2, '' }}{{ c | size }}{{ c | split: '&' | join: '+' }}{{ c | raw }}`, `v&3v+wv&w`, `v&amp;3v+wv&amp;w`},
		{`{% capture c %}{{ row['Column Name'] }}{% endcapture %}{% if c == 'v&w' %}same{% endif %}{% if c contains '&' %} has{% endif %}{% case c %}{% when 'v&w' %} case{% endcase %}`, `same has case`, `same has case`},
		{`{% assign r = name | raw %}{{ r }}{% assign q = name %}{{ q }}`, `<b>Ann & "Bo"</b><b>Ann & "Bo"</b>`, `<b>Ann & "Bo"</b>&lt;b&gt;Ann &amp; &#34;Bo&#34;&lt;/b&gt;`},
		{`{% for i in items %}<li>{{ i.t }}</li>{% endfor %}`, `<li>a<b</li><li>c</li>`, `<li>a&lt;b</li><li>c</li>`},
		{`{% for i in items %}{% cycle '<a>', '<b>' %}{% endfor %}`, `<a><b>`, `<a><b>`},
		{"{{ 'a<\nb' | newline_to_br }}", "", ""}, // an object over two lines does not parse; see the errors
		{`{{ items | map: 't' | join: ', ' }}`, `a<b, c`, `a&lt;b, c`},
		{`{{ name | strip_html }}{{ m | json }}`, `Ann & "Bo"{"a":1,"b":2,"c":3}`, `Ann &amp; &#34;Bo&#34;{&#34;a&#34;:1,&#34;b&#34;:2,&#34;c&#34;:3}`},
		{`{{ 'a &amp; b & c' | escape_once }}`, `a &amp; b &amp; c`, `a &amp; b &amp; c`},

		// Values.
		{`{{ price }} {{ big }} {{ whole }} {{ n64 }} {{ no }} {{ nada }}{{ missing }}{{ missing.deep.er }}.`, `1234567.5 1000000000000000000000 3 42 false .`, ``},
		{`{{ price | append: ' EUR' }}`, `1234567.5 EUR`, ``},
		{`{{ when }} {{ when | date: '%d.%m.%Y' }} {{ '2011-06-01 12:00:00' | date: '%H:%M %Z' }} {{ 0 | date: '%Y' }}`, `2011-06-01 12:30:00 +0000 01.06.2011 12:00 UTC 1970`, ``},
		{`{{ missing | date: '%Y' }}.`, `.`, ``},
		{`{% for p in m %}{{ p[0] }}={{ p[1] }} {% endfor %}`, `a=1 b=2 c=3 `, ``},
		{`{{ m.size }}{{ words.size }}{{ words.first }}{{ words[1] }}{{ items.last.t }}{{ words | last }}`, `33xycz`, ``},
		{`{{ profile.first | default: 'you' }} {{ profile.last | default: 'you' }} {{ empty_text | default: 'none' }}`, `Bo you none`, ``},

		// Conditions.
		{`{% if missing %}a{% elsif no %}b{% elsif empty_text %}c{% else %}d{% endif %}`, `c`, ``},
		{`{% unless name %}a{% else %}b{% endunless %}{% unless missing %}c{% endunless %}`, `bc`, ``},
		{`{% if n > 5 and n < 8 or missing %}yes{% endif %}{% if '7' == n %}no{% endif %}`, `yes`, ``},
		{`{% case n %}{% when 1, 2 %}a{% when 7 %}b{% else %}c{% endcase %}{% case city %}{% when 'x' %}{% else %}!{% endcase %}`, `b!`, ``},

		// Loops.
		{`{% for i in (1..3) %}{{ forloop.index }}{{ i }}{% if forloop.last %}.{% endif %}{% endfor %}`, `112233.`, ``},
		{`{% for i in words limit:2 offset:1 %}{{ i }}{% endfor %}{% for i in words reversed %}{{ i }}{% endfor %}`, `yzzyx`, ``},
		{`{% for i in missing %}a{% else %}none{% endfor %}{% for i in (3..1) %}a{% else %}none{% endfor %}`, `nonenone`, ``},
		{`{% for i in words %}{% if i == 'y' %}{% continue %}{% endif %}{% for j in (1..9) %}{% if j == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{% endfor %}`, `xz`, ``},
		{`{% for i in words %}{{ i }}{% endfor %}{{ i }}{{ forloop.index }}.`, `xyz.`, ``},
		{`{% assign c = InvoiceNo | slice: 0 %}{% if c == 'C' %}cancellation{% else %}purchase{% endif %}`, `purchase`, ``},

		// White space.
		{"a  {{- n -}}  b {%- if n %} c {% endif -%} d", "a7b c d", ``},
		{"{{ ' x ' -}}{{ ' y ' }}", " x  y ", ``},
		{`{% raw %}{{ n }}{% if %}{% endraw %}{% comment %}{% if %}{{ {% endcomment %}.`, `{{ n }}{% if %}.`, ``},

		// Filters.
		{`{{ 7 | divided_by: 2 }} {{ -7 | divided_by: 2 }} {{ 7 | divided_by: 2.0 }} {{ -7 | modulo: 3 }} {{ '4' | times: 2 }} {{ 1 | plus: 2 }} {{ 0.1 | plus: 0.2 | round: 2 }} {{ missing | plus: 1 }}`, `3 -4 3.5 2 8 3 0.3 1`, ``},
		{`{{ 2.5 | round }} {{ -2.5 | round }} {{ 2.1 | ceil }} {{ '2.9' | floor }} {{ -3 | abs }} {{ 5 | at_most: 3 }} {{ 5 | at_least: 8.5 }}`, `3 -3 3 2 3 3 8.5`, ``},
		{`{{ 'élan' | capitalize }} {{ city | slice: 1 }} {{ city | slice: -3, 9 }}|{{ city | slice: 99 }}| {{ city | truncate: 5 }} {{ 'a b c' | truncatewords: 2 }}`, `Élan ü ich|| Zü... a b...`, ``},
		{`{{ 'a,b,,' | split: ',' | size }}{{ 'a,b' | split: ',' | first }}{{ '' | split: ',' | first }}{{ 'b a' | split: ' ' | sort | join }}`, `2aa b`, ``},
		{`{{ items | sort: 'p' | map: 'p' | join }} {{ 'B,a,B' | split: ',' | uniq | sort_natural | reverse | join: '-' }}`, `1 2 B-a`, ``},
		{`{{ 'a b' | url_encode }} {{ 'a+b' | url_decode }} {{ 'aba' | replace: 'a', 'x' }} {{ 'aba' | replace_first: 'a', 'x' }} {{ 'aba' | remove: 'a' }}{{ 'aba' | remove_first: 'a' }}`, `a+b a b xbx xba bba`, ``},
		{`{{ words | concat: words | size }}{{ words | compact | join: '' }}{{ ' a ' | lstrip }}{{ ' a ' | rstrip }}.`, `6xyza  a.`, ``},
	} {
		if c.text == "" {
			continue
		}
		got, err := rendered(t, Text, false, c.src, people())
		require.NoError(t, err, c.src)
		require.Equal(t, c.text, got, c.src)
		got, err = rendered(t, HTML, false, c.src, people())
		require.NoError(t, err, c.src)
		if c.html == "" {
			got = html.UnescapeString(got)
			c.html = c.text
		}
		require.Equal(t, c.html, got, c.src)
	}
}

func TestATemplateThatDoesNotParseSaysWhereAndWhy(t *testing.T) {
	t.Parallel()
	e := New(Options{MaxDepth: 5, MaxSourceBytes: 2000})
	for src, want := range map[string]string{
		"a\nb {{ name":        "line 2: {{ is empty, does not end, or goes over a line's end",
		"{{ }}":               `line 1: syntax error in " " in {{ }}`,
		"{{}}":                "line 1: {{ is empty, does not end, or goes over a line's end",
		"\n\n{{ a b }}":       `line 3: syntax error in "a b" in {{ a b }}`,
		"{{ a\n | upcase }}":  "line 1: {{ is empty, does not end, or goes over a line's end",
		"x\n{% if a %}y":      `line 2: unterminated "if" block in {% if a %}`,
		"{% if %}{% endif %}": "line 1: {% if %} tests nothing",
		"{% endif %}":         "line 1: {% endif %} where no {% if %} is open",
		"{% for a in b %}{% endif %}{% endfor %}": "line 1: {% endif %} where no {% if %} is open",
		"\n{% else %}": `line 2: else not inside case or for or if or unless in {% else %}`,
		"{% if a %}{% else %}{% elsif b %}{%endif%}": "line 1: else comes last",
		"{% comment %} x":                     "line 1: {% comment %} does not end",
		"\n{% raw %} x":                       "line 2: {% raw %} does not end",
		"\n{% include 'x' %}":                 `line 2: unknown tag "include"`,
		"{% frob %}{% endfrob %}":             `line 1: unknown tag "frob"`,
		"\n{{ a | upcse }}":                   `line 2: unknown filter "upcse"`,
		"{% assign x = a | nope %}":           `line 1: unknown filter "nope"`,
		"{% for x in a | nope %}{% endfor %}": `line 1: unknown filter "nope"`,
		"{% assign x %}":                      "line 1: syntax error in {% assign x %}; expected {% assign name = value %}",
		"{% for x of a %}{% endfor %}":        "line 1: syntax error in {% for x of a %}; expected {% for item in list %}",
		"{% capture %}{% endcapture %}":       "line 1: syntax error in {% capture %}; expected {% capture name %}",
		"{% break %}":                         "line 1: break outside of a for",
		"{{ 99999999999999999999 }}":          `line 1: syntax error: strconv.ParseInt: parsing "99999999999999999999": value out of range in {{ 99999999999999999999 }}`,
		"{{ 'now' | date: '%Y' }}":            "line 1: the date of now is not the same when a message is rendered again; use a variable, such as requested_at",
		"{{ a | raw | upcase }}":              "line 1: raw comes last: what other filters make of it is escaped",
		"{% if a != blank %}{% endif %}":      `line 1: "blank" is not a value here; compare with "" or nil`,
		strings.Repeat("{% if a %}", 9) + strings.Repeat("{% endif %}", 9): "tags are nested more than 5 deep",
		strings.Repeat("x", 2001): "2001 bytes; a template has at most 2000",
		"\xff":                    "not UTF-8 text",
	} {
		_, err := e.Parse(src, HTML, false)
		var own *Error
		require.ErrorAs(t, err, &own, src)
		require.Equal(t, want, err.Error(), src)
		require.Equal(t, own.Line, own.LineNumber())
	}
}

func TestAStrictTemplateNamesWhatHasNoValue(t *testing.T) {
	t.Parallel()
	for src, variable := range map[string]string{
		"a\n{{ nome }}":                              "nome",
		"{{ profile.last }}":                         "profile.last",
		"{{ row['Other Name'] }}":                    "row['Other Name']",
		"{{ nome | upcase }}":                        "nome",
		"{{ nome | size }}":                          "nome",
		"{{ name | append: nome }}":                  "nome",
		"{{ nada }}":                                 "nada",
		"{{ name | default: 'x' | append: nome }}":   "nome",
		"{{ profile.last | default: nome }}":         "profile.last | default: nome",
		"{% assign x = nome %}{{ x }}":               "x",
		"{% for w in words %}{{ nome }}{% endfor %}": "nome",
	} {
		_, err := rendered(t, HTML, true, src, people())
		var own *Error
		require.ErrorAs(t, err, &own, src)
		require.Equal(t, variable, own.Variable, src)
		require.Equal(t, 1+strings.Count(src, "\n"), own.Line)
		require.Equal(t, variable+" has no value", own.Message)
		_, err = rendered(t, HTML, false, src, people())
		require.NoError(t, err, src)
	}
	for _, src := range []string{
		"Thank you{% if nome %}, {{ nome }}{% endif %}", "{{ nome | default: 'you' }}", "{% unless nome %}x{% endunless %}", "{{ empty_text }}{{ no }}",
		"{{ nome == nil }}", "{% for x in nome %}{{ x.y }}{% endfor %}", "{{ name | default: nome }}", "{{ 'x' | append: name }}",
	} {
		_, err := rendered(t, HTML, true, src, people())
		require.NoError(t, err, src)
	}
}

func TestAFailureNamesTheLineAndNoValue(t *testing.T) {
	t.Parallel()
	vars := map[string]any{"secret": "ann@example.test", "list": []any{1}, "m": map[string]any{"k": "ann@example.test"}}
	for src, want := range map[string]string{
		"\n{{ secret | times: 2 }}":                     "line 2: filter times needs a number in secret | times: 2",
		"{{ secret | date: '%Y' }}":                     "line 1: filter date needs a time in secret | date: '%Y'",
		"{% assign n = 'now' %}{{ n | date: '' }}":      "line 1: filter date knows no now; use a variable, such as requested_at in n | date: ''",
		"{{ secret | join: ',' }}":                      "line 1: filter join needs a list in secret | join: ','",
		"{{ m | first }}":                               "line 1: filter first needs a list in m | first",
		"{{ 1 | divided_by: 0 }}":                       "line 1: filter divided_by makes a whole number beyond 64 bits, or divides by zero in 1 | divided_by: 0",
		"{{ 1.5 | divided_by: 0 }}":                     "line 1: filter divided_by makes no number in 1.5 | divided_by: 0",
		"{{ secret | upcase: 1, 2 }}":                   "line 1: filter upcase takes 0 arguments, not 2 in secret | upcase: 1, 2",
		"{% for i in (1..secret) %}{% endfor %}":        "line 1: a value has the wrong type in (1..secret)",
		"{% for i in list limit: secret %}{% endfor %}": "line 1: limit of the for is not a whole number",
		"{{ 1 | date: '%999Y' }}":                       "line 1: filter date takes widths of at most two digits in 1 | date: '%999Y'",
		"{{ 9223372036854775807 | plus: 1 }}":           "line 1: filter plus makes a whole number beyond 64 bits, or divides by zero in 9223372036854775807 | plus: 1",
	} {
		_, err := rendered(t, Text, false, src, vars)
		require.EqualError(t, err, want, src)
		require.NotContains(t, err.Error(), "ann@")
	}
}

func TestNothingRunsOnOrWritesWithoutEnd(t *testing.T) {
	t.Parallel()
	e := New(Options{MaxOutputBytes: 1000, MaxSteps: 5000})
	for src, want := range map[string]string{
		"{% for i in (1..1000000000) %}{% endfor %}":                                                                    "more than 5000 steps",
		"{% for i in (1..1000000000) %}xxxxxxxxxxxx{% endfor %}":                                                        "more than 1000 bytes",
		"{% for i in (1..99) %}{% for j in (1..99) %}{% endfor %}{% endfor %}":                                          "more than 5000 steps",
		"{% assign x = 'ab' %}{% for i in (1..50) %}{% assign x = x | append: x %}{% endfor %}":                         "line 1: filter append makes more than 1000 bytes in  x | append: x",
		"{% capture x %}{% for i in (1..999) %}ab{% endfor %}{% endcapture %}":                                          "more than 1000 bytes",
		"{% assign x = 'aaaaaaaaaa' %}{% for i in (1..9) %}{% assign x = x | replace: 'a', 'aaaaaaaaaa' %}{% endfor %}": "line 1: filter replace makes more than 1000 bytes in x | replace: 'a', 'aaaaaaaaaa'",
		"{{ (1..1000000000) | join: '' }}":                                                                              "line 1: filter join needs a list of at most 100000 items in (1..1000000000) | join: ''",
	} {
		tpl, err := e.Parse(src, Text, false)
		require.NoError(t, err)
		_, err = tpl.Render(context.Background(), nil)
		require.EqualError(t, err, strings.ReplaceAll(want, "  ", " "), src)
	}
	endless, err := New(Options{MaxSteps: 1 << 60, Timeout: time.Millisecond}).Parse("{% for i in (1..1000000000) %}{% endfor %}", Text, false)
	require.NoError(t, err)
	_, err = endless.Render(context.Background(), nil)
	require.EqualError(t, err, "longer than 1ms")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = endless.Render(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAnErrorLeavesTheBufferAsItWas(t *testing.T) {
	t.Parallel()
	tpl, err := New(Options{}).Parse("abc{{ x }}", Text, true)
	require.NoError(t, err)
	out, err := tpl.Append(context.Background(), []byte("before"), nil)
	require.Error(t, err)
	require.Equal(t, "before", string(out))
	out, err = tpl.Append(context.Background(), out, map[string]any{"x": 1})
	require.NoError(t, err)
	require.Equal(t, "beforeabc1", string(out))
}

func TestVariablesAreThoseTheTemplateReads(t *testing.T) {
	t.Parallel()
	tpl, err := New(Options{}).ParseExpression(`{% assign c = InvoiceNo | slice: from %}{% if c == 'C' and user_id %}{{ row['Column Name'] | append: "a.b | c" }}{% endif %}` +
		`{% for i in list.of[n].x limit: max reversed %}{{ i.name }}{{ forloop.index }}{{ other[i] }}{% endfor %}{% case k %}{% when w %}{% endcase %}{{ i }}{{ a.b.c }}{% capture z %}{{ z }}{% endcapture %}`)
	require.NoError(t, err)
	require.Equal(t, [][]string{{"InvoiceNo"}, {"a", "b", "c"}, {"from"}, {"i"}, {"k"}, {"list", "of"}, {"max"}, {"n"}, {"other"},
		{"row", "Column Name"}, {"user_id"}, {"w"}, {"z"}}, tpl.Variables())
}

func TestVariablesOfTheCallerAreNotChanged(t *testing.T) {
	t.Parallel()
	vars := map[string]any{"a": 1}
	got, err := rendered(t, Text, false, "{% assign a = 2 %}{% capture b %}x{% endcapture %}{% for i in (1..2) %}{{ a }}{% endfor %}", vars)
	require.NoError(t, err)
	require.Equal(t, "22", got)
	require.Equal(t, map[string]any{"a": 1}, vars)
}

func TestOneTemplateRendersForManyAtOnce(t *testing.T) {
	t.Parallel()
	tpl, err := New(Options{}).Parse(`{% assign x = n | plus: 1 %}{% for i in (1..3) %}{{ x | append: '<' }}{% cycle 'a', 'b' %}{% endfor %}{% capture c %}{{ n }}{% endcapture %}{{ c | upcase }}`, HTML, true)
	require.NoError(t, err)
	var wait sync.WaitGroup
	for n := range 16 {
		wait.Go(func() {
			for range 200 {
				got, err := tpl.Render(context.Background(), map[string]any{"n": n})
				if want := fmt.Sprintf("%[1]d&lt;a%[1]d&lt;b%[1]d&lt;a%[2]d", n+1, n); err != nil || got != want {
					t.Errorf("%d: %q, %v", n, got, err)
					return
				}
			}
		})
	}
	wait.Wait()
}

func TestTimesWithoutZoneAreUTCOnEveryMachine(t *testing.T) {
	t.Parallel()
	got, err := rendered(t, Text, false, `{{ '2011-06-01' | date: '%FT%T%z' }} {{ 'Wed, 01 Jun 2011 00:00:00 EST' | date: '%z' }}`, nil)
	require.NoError(t, err)
	require.Equal(t, "2011-06-01T00:00:00+0000 +0000", got)
}

func FuzzRender(f *testing.F) {
	for _, s := range []string{
		`{{ a | default: "x" }}`, `{% for i in (1..9) %}{{ i | times: a }}{% endfor %}`, `{% capture x %}{{ a }}{% endcapture %}{{ x | upcase }}`,
		`{%- case a -%}{% when 1, 'b' %}{% endcase %}`, `{{ m.k[a]['b'].c | sort: 'x' | date }}`, `{% assign x = a contains 'b' %}{% cycle 'a','b' %}`,
	} {
		f.Add(s)
	}
	e := New(Options{MaxOutputBytes: 10_000, MaxSteps: 2000})
	vars := map[string]any{"a": "<b>&", "n": 3, "f": 2.5, "m": map[string]any{"k": []any{1, "x", nil, map[string]any{"b": 1}}}, "t": time.Unix(0, 0).UTC(), "l": []string{"a", "b"}}
	f.Fuzz(func(t *testing.T, src string) {
		for _, mode := range []Mode{Text, HTML} {
			tpl, err := e.Parse(src, mode, false)
			if err != nil {
				var own *Error
				if !errors.As(err, &own) {
					t.Fatalf("%T", err)
				}
				continue
			}
			a, errA := tpl.Render(context.Background(), vars)
			b, errB := tpl.Render(context.Background(), vars)
			if a != b || (errA == nil) != (errB == nil) {
				t.Fatalf("not the same twice: %q %v, %q %v", a, errA, b, errB)
			}
			if len(a) > 10_000 {
				t.Fatal("too long")
			}
		}
	})
}

// page is an e-mail of 10 KB with five fields.
func page() (string, map[string]any) {
	var b strings.Builder
	paragraph := strings.Repeat("<p style=\"margin:0\">The quick brown fox jumps over the lazy dog.</p>\n", 28)
	for i := range 5 {
		b.WriteString(paragraph)
		fmt.Fprintf(&b, "<p>{{ field_%d }}</p>\n", i)
	}
	vars := map[string]any{}
	for i := range 5 {
		vars[fmt.Sprintf("field_%d", i)] = "Ann & Bo <of> the Hill"
	}
	return b.String(), vars
}

func BenchmarkRender10KB(b *testing.B) {
	src, vars := page()
	filtered := strings.ReplaceAll(src, " }}", " | default: 'you' | upcase }}")
	for name, s := range map[string]string{"plain": src, "filters": filtered} {
		tpl, err := New(Options{}).Parse(s, HTML, true)
		require.NoError(b, err)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				if buf, err = tpl.Append(context.Background(), buf[:0], vars); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(buf)))
		})
		raw, err := osteele.NewEngine().ParseString(s)
		require.NoError(b, err)
		b.Run(name+"/osteele", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := raw.Render(vars); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkExpression(b *testing.B) {
	for _, src := range []string{"c{{ user_id }}@example.test", "{{ CustomerID | split: '.' | first }}",
		"{% assign c = InvoiceNo | slice: 0 %}{% if c == 'C' %}cancellation{% else %}purchase{% endif %}"} {
		tpl, err := New(Options{}).ParseExpression(src)
		require.NoError(b, err)
		vars := map[string]any{"user_id": "12345", "CustomerID": "12345.0", "InvoiceNo": "C569901"}
		b.Run(src, func(b *testing.B) {
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				if buf, err = tpl.Append(context.Background(), buf[:0], vars); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
