package console

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

func TestApplyingTwiceIsApplyingOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	const path = "../../examples/online-retail"
	first := s.ok("apply", "-f", path, "--json").one(t)["applied"].([]any)
	require.Len(t, first, 4)
	for _, line := range first {
		l := line.(map[string]any)
		require.Equal(t, []any{1.0, true}, []any{l["version"], l["changed"]}, l)
		require.Contains(t, []any{"ImportSpec", "Audience", "Template", "Campaign"}, l["kind"])
		require.NotEmpty(t, l["id"])
	}
	written := len(records[event.Definition](s, topic.Definitions))
	require.Contains(t, s.ok("apply", "-f", path).out, "unchanged")
	require.Len(t, records[event.Definition](s, topic.Definitions), written, "unchanged definitions are not written")

	require.Contains(t, s.ok("get", "campaigns").out, "thanks-2011")
	shown := s.ok("get", "Audience", "loyal", "--json").one(t)
	require.Equal(t, "loyal", shown["id"])
	require.NotEmpty(t, shown["applied_by"])
	require.Contains(t, shown["body"].(map[string]any), "filter")
	for _, word := range []string{"import-spec", "ImportSpec", "import_specs", "importspec"} {
		require.Contains(t, s.ok("get", word).out, "retail-orders", word)
	}
	require.Equal(t, "[]\n", s.ok("get", "segment", "--json").out, "none is an empty list")

	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"get", "campain"}, `did you mean "campaign"?`},
		{[]string{"get", "wardrobe"}, "one of import-spec, audience, template, campaign, export, segment"},
		{[]string{"get", "audience", "loyl"}, `did you mean "loyal"?`},
		{[]string{"get", "audience", "something-else"}, "hikyaku get audience lists them"},
		{[]string{"get"}, "accepts between 1 and 2 arg"},
		{[]string{"aply"}, "apply"},
		{[]string{"apply"}, `required flag(s) "file"`},
		{[]string{"apply", "-f", t.TempDir()}, "no definitions here"},
		{[]string{"apply", "-f", "/does/not/exist"}, "no such file"},
	} {
		a := s.hikyaku(c.args...)
		require.Equal(t, exitUsage, a.code, c.args)
		require.Contains(t, a.err, c.says, c.args)
		require.Empty(t, a.out, c.args)
	}
}

func TestABadDefinitionIsNamedAndNothingIsApplied(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	dir := files(t, map[string]string{
		"good.yaml": "kind: Audience\nid: good\nfilter:\n  attribute: {name: age, gte: 18}\n",
		"bad.yaml": "kind: Audience\nid: bad\nfilter:\n  attribute: {name: age, gtee: 18}\n---\n" +
			"kind: Template\nid: broken\nchannel: email\nsubject: hello\ntext: |\n  Hello\n  {% if name %}\n---\n" +
			"kind: Campaign\nid: nowhere\naudience: god\ntemplate: broken\nfrom: {address: a@example.test}\n",
		"impossible.yaml": "kind: Audience\nid: nobody\nfilter:\n  event: {name: visit, count: {gte: -1}}\n",
	})
	a := s.hikyaku("apply", "-f", dir)
	require.Equal(t, exitUsage, a.code)
	require.Regexp(t, `bad\.yaml:4:\d+: filter\.attribute\.gtee: .*did you mean "gte"\?`, a.err)
	require.Regexp(t, `bad\.yaml:\d+(:\d+)?: text: .*if`, a.err)
	require.Regexp(t, `impossible\.yaml:4:\d+: filter\.event\.count`, a.err)
	require.Contains(t, a.err, "3 faults in "+dir+"; nothing was applied")
	require.Empty(t, a.out)
	require.Empty(t, records[event.Definition](s, topic.Definitions), "not even what is good")

	asJSON := s.hikyaku("apply", "-f", dir, "--json")
	require.Equal(t, exitUsage, asJSON.code)
	first := asJSON.one(t)["errors"].([]any)[0].(map[string]any)
	require.Equal(t, "gte", first["suggestion"])
	require.Equal(t, 4.0, first["line"])
	require.Equal(t, "filter.attribute.gtee", first["field"])

	// What a definition names must be there.
	missing := files(t, map[string]string{"all.yaml": "kind: Campaign\nid: nowhere\naudience: god\ntemplate: none\nfrom: {address: a@example.test}\n" +
		"---\nkind: Audience\nid: good\nfilter:\n  attribute: {name: age, gte: 18}\n"})
	a = s.hikyaku("apply", "-f", missing)
	require.Equal(t, exitUsage, a.code)
	require.Regexp(t, `all\.yaml:3:\d+: audience: there is no Audience "god"; did you mean "good"\?`, a.err)
	require.Regexp(t, `all\.yaml:4:\d+: template: there is no Template "none"`, a.err)
	require.Empty(t, records[event.Definition](s, topic.Definitions))
}
