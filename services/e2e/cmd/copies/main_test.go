package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A witness that shares code with the accused proves nothing.
func TestTheWitnessSharesNoCodeWithTheServices(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, parser.ImportsOnly)
	require.NoError(t, err)
	require.NotEmpty(t, f.Imports)
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		first, _, _ := strings.Cut(path, "/")
		require.NotContains(t, first, ".", "%s is not of the standard library", path)
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"main.go", "main_test.go"}, files, "what else this program consists of is looked at, too")
}

func TestCopiesAreCountedPerRecipient(t *testing.T) {
	const early = "2026-01-01T00:00:00Z\ta@x\told@x\t<0>\t-\t0\t10\n"
	index := early +
		"2026-01-01T00:00:01Z\ta@x\tonce@x\t<1>\t-\t0\t10\n" +
		"2026-01-01T00:00:02Z\ta@x\ttwice@x\t<2>\t-\t0\t10\n" +
		"2026-01-01T00:00:03Z\ta@x\tTwice@x\t<3>\t-\t0\t10\n" +
		"2026-01-01T00:00:04Z\ta@x\tthrice@x\t<4>\t-\t0\t10\n" +
		"<thrice@x>\nthrice@x\r\n" + // as another sink may list them
		"2026-01-01T00:00:04Z\ta@x\tonce@x\t<1>\t-" // still being written
	path := filepath.Join(t.TempDir(), "index.tsv")
	require.NoError(t, os.WriteFile(path, []byte(index), 0o644))
	var out, errs bytes.Buffer
	require.Zero(t, run([]string{"--from", strconv.Itoa(len(early)), path}, &out, &errs), errs.String())
	require.JSONEq(t, `{"mails": 6, "recipients": 3, "copies_max": 3, "twice": [
		{"recipient": "thrice@x", "copies": 3, "message_ids": ["<4>"]},
		{"recipient": "twice@x", "copies": 2, "message_ids": ["<2>", "<3>"]}]}`, out.String())
}

func TestAFileThatIsMissingIsSaid(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, 3, run([]string{filepath.Join(t.TempDir(), "none")}, &out, &errs))
	require.Equal(t, 2, run(nil, &out, &errs))
	require.Empty(t, out.String())
}
