package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding/japanese"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// outline is what a plan and a report say alike.
type outline struct {
	Rows           int64 `json:"rows"`
	Rejected       int64 `json:"rejected"`
	ProfileUpdates int64 `json:"profile_updates"`
	SegmentMembers int64 `json:"segment_members"`
	Events         int64 `json:"events"`
	RejectedBy     []struct {
		Column, Reason string
		Rows           int64
	} `json:"rejected_by"`
}

// What a plan says of a file is what its import reports; and once it is imported, a
// plan of the same file changes nobody.
func TestAPlanIsWhatTheImportReports(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.define(`---
kind: ImportSpec
id: guests
source: {prefix: imports/guests/, format: tsv, encoding: shift_jis}
user_id: {column: 会員}
profile: {attributes: {visits: {column: visits, type: int}, spent: {column: spent, type: decimal, decimal_comma: true}, city: {column: city}}}
segment: {id: guests}
event: {name: visited, occurred_at: {column: day, layout: "2006/01/02", zone: Asia/Tokyo}, properties: {city: {column: city}}}
`)
	var text bytes.Buffer
	text.WriteString("会員\tvisits\tspent\tcity\tday\n")
	for i := range 3000 {
		visits, spent, day, city := fmt.Sprint(i%7), fmt.Sprintf("1.%03d,5", i%1000), "2026/11/01", "京都"
		switch {
		case i%100 == 1:
			visits = "many"
		case i%100 == 2:
			day = "2026/13/01"
		case i%100 == 3:
			city += "\tone more"
		case i%100 == 4:
			spent = "1,2,3"
		}
		fmt.Fprintf(&text, "m%d\t%s\t%s\t%s\t%s\n", i%2500, visits, spent, city, day)
	}
	encoded, err := japanese.ShiftJIS.NewEncoder().Bytes(text.Bytes())
	require.NoError(t, err)
	encoded = append(encoded, "m1\t1\t1,0\t\x81\t2026/11/01\n"...) // half a character
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write(encoded)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	path := filepath.Join(t.TempDir(), "guests.tsv.gz")
	require.NoError(t, os.WriteFile(path, packed.Bytes(), 0o600))

	type plan struct {
		outline
		People  struct{ Listed, New, Changed, Same int64 }
		Segment struct{ Joins, Stays, Leaves int64 }
	}
	var before, after plan
	b.hikyaku(&before, "import", "plan", path, "--spec", "guests")
	require.EqualValues(t, 3001, before.Rows)
	require.EqualValues(t, 4*30+1, before.Rejected)
	require.Len(t, before.RejectedBy, 5)
	require.Equal(t, before.People.Listed, before.People.New)
	require.Equal(t, before.People.Listed, before.Segment.Joins)

	b.up(topic.Importer, topic.Resolver, topic.Collector)
	dir := filepath.Join(b.folder, "imports", "guests")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "guests.tsv.gz"), packed.Bytes(), 0o644))
	var report outline
	b.eventually("the import is done", func() bool {
		said, err := os.ReadFile(filepath.Join(dir, "guests.tsv.gz.report.json"))
		return err == nil && json.Unmarshal(said, &report) == nil
	})
	require.ElementsMatch(t, before.RejectedBy, report.RejectedBy)
	before.RejectedBy, report.RejectedBy = nil, nil
	require.Equal(t, before.outline, report)

	b.hikyaku(&after, "import", "plan", path, "--spec", "guests")
	require.Equal(t, before.People.Listed, after.People.Same+after.People.Changed)
	require.Zero(t, after.People.New)
	require.Equal(t, before.People.Listed, after.Segment.Stays)
	require.Zero(t, after.Segment.Joins+after.Segment.Leaves)
}
