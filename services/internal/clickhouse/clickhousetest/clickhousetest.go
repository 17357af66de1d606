// Package clickhousetest gives a test its own migrated database on the real
// engine. Without the engine's library the test is skipped and says what to run.
package clickhousetest

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb/chdbtest"
	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
)

// Open returns a connection to a fresh database with all migrations applied,
// dropped when the test ends.
func Open(t testing.TB) *clickhouse.Conn {
	t.Helper()
	c, err := clickhouse.Open(Config(t), Namespace())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Migrate(context.Background(), migrations.FS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Exec(context.Background(), "DROP DATABASE "+c.Database()+" SYNC"); err != nil {
			t.Error(err)
		}
		c.Close()
	})
	return c
}

// Config is how to reach the engine.
func Config(t testing.TB) clickhouse.Config {
	t.Helper()
	return clickhouse.DefaultConfig(chdbtest.Start(t))
}

// Namespace is one that no other test has.
func Namespace() string { return "test-" + strings.ToLower(rand.Text()[:12]) }

// Main is for TestMain: it runs the tests, closes the engine, and returns the exit code.
func Main(m *testing.M) int { return chdbtest.Main(m) }
