package console

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/exports"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// asked are the exports that the topic holds.
func (s *stage) asked() (all []event.Export) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), kafkatest.Patience)
	defer cancel()
	marks, err := s.cluster.HighWatermarks(ctx, topic.Exports)
	require.NoError(s.t, err)
	var ranges []kafka.Range
	for p, end := range marks[topic.Exports] {
		ranges = append(ranges, kafka.Range{Topic: topic.Exports, Partition: p, To: end})
	}
	require.NoError(s.t, s.cluster.Read(ctx, ranges, kgo.ReadCommitted(), func(r *kgo.Record) error {
		all = append(all, event.Export{})
		return s.cluster.Decode(r, &all[len(all)-1])
	}))
	return all
}

const nightly = `
kind: Export
id: nightly
what: profiles
to: exports/nightly
format: parquet
schedule: {cron: "0 6 * * *", zone: Asia/Tokyo}
`

func TestExportAsksForWhatWasApplied(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	require.Contains(t, s.ok("exports").out, "nothing has been exported yet")
	file := filepath.Join(t.TempDir(), "nightly.yaml")
	require.NoError(t, os.WriteFile(file, []byte(nightly), 0o600))
	s.ok("apply", "-f", file)
	var shown shownExport
	require.NoError(t, json.Unmarshal([]byte(s.ok("export", "nightly", "--detach", "--json").out), &shown))
	require.Equal(t, exports.Requested, shown.State)
	got := s.asked()
	require.Len(t, got, 1)
	require.Equal(t, shown.ExportID, got[0].ExportID)
	require.EqualValues(t, 1, got[0].DefinitionVersion)
	require.NotEmpty(t, got[0].RequestedBy)
	require.Regexp(t, `^exports/nightly/\d{8}T\d{6}Z-`+shown.ExportID.String()[:12]+`/$`, got[0].Folder)
	def, err := definition.Decode(definition.KindExport, []byte(got[0].Definition))
	require.NoError(t, err)
	require.Equal(t, definition.CompressionZstd, def.(*definition.Export).Compression)
	require.Contains(t, s.ok("exports").out, "requested")
	require.Contains(t, s.ok("get", "export").out, "nightly")

	failed := s.hikyaku("export", "nightle")
	require.Equal(t, exitUsage, failed.code)
	require.Contains(t, failed.err, `did you mean "nightly"?`)
}

// What nobody applied is judged like what is applied, and named as it was written.
func TestExportTakesADescriptionInFlags(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{}, "the id of an Export that was applied, or --what"},
		{[]string{"nightly", "--what", "profiles"}, "the id of an Export that was applied, or --what"},
		{[]string{"--what", "profiles", "--format", "csv"}, "--to: is missing"},
		{[]string{"--what", "people", "--format", "csv", "--to", "x/"}, `--what: unknown value "people"; expected profiles, audience, segment, outcomes or engagement`},
		{[]string{"--what", "audience", "--format", "csv", "--to", "x/"}, "--audience: is missing"},
		{[]string{"--what", "audience", "--audience", "nobody", "--format", "csv", "--to", "x/"}, `there is no Audience "nobody"`},
		{[]string{"--what", "profiles", "--format", "csv", "--to", "x/", "--attribute", "city=text"}, `--attributes.city: unknown value "text"`},
	} {
		a := s.hikyaku(append([]string{"export"}, c.args...)...)
		require.Equal(t, exitUsage, a.code, c.args)
		require.Contains(t, a.err, c.want, c.args)
	}
	require.Empty(t, s.asked())
	s.ok("export", "--what", "profiles", "--format", "csv", "--to", "x", "--attribute", "city=string", "--attribute", "the points=int", "--max-file-bytes", "1000000", "--detach")
	got := s.asked()
	require.Len(t, got, 1)
	def, err := definition.Decode(definition.KindExport, []byte(got[0].Definition))
	require.NoError(t, err)
	require.Equal(t, &definition.Export{ID: "ad-hoc", What: definition.WhatProfiles, Attributes: map[string]string{"city": "string", "the points": "int"},
		To: "x/", Format: "csv", Compression: "none", MaxFileBytes: 1000000}, def)
}

// The command follows until the end, says where the manifest is, and a failure is its own.
func TestExportFollowsUntilTheEnd(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for _, end := range []string{exports.Done, exports.Failed} {
		answered := make(chan answer, 1)
		before := len(s.asked())
		go func() { answered <- s.hikyaku("export", "--what", "profiles", "--format", "csv", "--to", "x/") }()
		var e event.Export
		kafkatest.Eventually(t, func() bool {
			all := s.asked()
			if len(all) > before {
				e = all[len(all)-1]
			}
			return len(all) > before
		}, "nothing was asked for")
		e.Attempt, e.State, e.Rows, e.Bytes, e.Bucket = 1, end, 1234, 5678, "files"
		if end == exports.Failed {
			e.Error = "there is no audience nobody"
		} else {
			e.Files = []event.ExportFile{{Key: "part-1-00001.csv", Rows: 1234, Bytes: 5678}}
		}
		s.produce(topic.Exports, e.ExportID.String(), &e)
		a := <-answered
		if end == exports.Failed {
			require.Equal(t, exitBroken, a.code)
			require.Contains(t, a.err, "there is no audience nobody")
			continue
		}
		require.Equal(t, exitDone, a.code, a.err)
		require.Equal(t, "s3://files/"+e.Folder+"manifest.json\n", a.out)
		require.Contains(t, a.err, "1,234 rows")
	}
	require.Regexp(t, `failed +ad-hoc +1,234 .*there is no audience nobody`, s.ok("exports").out)
}
