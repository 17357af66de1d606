package intake

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// texts are JSON, almost JSON, and what a scanner may stumble over.
var texts = []string{
	`{"a":1,"b":[true,false,null,"x"],"c":{"d":{}},"a":2}`, ` [ ] `, `[[],[[]],{}]`, `{ }`, `"plain"`, `"\u98db\u811a \ud83d\ude00 \ud83d x \ude00 \ud83d\u0041 \ud800\ud800\udc00"`,
	`"\"\\\/\b\f\n\r\t"`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\`, `"\"`, `"`, "\"\x00\"", "\"a\nb\"", "\"\x7f\"", "\"\xff\xfe ok \xc3\x28\xe2\x82\"", "\"飛脚\"", "\"\xed\xa0\x80\"", `"\u0000"`,
	`0`, `-0`, `-0.0`, `01`, `-`, `+1`, `1.`, `.5`, `1.5e`, `1e+`, `1E-2`, `1e5`, `123456789012345678`, `9223372036854775807`, `9223372036854775808`, `-9223372036854775808`,
	`-9223372036854775809`, `18446744073709551616`, `1e308`, `1e309`, `-1e999`, `5e-324`, `1e-400`, `0.1`, `3.14159265358979323846264338327950288`, `1.0`, `2e0`, `00`, `1 2`, `1,`,
	`tru`, `true`, `True`, `nul`, `null`, `false `, `nan`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{a:1}`, `{'a':1}`, `[1,]`, `[,1]`, `[1 2]`, `[1`, `{"a":1`, `{"a":1]`, `[1}`, `]`, `}`, ``, ` `, "\ufeff{}",
	`{"b":1,"a":2,"c":[{"z":"<&>","y":1.0,"x":1e21,"z":-0.0}],"b":[ ],"a":{ }}`, `[1e309]`, `{"a":[{"b":1e999}]}`, "[\"\u2028 \u2029 飛脚 \x7f\",\"\\u2028\\b\\f\\u0001\"]", `[9223372036854775808,-0,0.1e-6,123456789e20]`, `{"é":1,"e":2,"\ud800":3}`,
	`{"us\u0065rId":"x"}`, `{"":1}`, `{"a":1,"a":[2]}`, "[1]\x00", "\t\r\n 1 \t", "\v1", `{"a":"b":"c"}`, strings.Repeat("[", 9999) + strings.Repeat("]", 9999), strings.Repeat("[", 10000) + strings.Repeat("]", 10000),
	strings.Repeat("[", 10001) + strings.Repeat("]", 10001), strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70), strings.Repeat(`[{"a":`, 200) + "[]" + strings.Repeat("}]", 200), strings.Repeat("[", 500_000),
}

func TestJSONIsReadAsTheStandardLibraryReadsIt(t *testing.T) {
	t.Parallel()
	for _, text := range texts {
		sameJSON(t, []byte(text))
	}
}

func FuzzScanner(f *testing.F) {
	for _, text := range texts {
		if len(text) < 1000 {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(sameJSON)
}

// sameJSON compares the scanner with encoding/json: what is JSON, what strings and values are, and what an object holds.
func sameJSON(t *testing.T, raw []byte) {
	about := string(raw[:min(len(raw), 200)])
	p := scanner{s: string(raw)}
	p.skip()
	p.end()
	require.Equal(t, json.Valid(raw), p.bad == "", about)
	if p.bad != "" {
		require.NotNil(t, p.problem())
		require.LessOrEqual(t, p.pos, len(raw))
		return
	}
	p = scanner{s: string(raw)}
	switch p.peek() {
	case '"':
		var want string
		require.NoError(t, json.Unmarshal(raw, &want))
		require.Equal(t, want, p.text(), about)
	case '{':
		var want map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(raw, &want))
		got := map[string]json.RawMessage{}
		for more := p.opened('}'); more; more = p.more('}') {
			key, ok := p.key()
			require.True(t, ok)
			p.peek()
			start := p.at
			p.skip()
			got[key] = json.RawMessage(p.s[start:p.at])
		}
		require.Equal(t, want, got, about)
	}
	if depthOf(raw) > maxDepth {
		_, problem, _ := (&scanner{s: string(raw)}).value()
		require.Equal(t, "depth", problem)
		return
	}
	p = scanner{s: string(raw)}
	got, problem, _ := p.value()
	want, err := event.FromJSON(raw)
	require.Equal(t, err != nil, problem != "", about)
	require.Empty(t, p.bad)
	if err == nil {
		require.True(t, want.Equal(got), "%s: %v and %v", about, want, got)
	}
}

// depthOf counts brackets of what is JSON.
func depthOf(raw []byte) (deepest int) {
	within, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && bytes.IndexByte([]byte("{["), c) >= 0:
			within++
			deepest = max(deepest, within)
		case !quoted && bytes.IndexByte([]byte("}]"), c) >= 0:
			within--
		}
	}
	return deepest
}
