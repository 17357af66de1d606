package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

const membersYAML = `---
kind: ImportSpec
id: members
source: {prefix: imports/members/, format: csv}
user_id: {column: id}
profile:
  addresses: {email: {column: email}}
  consents: {email: {column: consent}}
  attributes: {plan: {column: plan}, points: {column: points, type: int}}
  locale: {column: locale}
segment: {id: members, attributes: {coupon: {column: coupon}}}
event: {name: renewed, id: "{{ id }}-{{ day }}", occurred_at: {column: day, layout: "2006-01-02", zone: UTC}}
---
kind: Audience
id: members
filter: {segment: members}
`

// memberList is a file of members from..to; what they have depends on the edition.
func memberList(edition, from, to int) string {
	var b strings.Builder
	b.WriteString("id,email,consent,plan,points,locale,coupon,day\n")
	for i := from; i < to; i++ {
		consent := ""
		if (i+edition)%7 == 0 {
			consent = "unsubscribed"
		}
		fmt.Fprintf(&b, "m%04d,m%04d.%d@example.test,%s,%s,%d,%s,C%d-%d,2026-10-%02d\n",
			i, i, edition, consent, []string{"gold", "silver"}[(i+edition)%2], i*edition, []string{"en", "ja"}[edition%2], edition, i, 10+edition)
	}
	return b.String()
}

// everything is what is known of people: profiles without their revision, events,
// and who is in the segment.
func (b *bench) everything() string {
	b.t.Helper()
	var all []any
	for _, query := range []string{
		"SELECT * EXCEPT (revision, ingested_at, kafka_topic, kafka_partition, kafka_offset) FROM profiles ORDER BY user_id",
		"SELECT * EXCEPT (source, received_at, ingested_at, kafka_topic, kafka_partition, kafka_offset) FROM events ORDER BY user_id, event_id",
	} {
		all = append(all, b.rows(query))
	}
	text, err := json.MarshalIndent(append(all, b.lines("audience", "members", "--members")), "", " ")
	require.NoError(b.t, err)
	return string(text)
}

// exported is what an export of all profiles has in its files.
func (b *bench) exported(format string) string {
	b.t.Helper()
	said := b.lines("export", "--what", "profiles", "--format", format, "--to", "exports/")
	manifest, ok := said[len(said)-1]["manifest"].(string)
	require.True(b.t, ok, "%v", said)
	_, key, _ := strings.Cut(strings.TrimPrefix(manifest, "s3://"), "/")
	text, err := os.ReadFile(filepath.Join(b.folder, key))
	require.NoError(b.t, err)
	var m struct{ Files []struct{ Key string } }
	require.NoError(b.t, json.Unmarshal(text, &m))
	require.NotEmpty(b.t, m.Files)
	var all strings.Builder
	for _, f := range m.Files {
		text, err := os.ReadFile(filepath.Join(b.folder, f.Key))
		require.NoError(b.t, err)
		all.Write(text)
	}
	return all.String()
}

// untimed leaves out when profiles were made and changed.
func untimed(everything string) string {
	return regexp.MustCompile(`"(created|updated)_at": "[^"]*",?`).ReplaceAllString(everything, "")
}

// importedAs uploads a file, waits until its import has ended and returns its id.
func (b *bench) importedAs(name, text string) string {
	b.t.Helper()
	b.upload("members", name, text)
	return b.importEnds("imports/members/"+name, "done")
}

func (b *bench) importEnds(named, state string) string {
	b.t.Helper()
	var i struct {
		ImportID string `json:"import_id"`
		State    string
	}
	b.hikyaku(&i, "imports", "show", named, "--follow")
	require.Equal(b.t, state, i.State)
	return i.ImportID
}

// An undone import leaves what was there before it, in whatever order imports are undone;
// imported again it makes the same as the first time.
func TestAnUndoneImportLeavesWhatWasBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.define(membersYAML)
	b.up(topic.Importer, topic.Resolver, topic.Collector)
	undo := func(id string) {
		var u struct{ State, Undoes string }
		b.hikyaku(&u, "import", "undo", id, "--yes")
		require.Equal(t, "done", u.State)
		require.Equal(t, id, u.Undoes)
		require.Equal(t, "undone", b.stateOf(id))
	}
	nothing := b.everything()
	first := b.importedAs("a.csv", memberList(1, 0, 300))
	afterFirst := b.everything()
	require.NotEqual(t, nothing, afterFirst)
	lines, parquet := b.exported("csv"), b.exported("parquet")
	require.Equal(t, 301, strings.Count(lines, "\n"))
	second := b.importedAs("b.csv", memberList(2, 150, 450))
	afterBoth := b.everything()
	require.NotEqual(t, afterFirst, afterBoth)
	require.NotEqual(t, lines, b.exported("csv"))

	undo(second)
	require.Equal(t, afterFirst, b.everything(), "as after the first")
	require.Equal(t, lines, b.exported("csv"), "byte for byte")
	require.True(t, parquet == b.exported("parquet"), "byte for byte")

	var again struct {
		ImportID string `json:"import_id"`
		State    string
		Again    int
	}
	b.hikyaku(&again, "import", "again", second, "--yes")
	require.Equal(t, "done", again.State)
	require.Equal(t, 1, again.Again)
	require.Equal(t, untimed(afterBoth), untimed(b.everything()), "as after both")

	// The other way round.
	undo(first)
	undo(again.ImportID)
	require.Equal(t, nothing, b.everything(), "as if nothing had been imported")
}

func (b *bench) stateOf(importID string) string {
	b.t.Helper()
	var i struct{ State string }
	b.hikyaku(&i, "imports", "show", importID)
	return i.State
}
