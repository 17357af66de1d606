package e2e

import (
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

const subscribersYAML = `---
kind: ImportSpec
id: subscribers
source: {prefix: imports/subscribers/, format: csv}
user_id: {column: id}
profile: {attributes: {points: {column: points, type: int}}}
segment: {id: subscribers}
---
kind: Audience
id: subscribers
filter: {segment: subscribers}
`

// An import whose process is killed (SIGKILL) twenty times, at any moment, is that of a run
// without: each row once in Kafka and in ClickHouse, each reject once in its file.
func TestAnImportKilledTwentyTimesHasEachRowOnce(t *testing.T) {
	t.Parallel()
	const kills, rows, rejected = 20, 100_000, 100
	b := newBench(t)
	b.env["TRANSACTION_BYTES"] = "65536"
	b.define(subscribersYAML)
	b.up(topic.Resolver, topic.Collector)
	var file strings.Builder
	file.WriteString("id,points\n")
	for i := range rows {
		points := fmt.Sprint(i)
		if i%(rows/rejected) == 0 {
			points = "many"
		}
		fmt.Fprintf(&file, "s%06d,%s\n", i, points)
	}
	dir := filepath.Join(b.folder, "imports", "subscribers")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "all.csv"), []byte(file.String()), 0o644))

	var mu sync.Mutex
	var last event.Import
	moved := make(chan struct{}, 1)
	now := func() event.Import {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
	progress := b.cluster.Table([]topic.Name{topic.Imports}, func(r *kgo.Record) error {
		var e event.Import
		if err := b.cluster.Decode(r, &e); err != nil {
			return err
		}
		mu.Lock()
		last = e
		mu.Unlock()
		select {
		case moved <- struct{}{}:
		default:
		}
		return nil
	})
	go func() { _ = progress.Run(t.Context()) }()

	importer := b.start(topic.Importer, 0)
	for kill := range kills {
		for at, late := now().Rows+1+rand.Int64N(2000), time.After(deadline); now().Rows < min(at, rows); {
			select {
			case <-moved: // told, not looked for: in a while many rows are read
			case <-late:
				require.FailNow(t, "no progress", "before kill %d: %s", kill, b.overview())
			}
		}
		if kill == kills/2 {
			require.Equal(t, "reading", now().State, "the file is too short for so many kills")
		}
		importer.kill()
	}
	id := b.importEnds("imports/subscribers/all.csv", "done")
	b.eventually("this reader knows it, too", func() bool { return now().State == "done" })
	require.EqualValues(t, rows, now().Rows)
	require.EqualValues(t, rejected, now().Rejected)

	for name, user := range map[topic.Name]func(*kgo.Record) string{
		topic.ProfileUpdates: func(r *kgo.Record) string {
			var p event.ProfilePatch
			require.NoError(t, b.cluster.Decode(r, &p))
			require.Equal(t, fmt.Sprintf("s%06d", p.Set[0].Value.Int()), p.UserID)
			return p.UserID
		},
		topic.SegmentMembers: func(r *kgo.Record) string {
			var m event.SegmentMember
			require.NoError(t, b.cluster.Decode(r, &m))
			return m.UserID
		},
	} {
		seen := map[string]bool{}
		for _, r := range b.lying(name, nil) {
			u := user(r)
			require.False(t, seen[u], "%s is in %s twice", u, name)
			seen[u] = true
		}
		require.Len(t, seen, rows-rejected, name)
	}
	var size struct{ Members int }
	b.hikyaku(&size, "audience", "subscribers")
	require.Equal(t, rows-rejected, size.Members)
	text, err := os.ReadFile(filepath.Join(dir, "all.csv.rejects.csv"))
	require.NoError(t, err)
	lines, err := csv.NewReader(strings.NewReader(string(text))).ReadAll()
	require.NoError(t, err)
	require.Len(t, lines, 1+rejected)
	for i, line := range lines[1:] {
		require.Equal(t, fmt.Sprint(2+i*(rows/rejected)), line[0], "of import %s", id)
	}
}
