package liquid_test

import (
	"context"
	"encoding/csv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

func TestTheRetailExampleParsesAndDoesWhatItSays(t *testing.T) {
	t.Parallel()
	e := liquid.New(liquid.Options{})
	docs, err := definition.Load("../../../examples/online-retail", definition.Options{ParseTemplate: e.Check})
	require.NoError(t, err)
	require.NoError(t, definition.Validate(docs, nil))
	byKind := map[string]definition.Definition{}
	for _, d := range docs {
		byKind[d.Kind] = d.Definition
	}
	require.Len(t, byKind, 4)

	spec := byKind[definition.KindImportSpec].(*definition.ImportSpec)
	rows, err := csv.NewReader(strings.NewReader("InvoiceNo,CustomerID\n569901,12923.0\nC569902,15594\n569903,\n")).ReadAll()
	require.NoError(t, err)
	var got [][]string
	for _, row := range rows[1:] {
		vars := map[string]any{"InvoiceNo": row[0], "CustomerID": row[1]}
		value := func(src string) string {
			tpl, err := e.ParseExpression(src)
			require.NoError(t, err)
			s, err := tpl.Render(context.Background(), vars)
			require.NoError(t, err)
			return s
		}
		vars["user_id"] = value(spec.UserID.Liquid)
		got = append(got, []string{vars["user_id"].(string), value(spec.Profile.Addresses["email"].Liquid), value(spec.Event.Name.Liquid)})
	}
	require.Equal(t, [][]string{{"12923", "c12923@example.test", "purchase"}, {"15594", "c15594@example.test", "cancellation"},
		{"", "c@example.test", "purchase"}}, got)

	thanks := byKind[definition.KindTemplate].(*definition.Template)
	html, err := e.Parse(thanks.HTML, liquid.HTML, thanks.Strict)
	require.NoError(t, err)
	out, err := html.Render(context.Background(), map[string]any{"name": "<Ann>", "user_id": "12923", "country": "France", "unsubscribe_url": "https://x.example.test/u/1"})
	require.NoError(t, err)
	require.Contains(t, out, "Thank you, &lt;Ann&gt;</h1>")
	require.Contains(t, out, "Merci")
	_, err = html.Render(context.Background(), map[string]any{"user_id": "12923"})
	require.EqualError(t, err, "line 42: unsubscribe_url has no value")
}

func TestApplyPointsAtTheLineOfALiquidError(t *testing.T) {
	t.Parallel()
	e := liquid.New(liquid.Options{})
	_, errs := definition.Parse("t.yaml", []byte("kind: Template\nid: t\nchannel: email\nsubject: \"{{ name | upcse }}\"\ntext: |\n  Hello\n  {% if name %}\n"),
		definition.Options{ParseTemplate: e.Check})
	require.Equal(t, "t.yaml:4:10: subject: not Liquid: unknown filter \"upcse\"\n"+
		"t.yaml:7: text: not Liquid: unterminated \"if\" block in {% if name %}", errs.Error())
}
