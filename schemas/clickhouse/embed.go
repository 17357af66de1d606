// Package clickhouse holds the numbered migrations that make the tables the
// sink writes and the views that people read. A migration that was released is
// never edited: a change is a new file.
package clickhouse

import "embed"

// FS holds the migrations, NNNN_slug.sql, applied in order of their names. They
// name no database: the connection's is meant.
//
//go:embed *.sql
var FS embed.FS

// ForgetFunnels lets all funnels be counted anew: what is kept of them (0014) goes by when
// records came, and knows nothing of rows that were removed. A count that may have begun
// before they were is waited for; that it failed is no matter.
func ForgetFunnels(exec func(query string) error) error {
	_ = exec("SYSTEM WAIT VIEW funnel_rows_from_messages")
	return exec("DELETE FROM funnel_rows WHERE true SETTINGS lightweight_deletes_sync = 1")
}
