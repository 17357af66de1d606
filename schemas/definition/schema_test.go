package definition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

// judges compiles the schema of every kind.
func judges(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	for file, kind := range map[string]string{"filter": "Filter", "import-spec": KindImportSpec, "audience": KindAudience, "template": KindTemplate, "campaign": KindCampaign, "export": KindExport} {
		schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema(kind)))
		require.NoError(t, err, kind)
		require.NoError(t, c.AddResource("mem:///"+file+".schema.json", schema))
	}
	out := map[string]*jsonschema.Schema{}
	for file, kind := range map[string]string{"import-spec": KindImportSpec, "audience": KindAudience, "template": KindTemplate, "campaign": KindCampaign, "export": KindExport} {
		s, err := c.Compile("mem:///" + file + ".schema.json")
		require.NoError(t, err)
		out[kind] = s
	}
	return out
}

// verdicts reads one document both ways: whether its schema accepts it, whether Load finds its shape right, and whether Load accepts it.
func verdicts(t *testing.T, schemas map[string]*jsonschema.Schema, n *node) (schema, shape, accepted bool, why string) {
	t.Helper()
	d := &decoder{file: "testdata/valid/x.yaml"}
	d.document(n)
	shape = true
	for _, e := range d.errs {
		shape = shape && e.meaning
	}
	kind := n.field("kind")
	if kind == nil || schemas[kind.text] == nil {
		return shape, shape, len(d.errs) == 0, "no schema to ask"
	}
	b, err := json.Marshal(n.plain())
	require.NoError(t, err)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	require.NoError(t, err)
	err = schemas[kind.text].Validate(value)
	return err == nil, shape, len(d.errs) == 0, fmt.Sprintf("%s\nschema: %v\nload: %v", b, err, d.errs)
}

func documents(t *testing.T, glob string) []*node {
	t.Helper()
	files, err := filepath.Glob(glob)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var out []*node
	for _, f := range files {
		src, err := os.ReadFile(f)
		require.NoError(t, err)
		docs, perr := parseYAML(f, src)
		require.Nil(t, perr)
		out = append(out, docs...)
	}
	return out
}

func TestSchemasAndLoadGiveTheSameVerdict(t *testing.T) {
	t.Parallel()
	schemas := judges(t)
	for dir, want := range map[string]struct{ schema, accepted bool }{
		"valid": {true, true}, "invalid": {false, false}, "impossible": {true, false},
	} {
		for _, n := range documents(t, "testdata/"+dir+"/*.yaml") {
			schema, shape, accepted, why := verdicts(t, schemas, n)
			require.Equal(t, schema, shape, why)
			require.Equal(t, want.schema, schema, why)
			require.Equal(t, want.accepted, accepted, why)
		}
	}
}

// TestSchemasAndLoadAgreeOnEveryDamage changes every place of every valid document, one at a time: the two must go on agreeing.
func TestSchemasAndLoadAgreeOnEveryDamage(t *testing.T) {
	t.Parallel()
	schemas := judges(t)
	count := 0
	for _, doc := range documents(t, "testdata/valid/*.yaml") {
		check := func(what string) {
			count++
			schema, shape, _, why := verdicts(t, schemas, doc)
			require.Equal(t, schema, shape, "%s\n%s", what, why)
		}
		replacements := func() []*node {
			return []*node{
				{shape: null}, {shape: text}, {shape: text, text: "x"}, {shape: text, text: "Big Word"}, {shape: text, text: "3d"},
				{shape: text, text: "2011-06-01", quoted: true}, {shape: integer, int: 3}, {shape: integer, int: -1}, {shape: float, float: 1.5},
				{shape: boolean, bool: true}, {shape: list}, {shape: list, items: []*node{{shape: integer, int: 1}}},
				{shape: list, items: []*node{{shape: text, text: "x"}, {shape: integer}}}, {shape: object},
				{shape: object, fields: []entry{{key: "column", value: &node{shape: text, text: "C"}}}},
				{shape: object, fields: []entry{{key: "time", value: &node{shape: text, text: "2011-06-01"}}}},
			}
		}
		var damage func(n *node, path string)
		damage = func(n *node, path string) {
			whole := *n
			if path != ".kind" {
				for _, r := range replacements() {
					*n = *r
					check(fmt.Sprintf("%s replaced", path))
				}
			}
			*n = whole
			for i, item := range whole.items {
				damage(item, fmt.Sprintf("%s[%d]", path, i))
				n.items = append(append([]*node{}, whole.items[:i]...), whole.items[i+1:]...)
				check(fmt.Sprintf("%s[%d] taken away", path, i))
				*n = whole
			}
			for i, f := range whole.fields {
				damage(f.value, path+"."+f.key)
				if f.key == "kind" {
					continue
				}
				n.fields = append(append([]entry{}, whole.fields[:i]...), whole.fields[i+1:]...)
				check(path + "." + f.key + " taken away")
				for _, other := range []string{f.key + "x", "lt", "gte", "gt", "lte", "eq", "in", "exists", "count", "type", "layout", "since", "within", "html"} {
					if whole.field(other) != nil {
						continue
					}
					n.fields = append(append([]entry{}, whole.fields...), entry{key: other, value: f.value})
					check(path + "." + other + " added")
				}
				*n = whole
			}
		}
		damage(doc, "")
	}
	require.Greater(t, count, 5000)
}
