package classify

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "add this version's hash to the list of versions; none is ever changed")

var known = sync.OnceValues(All)

func ours(t testing.TB) *Classifier {
	t.Helper()
	all, err := known()
	require.NoError(t, err)
	return all[len(all)-1]
}

// lines are the rows of a table of test data.
func lines(t testing.TB, name string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		}
	}
	return rows
}

// testdata/hits.tsv says for every hit who made it, and by whose word.
func TestTheLabelledHits(t *testing.T) {
	t.Parallel()
	c := ours(t)
	count, used := map[string]int{}, map[string]bool{}
	for _, row := range lines(t, "hits.tsv") {
		require.Len(t, row, 8, row)
		latency, err := strconv.ParseInt(row[6], 10, 64)
		require.NoError(t, err)
		require.NotEmpty(t, row[7], "whose word is it that this is a %s?", row[0])
		hit := Hit{Kind: row[1], Method: row[2], UserAgent: row[3], Purpose: row[4], Network: row[5], LatencyMs: latency}
		for range 2 { // the second time from memory
			label, rule := c.Classify(hit)
			require.Equal(t, row[0], label, "%+v by %q", hit, rule)
			used[rule] = true
		}
		count[row[0]]++
	}
	t.Log(count)
	require.GreaterOrEqual(t, count[Human]+count[Machine]+count[Unknown], 70)
	require.GreaterOrEqual(t, min(count[Human], count[Machine]), 30, count)
	for _, name := range c.Rules() {
		require.True(t, used[name], "no labelled hit is decided by the rule %s", name)
	}
}

// docs/classifier.md tells every rule of the newest version, in order.
func TestEveryRuleIsExplained(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "classifier.md"))
	require.NoError(t, err)
	var told []string
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "| `"); ok && strings.Count(line, " | ") == 2 {
			name, _, _ = strings.Cut(name, "`")
			told = append(told, name)
		}
	}
	require.Equal(t, ours(t).Rules(), told)
}

// What a version says must not depend on when it was asked: a changed rule is a new
// version, and what people read is restated, not rewritten.
func TestChangedRulesAreANewVersion(t *testing.T) {
	t.Parallel()
	all, err := known()
	require.NoError(t, err)
	known := map[string]string{}
	for _, row := range lines(t, "versions.tsv") {
		require.NotContains(t, known, row[0], "a version is written down once")
		known[row[0]] = row[1]
	}
	for i, c := range all {
		version := fmt.Sprint(c.Version())
		require.True(t, i == 0 || c.Version() > all[i-1].Version())
		if *update && known[version] == "" {
			f, err := os.OpenFile(filepath.Join("testdata", "versions.tsv"), os.O_APPEND|os.O_WRONLY, 0o644)
			require.NoError(t, err)
			_, err = fmt.Fprintf(f, "%s\t%s\n", version, c.SHA256())
			require.NoError(t, err)
			require.NoError(t, f.Close())
			known[version] = c.SHA256()
		}
		require.Equal(t, known[version], c.SHA256(),
			"the rules of version %s have changed: leave them, make a directory for the next version, then go test ./classify -run Version -update", version)
	}
}

func TestBadRulesAreRefused(t *testing.T) {
	t.Parallel()
	const good = "version: 7\nrules:\n  - {name: a, label: machine, methods: [HEAD], why: w, source: s}\n"
	c, err := Parse([]byte(good), nil)
	require.NoError(t, err)
	require.EqualValues(t, 7, c.Version())
	other, err := Parse([]byte(good), []byte("Bot"))
	require.NoError(t, err)
	require.NotEqual(t, c.SHA256(), other.SHA256(), "the list is a part of the rules")
	for name, change := range map[string][2]string{
		"no version":             {"version: 7", "version: 0"},
		"an unknown word":        {"methods", "metods"},
		"another label":          {"machine", "robot"},
		"nothing asked":          {"methods: [HEAD], ", ""},
		"no reason":              {"why: w, ", ""},
		"no source":              {", source: s", ""},
		"a broken expression":    {"methods: [HEAD]", "agents: ['(']"},
		"no network":             {"methods: [HEAD]", "networks: [10.0.0.1/8]"},
		"no time":                {"methods: [HEAD]", "below: -2s"},
		"two of one name":        {"source: s}\n", "source: s}\n  - {name: a, label: human, methods: [GET], why: w, source: s}\n"},
		"a list that is no list": {"methods: [HEAD]", "methods: {a: b}"},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		require.NotEqual(t, good, text, name)
		_, err := Parse([]byte(text), nil)
		require.Error(t, err, name)
	}
	_, err = Parse([]byte(good), []byte("("))
	require.Error(t, err)
}

func TestTheFirstRuleThatHoldsDecides(t *testing.T) {
	t.Parallel()
	c, err := Parse([]byte(`version: 1
rules:
  - {name: near, label: machine, networks: [10.1.0.0/16, "2001:db8::/32"], agents: [x], why: w, source: s}
  - {name: quick, label: machine, below: 2s, kinds: [clicked], why: w, source: s}
  - {name: x, label: human, agents: [x], agents_not: [xx], why: w, source: s}
`), nil)
	require.NoError(t, err)
	for want, h := range map[string]Hit{
		"near machine":  {UserAgent: "X", Network: "10.1.7.0/24", LatencyMs: -1},
		"near machine ": {UserAgent: "X", Network: "10.1.7.9", LatencyMs: -1},
		"near  machine": {UserAgent: "X", Network: "2001:db8:1::/48", LatencyMs: -1},
		"x human":       {UserAgent: "X", Network: "10.1.0.0/12", LatencyMs: -1}, // not all of it lies within
		"x  human":      {UserAgent: "X", Network: "hashed:00", LatencyMs: -1},
		"quick machine": {UserAgent: "X", Kind: "clicked", LatencyMs: 1999},
		"x human ":      {UserAgent: "X", Kind: "clicked", LatencyMs: 2000},
		"x human  ":     {UserAgent: "X", Kind: "clicked", LatencyMs: -1},
		"x   human":     {UserAgent: "X", Kind: "opened"},
		" unknown":      {UserAgent: "XX", LatencyMs: -1},
	} {
		label, rule := c.Classify(h)
		require.Equal(t, strings.Fields(want), strings.Fields(rule+" "+label), "%+v", h)
	}
}

func FuzzClassify(f *testing.F) {
	c := ours(f)
	f.Add("clicked", "GET", "", "Mozilla/5.0", "10.0.0.0/24", int64(5))
	f.Fuzz(func(t *testing.T, kind, method, purpose, agent, network string, latency int64) {
		h := Hit{kind, method, purpose, agent, network, latency}
		label, rule := c.Classify(h)
		if label != Human && label != Machine && label != Unknown {
			t.Fatalf("%q", label)
		}
		if again, by := c.Classify(h); again != label || by != rule {
			t.Fatal("not the same the second time")
		}
		if b, err := json.Marshal(h); err != nil || len(b) == 0 {
			t.Fatal(err)
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	c := ours(b)
	rows := lines(b, "hits.tsv")
	b.Run("known", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			r := rows[i%len(rows)]
			c.Classify(Hit{Kind: r[1], Method: r[2], UserAgent: r[3], Purpose: r[4], Network: r[5], LatencyMs: 5000})
		}
	})
	b.Run("new", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			r := rows[i%len(rows)]
			clear(c.agents)
			c.Classify(Hit{Kind: r[1], Method: r[2], UserAgent: r[3], Purpose: r[4], Network: r[5], LatencyMs: 5000})
		}
	})
}
