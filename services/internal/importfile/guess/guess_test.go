package guess

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/unicode"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

func local(t testing.TB, name, text string) *importfile.Local {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
	f, err := importfile.OpenLocal(p)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// imports applies a guess to its file: what it makes of the first row, and how many
// rows it rejects.
func imports(t testing.TB, yaml string, f *importfile.Local) (spec *definition.ImportSpec, first mapping.Records, rejected int) {
	t.Helper()
	engine := liquid.New(liquid.Options{})
	docs, errs := definition.Parse("guess.yaml", []byte(yaml), definition.Options{ParseTemplate: engine.Check})
	require.Empty(t, errs, yaml)
	require.Len(t, docs, 1)
	spec = docs[0].Definition.(*definition.ImportSpec)
	f.Go(0)
	file, err := importfile.Open(engine, spec, f, importfile.Position{})
	require.NoError(t, err, yaml)
	defer file.Close()
	m, err := mapping.Compile(engine, spec, file.Header(), mapping.Import{ID: identity.Hash("x"), StartedAt: time.Now()})
	require.NoError(t, err, yaml)
	for n := int64(1); ; n++ {
		row, err := file.Next()
		if err == io.EOF {
			return spec, first, rejected
		}
		require.NoError(t, err)
		made, rej := m.Row(row.Fields, row.Line, n)
		if row.Malformed != nil || rej != nil {
			rejected++
		}
		if n == 1 && made.Patch != nil {
			first = made
			patch := *made.Patch
			patch.Set = append(patch.Set[:0:0], patch.Set...)
			patch.Addresses = append(patch.Addresses[:0:0], patch.Addresses...)
			first.Patch = &patch
		}
	}
}

func TestAGuessIsASpecThatRejectsNobody(t *testing.T) {
	t.Parallel()
	sjis, err := japanese.ShiftJIS.NewEncoder().String("会員番号,氏名,メール,誕生日\n0001,山田　太郎,t@example.test,1980/1/2\n0002,佐藤 はなこ,h@example.test,1990/12/31\n")
	require.NoError(t, err)
	euc, err := japanese.EUCJP.NewEncoder().String("会員番号,氏名,メール,誕生日\n0001,山田　太郎,t@example.test,1980/1/2\n0002,佐藤 はなこ,h@example.test,1990/12/31\n")
	require.NoError(t, err)
	latin, err := charmap.Windows1252.NewEncoder().String("Kundennummer;Name;Umsatz;Seit\n7;Müller;1.234,50;02.01.2006\n8;Jäger;3,00;31.12.2010\n")
	require.NoError(t, err)
	wide, err := unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewEncoder().String("id\tName\n1\tÅsa\n2\tØyvind\n")
	require.NoError(t, err)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write([]byte("{\"user\":{\"id\":\"u1\"},\"Plan\":\"gold\",\"age\":7}\n{\"user\":{\"id\":\"u2\"},\"Plan\":\"free\",\"vip\":true}\n"))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	for name, c := range map[string]struct {
		text string
		has  []string
		user string
		set  map[string]any
	}{
		"plain.csv": {"customer_id,E-Mail,First Name,visits,spent,since,vip,zip\n 17 ,a@example.test,Ann,3,1.50,2025-01-31,yes,01234\n18,b@example.test,Bob,4,2,2025-02-01,no,98765\n",
			[]string{"id: plain\n", "format: csv}", "user_id: {column: customer_id, trim: true}", "addresses: {email: {column: E-Mail}}", "first_name: {column: First Name}",
				"visits: {column: visits, type: int}", "spent: {column: spent, type: decimal}", `since: {column: since, type: time, layout: "2006-01-02", zone: UTC}`, "vip: {column: vip, type: bool}", "zip: {column: zip}"}, "17", map[string]any{"first_name": "Ann", "visits": int64(3), "spent": 1.5, "vip": true, "zip": "01234"}},
		"Kunden 2026.csv": {latin, []string{"id: kunden-2026\n", `delimiter: ";", encoding: windows-1252}`, "umsatz: {column: Umsatz, type: decimal, decimal_comma: true}", `layout: "02.01.2006"`}, "7", map[string]any{"name": "Müller", "umsatz": 1234.5}},
		"会員.csv":          {sjis, []string{"id: people\n", "encoding: shift_jis}", `layout: "2006/1/2"`}, "0001", map[string]any{"氏名": "山田　太郎"}},
		"euc.csv":         {euc, []string{"encoding: euc-jp}"}, "0001", map[string]any{"氏名": "山田　太郎"}},
		"wide.txt":        {wide, []string{"format: tsv}"}, "1", map[string]any{"name": "Åsa"}},
		"events.jsonl.gz": {packed.String(), []string{"format: jsonl}", `user_id: {column: "user.id"}`, "age: {column: age, type: int}", "vip: {column: vip, type: bool}"}, "u1", map[string]any{"plan": "gold", "age": int64(7)}},
		"addresses.csv":   {"mail,news\nx@example.test,on\ny@example.test,off\n", []string{"user_id: {column: mail} # there is no column that looks like an id", "email: {column: mail}"}, "x@example.test", map[string]any{"news": "on"}},
		"doubts.csv": {"id,day,n,locale,tz\n" + strings.Repeat("1,03/04/2025,5,en-GB,Europe/London\n", 99) + "1,03/04/2025,many,en-GB,Asia/Tokyo\n", []string{"# or is it 01/02/2006? The values fit both", `"n": {column: "n"} # 1 of 100 values are no whole number, so it stays text`, "locale: {column: locale}", "time_zone: {column: tz}",
			"event: # because 100 rows are about 1 people and have a time", "  name: doubts\n  occurred_at: {column: day, type: time"}, "1", nil},
		"half.csv":      {"CustomerID,InvoiceNo\n1,100\n,101\n2,102\n3,103\n", []string{"user_id: {column: CustomerID} # its name says so; 1 of 4 rows have none and would be rejected", "invoice_no: {column: InvoiceNo, type: int}"}, "1", nil},
		"odd names.csv": {"id,yes,a: b,a# b,{x},,\"q\"\"\",id2\n1,2,3,4,5,6,7,8\n", []string{`"yes": {column: "yes", type: int}`, `a_b_2: {column: "a# b", type: int}`}, "1", nil},
		"nothing else":  {"id\n1\n", []string{"attributes: {id: {column: id}}"}, "1", map[string]any{"id": "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := local(t, strings.ReplaceAll(name, "/", ""), c.text)
			yaml, err := Spec(name, f)
			require.NoError(t, err)
			for _, want := range c.has {
				require.Contains(t, yaml, want)
			}
			_, first, rejected := imports(t, yaml, f)
			require.Equal(t, strings.Count(yaml, "would be rejected"), rejected, yaml)
			require.Equal(t, c.user, first.UserID)
			for k, want := range c.set {
				found := false
				for _, v := range first.Patch.Set {
					if v.Name == k {
						found = true
						require.EqualValues(t, want, v.Value.Any(), k)
					}
				}
				require.True(t, found, "%s in %v\n%s", k, first.Patch.Set, yaml)
			}
		})
	}
}

func TestWhatIsNoTableSaysWhatItIs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "empty", "id,name\n": "no rows", "PK\x03\x04xlsx": "save the sheet as CSV", "%PDF-1.7": "PDF", "[{\"a\":1}]\n": "one JSON array"} {
		_, err := Spec("x", local(t, "x", text))
		var invalid *rows.Invalid
		require.ErrorAs(t, err, &invalid, "%q", text)
		require.Contains(t, invalid.Reason, want)
	}
}

// Whatever the file: a spec that can be read back, or an error in words.
func FuzzSpec(f *testing.F) {
	for _, s := range []string{"id,a\n1,2\n", "{\"id\":1}", "a;b\n1;2\n", "\xff\xfea\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		yaml, err := Spec("a file", local(t, "x", string(in)))
		if err != nil {
			return
		}
		docs, errs := definition.Parse("guess.yaml", []byte(yaml), definition.Options{ParseTemplate: liquid.New(liquid.Options{}).Check})
		require.Empty(t, errs, "%s\n%q", yaml, in)
		require.Len(t, docs, 1, fmt.Sprintf("%q", in))
	})
}
