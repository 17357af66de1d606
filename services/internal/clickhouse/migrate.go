package clickhouse

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

var migrationName = regexp.MustCompile(`^\d{4}_[a-z0-9_]+\.sql$`)

// Migrate creates the database and applies the migrations that have not been
// applied yet, in order of their names, and returns their names. A migration is
// noted after its last statement; one that failed halfway is run again from its
// first, so every statement must stand being repeated. A migration whose text
// changed after it was applied is refused before anything is done.
func (c *Conn) Migrate(ctx context.Context, migrations fs.FS) (applied []string, err error) {
	names, err := fs.Glob(migrations, "*.sql")
	if err != nil || len(names) == 0 {
		return nil, fault.Fatal(fmt.Errorf("looking for migrations: found %d, %w", len(names), err))
	}
	if err := c.createDatabase(ctx); err != nil {
		return nil, err
	}
	if err := c.Exec(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations
(
    name       String COMMENT 'file of the migration',
    sha256     String COMMENT 'of its text, hex',
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') COMMENT 'when'
)
ENGINE = ReplacingMergeTree ORDER BY name
COMMENT 'Migrations that were applied.'`); err != nil {
		return nil, err
	}
	done, err := c.migrationsDone(ctx)
	if err != nil {
		return nil, err
	}
	type migration struct{ name, text, sum string }
	var pending []migration
	for _, name := range names { // sorted by fs.Glob
		if !migrationName.MatchString(name) {
			return nil, fault.Fatal(fmt.Errorf("migration %s: its name is not NNNN_slug.sql", name))
		}
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return nil, fault.Fatal(fmt.Errorf("reading migration %s: %w", name, err))
		}
		digest := sha256.Sum256(text)
		m := migration{name, string(text), hex.EncodeToString(digest[:])}
		switch sum, ok := done[name]; {
		case !ok:
			pending = append(pending, m)
		case sum != m.sum:
			return nil, fault.Fatal(fmt.Errorf("migration %s was applied to database %s with another text: a released migration is never edited, add a new one", name, c.database))
		}
	}
	for _, m := range pending {
		for i, statement := range Statements(m.text) {
			if err := c.Exec(ctx, statement); err != nil {
				return applied, fmt.Errorf("applying migration %s, statement %d: %w", m.name, i+1, err)
			}
			crash.At(crash.ProvisionMigrated)
		}
		if err := c.Exec(ctx, "INSERT INTO schema_migrations (name, sha256) SELECT {name:String}, {sum:String}",
			clickhouse.Named("name", m.name), clickhouse.Named("sum", m.sum)); err != nil {
			return applied, fmt.Errorf("noting migration %s: %w", m.name, err)
		}
		applied = append(applied, m.name)
	}
	return applied, nil
}

// createDatabase uses a connection of its own: one that names a database that
// does not exist is refused.
func (c *Conn) createDatabase(ctx context.Context) error {
	options := *c.options
	options.Auth.Database = ""
	conn, err := clickhouse.Open(&options)
	if err != nil {
		return fault.Fatal(fmt.Errorf("opening ClickHouse: %w", err))
	}
	defer conn.Close()
	// The name is an identifier: Open has checked it.
	if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+c.database); err != nil {
		return classify(ctx, "creating database "+c.database, err)
	}
	return nil
}

func (c *Conn) migrationsDone(ctx context.Context) (map[string]string, error) {
	r, err := c.Query(ctx, "SELECT name, sha256 FROM schema_migrations FINAL")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	done := map[string]string{}
	for r.Next() {
		var name, sum string
		if err := r.Scan(&name, &sum); err != nil {
			return nil, fmt.Errorf("reading applied migrations: %w", err)
		}
		done[name] = sum
	}
	return done, r.Err()
}

// Statements cuts SQL at the semicolons that end statements: not those in
// strings, quoted names or comments. Comments go.
func Statements(text string) []string {
	var statements []string
	var current strings.Builder
	end := func() {
		if s := strings.TrimSpace(current.String()); s != "" {
			statements = append(statements, s)
		}
		current.Reset()
	}
	for i := 0; i < len(text); {
		switch rest := text[i:]; {
		case rest[0] == ';':
			end()
			i++
		case strings.HasPrefix(rest, "--"):
			i += upTo(rest, "\n", false)
		case strings.HasPrefix(rest, "/*"):
			i += upTo(rest, "*/", true)
			current.WriteByte(' ')
		case rest[0] == '\'' || rest[0] == '`' || rest[0] == '"':
			n := quoted(rest)
			current.WriteString(rest[:n])
			i += n
		default:
			current.WriteByte(rest[0])
			i++
		}
	}
	end()
	return statements
}

// upTo is the length of s up to mark, and with it if asked; all of s without one.
func upTo(s, mark string, with bool) int {
	n := strings.Index(s, mark)
	switch {
	case n < 0:
		return len(s)
	case with:
		return n + len(mark)
	}
	return n
}

// quoted is the length of the string or quoted name that s begins with. A
// doubled quote needs no care: it reads as two strings side by side.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case s[0]:
			return i + 1
		}
	}
	return len(s)
}
