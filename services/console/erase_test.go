package console

import (
	"testing"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

// A table that names people and is not erased from would keep them for ever.
func TestErasureKnowsEveryTableThatNamesPeople(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	rows, err := c.Query(t.Context(), `SELECT table FROM system.columns WHERE database = {d:String} AND name IN ('user_id', 'anonymous_id', 'address', 'addresses')
AND table IN (SELECT name FROM system.tables WHERE database = {d:String} AND engine LIKE '%MergeTree') GROUP BY table`, ch.Named("d", c.Database()))
	require.NoError(t, err)
	defer rows.Close()
	var stored, erased []string
	for rows.Next() {
		var table string
		require.NoError(t, rows.Scan(&table))
		stored = append(stored, table)
	}
	require.NoError(t, rows.Err())
	for _, table := range clickhouse.PersonTables {
		erased = append(erased, table.Name)
	}
	require.ElementsMatch(t, stored, erased)
}
