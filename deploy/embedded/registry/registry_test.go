package registry_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/deploy/embedded/registry"
)

// open serves the journal at path; it is never closed before the next open
// unless the test says so, which is what kill -9 leaves.
func open(t *testing.T, path string) (*sr.Client, *registry.Registry) {
	t.Helper()
	r, err := registry.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	s := httptest.NewServer(r.Handler())
	t.Cleanup(s.Close)
	cl, err := sr.NewClient(sr.URLs(s.URL))
	require.NoError(t, err)
	return cl, r
}

func record(name string) sr.Schema {
	return sr.Schema{Schema: fmt.Sprintf(`{"type":"record","name":%q,"fields":[]}`, name)}
}

func register(t *testing.T, cl *sr.Client, subject string, s sr.Schema) int {
	t.Helper()
	got, err := cl.CreateSchema(context.Background(), subject, s)
	require.NoError(t, err)
	return got.ID
}

func TestIDsStayOverRestartsInAnyOrder(t *testing.T) {
	t.Parallel()
	ctx, path := context.Background(), filepath.Join(t.TempDir(), "schemas.jsonl")
	cl, _ := open(t, path)
	a := register(t, cl, "shop.events-value", record("Event"))
	b := register(t, cl, "shop.profiles-value", record("Profile"))
	shared := register(t, cl, "shop.other-value", record("Event"))
	assert.Equal(t, a, shared, "one schema, one id")
	assert.NotEqual(t, a, b)
	cl.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatFullTransitive}, "shop.events-value")

	cl, _ = open(t, path)
	assert.Equal(t, b, register(t, cl, "shop.profiles-value", record("Profile")))
	assert.Equal(t, a, register(t, cl, "shop.events-value", record("Event")))
	got, err := cl.SchemaByID(ctx, b)
	require.NoError(t, err)
	assert.Equal(t, record("Profile").Schema, got.Schema)
	subjects, err := cl.Subjects(ctx)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"shop.events-value", "shop.profiles-value", "shop.other-value"}, subjects)
	levels := cl.Compatibility(ctx, "shop.events-value")
	require.NoError(t, levels[0].Err)
	assert.Equal(t, sr.CompatFullTransitive, levels[0].Level)
	assert.Equal(t, max(a, b)+1, register(t, cl, "shop.runs-value", record("Run")), "ids go on")
}

func TestTornLastLineIsForgotten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "schemas.jsonl")
	cl, _ := open(t, path)
	a := register(t, cl, "a-value", record("A"))
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"method":"POST","uri":"/subjects/b-va`)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	cl, _ = open(t, path)
	assert.Equal(t, a+1, register(t, cl, "c-value", record("C")))
	cl, _ = open(t, path)
	assert.Equal(t, a, register(t, cl, "a-value", record("A")))
	assert.Equal(t, a+1, register(t, cl, "c-value", record("C")))
}

func TestKnownSchemasAreNotWrittenAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "schemas.jsonl")
	cl, _ := open(t, path)
	register(t, cl, "a-value", record("A"))
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	register(t, cl, "a-value", record("A"))
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(before), string(after))
}

func TestDeletedSubjectsStayDeleted(t *testing.T) {
	t.Parallel()
	ctx, path := context.Background(), filepath.Join(t.TempDir(), "schemas.jsonl")
	cl, _ := open(t, path)
	register(t, cl, "a-value", record("A"))
	register(t, cl, "b-value", record("B"))
	_, err := cl.DeleteSubject(ctx, "a-value", sr.SoftDelete)
	require.NoError(t, err)
	cl, _ = open(t, path)
	subjects, err := cl.Subjects(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"b-value"}, subjects)
}

func TestNothingIsAnsweredThatIsNotWritten(t *testing.T) {
	t.Parallel()
	cl, r := open(t, filepath.Join(t.TempDir(), "schemas.jsonl"))
	require.NoError(t, r.Close())
	_, err := cl.CreateSchema(context.Background(), "a-value", record("A"))
	assert.Error(t, err)
}

func TestDamagedJournalIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "schemas.jsonl")
	line := `{"method":"POST","uri":"/subjects/a-value/versions","body":{"schema":"\"string\""},"id":7}` + "\n"
	require.NoError(t, os.WriteFile(path, []byte(line), 0o644))
	_, err := registry.Open(path)
	assert.ErrorContains(t, err, "schema id 1, was 7")
}
