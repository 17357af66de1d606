package event_test

import (
	"encoding/hex"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/avro"
	"github.com/hikyaku/hikyaku/schemas/event"
)

var update = flag.Bool("update", false, "add the frozen bytes that are missing; none are ever changed")

const frozen = "testdata/frozen"

// I7: bytes once written stay readable. Every version of every record has its
// bytes on file; a file that this test would have to change is a broken promise.
func TestFrozenBytesStayReadable(t *testing.T) {
	t.Parallel()
	versions, err := avro.Versions(avro.Files())
	require.NoError(t, err)
	latest := map[string]int{}
	for _, v := range avro.Latest(versions) {
		latest[v.Record] = v.Number
	}
	known := map[string]bool{}
	for _, v := range versions {
		stem := strings.TrimSuffix(v.File(), ".avsc")
		known[stem+".raw"], known[stem+".hex"] = true, true
		name := v.Schema.ShortName()
		if *update && latest[v.Record] == v.Number {
			b := sample(name).AppendAvro(nil)
			addMissing(t, stem+".raw", b)
			addMissing(t, stem+".hex", []byte(hex.Dump(b)))
		}
		raw, err := os.ReadFile(filepath.Join(frozen, stem+".raw"))
		require.NoError(t, err, "go test ./event -run Frozen -update adds it")
		twin, err := os.ReadFile(filepath.Join(frozen, stem+".hex"))
		require.NoError(t, err)
		require.Equal(t, hex.Dump(raw), string(twin), "%s: .hex is not what .raw holds", stem)

		// Goavro, with the version's own schema, says what was meant.
		codec, err := event.Compile(string(v.Text))
		require.NoError(t, err)
		native, rest, err := codec.NativeFromBinary(raw)
		require.NoError(t, err, stem)
		require.Empty(t, rest, stem)

		got := fresh(name)
		require.NoError(t, event.DecodeWith(string(v.Text), raw, got), stem)
		if latest[v.Record] == v.Number {
			require.NoError(t, got.DecodeAvro(raw), stem)
			require.Equal(t, raw, got.AppendAvro(nil), stem)
			require.Equal(t, exact(native), exact(nativeOf(t, got)), stem)
		}
	}
	entries, err := os.ReadDir(frozen)
	require.NoError(t, err)
	for _, e := range entries {
		require.True(t, known[e.Name()], "%s belongs to no schema: was one removed?", e.Name())
	}
}

func addMissing(t *testing.T, name string, content []byte) {
	f, err := os.OpenFile(filepath.Join(frozen, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, errors.Join(err, f.Close()))
}
