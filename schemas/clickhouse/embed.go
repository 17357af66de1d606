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

// ForgetFunnels are statements by which all funnels are counted anew: what is kept of them
// (0014) goes by when records came, and knows nothing of rows that were removed. The first
// waits for a count that may have begun before they were, and may fail if that one does.
var ForgetFunnels = []string{
	"SYSTEM WAIT VIEW funnel_rows_from_messages",
	"DELETE FROM funnel_rows WHERE true SETTINGS lightweight_deletes_sync = 1",
}
