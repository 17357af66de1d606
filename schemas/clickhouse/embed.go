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
