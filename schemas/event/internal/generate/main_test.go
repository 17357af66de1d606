package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/avro"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

const root = "../../.." // schemas

func TestGeneratedFilesAreCurrent(t *testing.T) {
	t.Parallel()
	files, err := outputs(root)
	require.NoError(t, err)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s is not current: go generate ./event", name)
	}
	onDisk, err := filepath.Glob(filepath.Join(root, "event", "*_gen.go"))
	require.NoError(t, err)
	require.Len(t, onDisk, len(files)-1, "a generated file has no schema")
}

// What the table says of a topic is what the catalogue says, and every record
// named there exists.
func TestTopicTableNamesEveryTopicAndRecord(t *testing.T) {
	t.Parallel()
	versions, err := avro.Versions(avro.Files())
	require.NoError(t, err)
	records := map[string]bool{}
	for _, v := range versions {
		records[v.Schema.ShortName()] = true
	}
	table := string(topicTable())
	for _, row := range topic.Catalogue() {
		require.True(t, records[row.Record], "%s holds %s, which has no schema", row.Name, row.Record)
		require.Contains(t, table, fmt.Sprintf("| `%s` | %s |", row.Name, row.Record))
	}
	_, err = readme([]byte("no marks"))
	require.Error(t, err)
}

func TestOneNameIsOneType(t *testing.T) {
	t.Parallel()
	record := func(name, item string) *fstest.MapFile {
		return &fstest.MapFile{Data: fmt.Appendf(nil, `{"type":"record","name":%q,"namespace":"n","fields":[{"name":"items","type":{"type":"array","items":{"type":"record","name":"Item","fields":[%s]}}}]}`, name, item)}
	}
	generated := func(folder fstest.MapFS) (map[string][]byte, error) {
		versions, err := avro.Versions(folder)
		require.NoError(t, err)
		return generate(avro.Latest(versions))
	}
	files, err := generated(fstest.MapFS{"a.v1.avsc": record("A", `{"name":"x","type":"int"}`), "b.v1.avsc": record("B", `{"name":"x","type":"int"}`)})
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(bytes.Join([][]byte{files["event/shared_gen.go"], files["event/a_gen.go"], files["event/b_gen.go"]}, nil), []byte("type Item struct")))
	require.Contains(t, string(files["event/shared_gen.go"]), "type Item struct")

	_, err = generated(fstest.MapFS{"a.v1.avsc": record("A", `{"name":"x","type":"int"}`), "b.v1.avsc": record("B", `{"name":"x","type":"long"}`)})
	require.EqualError(t, err, "a.v1.avsc and b.v1.avsc define Item differently")

	for why, item := range map[string]string{
		"a union that is not [null, X]": `{"name":"x","type":["int","string"]}`,
		"a nullable array":              `{"name":"x","type":["null",{"type":"array","items":"int"}]}`,
		"another fixed":                 `{"name":"x","type":{"type":"fixed","name":"Hash","size":32}}`,
		"another logical type":          `{"name":"x","type":{"type":"int","logicalType":"date"}}`,
		"a float":                       `{"name":"x","type":"float"}`,
	} {
		_, err := generated(fstest.MapFS{"a.v1.avsc": record("A", item)})
		require.ErrorContains(t, err, "not used here", why)
	}
	_, err = generated(fstest.MapFS{"wrong_name.v1.avsc": record("A", `{"name":"x","type":"int"}`)})
	require.ErrorContains(t, err, "holds A, want WrongName")
}

// Only the newest version of a record becomes Go.
func TestTheNewestVersionIsGenerated(t *testing.T) {
	t.Parallel()
	record := func(fields string) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(`{"type":"record","name":"A","fields":[` + fields + `]}`)}
	}
	versions, err := avro.Versions(fstest.MapFS{
		"a.v1.avsc": record(`{"name":"x","type":"int"}`),
		"a.v2.avsc": record(`{"name":"x","type":"int"},{"name":"user_ids","type":{"type":"array","items":"string"},"default":[]}`),
	})
	require.NoError(t, err)
	require.Empty(t, avro.Compatible(versions))
	files, err := generate(avro.Latest(versions))
	require.NoError(t, err)
	require.Contains(t, string(files["event/a_gen.go"]), "UserIDs []string")
}
