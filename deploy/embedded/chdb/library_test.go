package chdb

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAMissingLibraryIsAnErrorThatSaysWhatToRun(t *testing.T) {
	t.Setenv("LIBCHDB_PATH", "")
	t.Chdir(t.TempDir()) // neither this directory nor that of the test binary lies in a checkout
	_, err := findLibrary()
	require.ErrorIs(t, err, ErrNoLibrary)
	require.ErrorContains(t, err, "npm ci --prefix deploy/embedded/chdb")

	t.Setenv("LIBCHDB_PATH", "/nowhere/libchdb.so")
	_, err = findLibrary()
	require.ErrorIs(t, err, ErrNoLibrary)
	require.ErrorContains(t, err, "LIBCHDB_PATH")
}

func TestTheLibraryIsFoundFromAnyDirectoryOfTheCheckout(t *testing.T) {
	t.Setenv("LIBCHDB_PATH", "")
	root := t.TempDir()
	want := filepath.Join(root, "deploy", "embedded", "chdb", "node_modules", "@chdb", "lib-"+platform(), "libchdb.so")
	below := filepath.Join(root, "services", "importer")
	require.NoError(t, os.MkdirAll(filepath.Dir(want), 0o755))
	require.NoError(t, os.MkdirAll(below, 0o755))
	require.NoError(t, os.WriteFile(want, nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "go.work"), nil, 0o644))
	for _, dir := range []string{root, below} {
		t.Chdir(dir)
		got, err := findLibrary()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}
