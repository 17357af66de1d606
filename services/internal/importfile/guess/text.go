package guess

import (
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/hikyaku/hikyaku/services/internal/importfile/csv"
	"github.com/hikyaku/hikyaku/services/internal/importfile/layers"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
)

// guessEncoding is one of definition.Encodings, never auto.
func guessEncoding(text []byte) string {
	if e := layers.Encoding(layers.Auto, text); e != layers.UTF8 {
		return e
	}
	whole := text
	for i := 0; i < utf8.UTFMax && len(whole) == sampleBytes-i; i++ { // the cut may go through a rune
		if utf8.Valid(whole) {
			break
		}
		whole = whole[:len(whole)-1]
	}
	if bytes.Count(text, []byte{0}) > len(text)/4 {
		return "utf-16"
	}
	if utf8.Valid(whole) {
		return layers.UTF8
	}
	best, most := "windows-1252", 0
	for _, e := range []string{"shift_jis", "euc-jp"} {
		decoded, err := io.ReadAll(layers.Decode(e, bytes.NewReader(text)))
		if err != nil {
			continue
		}
		if s := likeJapanese(string(decoded)); s > most {
			best, most = e, s
		}
	}
	return best
}

// likeJapanese is how much a text looks like Japanese: letters of its three scripts, less
// what only the wrong decoding makes of them. 0 if it is none.
func likeJapanese(text string) int {
	letters, odd := 0, 0
	for _, r := range text {
		switch {
		case r == utf8.RuneError:
			odd += 20
		case r >= 0xff61 && r <= 0xff9f: // halfwidth katakana: what Shift_JIS reads in EUC-JP
			odd++
		case unicode.In(r, unicode.Hiragana, unicode.Katakana, unicode.Han):
			letters++
		case r > unicode.MaxASCII && !unicode.In(r, unicode.Punct, unicode.Symbol) && (r < 0xff01 || r > 0xffee) && r != 'ー' && r != '\u3000':
			odd++
		}
	}
	return max(0, letters-odd)
}

// guessDelimiter takes the one that cuts the most rows into the same number of
// columns, and of those the one that cuts them into the most.
func guessDelimiter(text []byte) string {
	best, bestSame, bestColumns := ",", 0, 1
	for _, d := range []byte{',', ';', '\t', '|'} {
		counts := map[int]int{}
		r := csv.NewReader(rows.NewText(bytes.NewReader(text), "", 0, 1), d)
		n := 0
		for ; n < 100; n++ {
			row, err := r.Next()
			if err != nil {
				break
			}
			counts[len(row.Fields)]++
		}
		for columns, same := range counts {
			same = same * 20 / max(n, 1) // what differs by less than a twentieth is as good
			if columns > 1 && (same > bestSame || same == bestSame && columns > bestColumns) {
				best, bestSame, bestColumns = string(d), same, columns
			}
		}
	}
	return best
}

const maxKeys = 200

// keys are the columns of JSON Lines, in the order in which they first appear; those
// inside objects as object.key.
func keys(text []byte) []string {
	var out []string
	seen := map[string]bool{}
	var walk func(o gjson.Result, prefix string)
	walk = func(o gjson.Result, prefix string) {
		o.ForEach(func(key, value gjson.Result) bool {
			name := prefix + key.Str
			if value.IsObject() && strings.Count(name, ".") < 5 {
				walk(value, name+".")
			} else if key.Str != "" && !seen[name] && len(out) < maxKeys {
				seen[name] = true
				out = append(out, name)
			}
			return true
		})
	}
	for line := range bytes.Lines(text) {
		if gjson.ValidBytes(line) {
			walk(gjson.ParseBytes(line), "")
		}
	}
	if out == nil {
		out = []string{"id"}
	}
	return out
}
