package clickhouse_test

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"github.com/hikyaku/hikyaku/schemas/clickhouse"
)

var (
	comment      = regexp.MustCompile(`--[^\n]*|COMMENT '(?:[^']|'')*'`)
	clock        = regexp.MustCompile(`(?i)\b(now|now64|today|yesterday|nowInBlock|current_timestamp|rand\w*|generateUUID\w*)\s*\(`)
	star         = regexp.MustCompile(`(?i)select\s+\*`)
	aggregateOf  = regexp.MustCompile(`AggregateFunction\((\w+)`)
	call         = regexp.MustCompile(`(\w+)\s*\(`)
	create       = regexp.MustCompile(`(?is)^create\s+(table|view|materialized\s+view)\s+(if not exists )?(\w+)`)
	rowsTable    = regexp.MustCompile(`(?s)ENGINE = (ReplacingMergeTree\(\w+\)|AggregatingMergeTree)\n(PARTITION BY toYYYYMM\(ingested_at\)\n)?ORDER BY ([^\n]+)`)
	modifyTTL    = regexp.MustCompile(`(?i)\bTTL\b`)
	retentionTTL = regexp.MustCompile(`^ALTER TABLE \w+ MODIFY TTL toDateTime\(ingested_at\) \+ INTERVAL \d+ MONTH$`)
)

// An aggregate kept on insert meets every row any number of times, in any order
// and cut. Only these do not care.
var idempotent = map[string]bool{
	"min": true, "max": true, "argMin": true, "argMax": true,
	"groupUniqArray": true, "groupUniqArrayArray": true, "uniqExact": true, "groupBitOr": true,
}

// Functions of one row that materialized views use; whatever is not known to be
// one is taken for an aggregate.
var ofOneRow = map[string]bool{
	"if": true, "concat": true, "leftPad": true, "toString": true, "transform": true, "IN": true, "toDate32": true,
}

// lint returns what is wrong with one statement of a migration.
func lint(file, statement string) (problems []string) {
	bare := strings.TrimSpace(comment.ReplaceAllString(statement, ""))
	if bare == "" {
		return nil
	}
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if c := clock.FindString(bare); c != "" {
		say("%s) differs each time it is asked", c)
	}
	if star.MatchString(bare) {
		say("SELECT * changes when a table does")
	}
	for _, f := range aggregateOf.FindAllStringSubmatch(bare, -1) {
		if !idempotent[f[1]] {
			say("%s is changed by a repetition or another order", f[1])
		}
	}
	if modifyTTL.MatchString(bare) && (!strings.HasSuffix(file, "_retention.sql") || !retentionTTL.MatchString(bare)) {
		say("retention is set in *_retention.sql and goes by record time")
	}
	m := create.FindStringSubmatch(bare)
	if m == nil {
		return problems
	}
	kind, name := strings.ToLower(m[1]), m[3]
	if m[2] == "" {
		say("%s: without IF NOT EXISTS it cannot be repeated", name)
	}
	if strings.HasPrefix(kind, "materialized") {
		if !strings.Contains(bare, " TO ") {
			say("%s hides its rows in a table without a name", name)
		}
		_, query, _ := strings.Cut(bare, " AS\n")
		for _, f := range call.FindAllStringSubmatch(query, -1) {
			if !idempotent[f[1]] && !ofOneRow[f[1]] {
				say("%s: %s is not known to stand repetition", name, f[1])
			}
		}
	}
	if kind == "table" && strings.HasSuffix(name, "_rows") {
		e := rowsTable.FindStringSubmatch(bare)
		if e == nil {
			say("%s must be a ReplacingMergeTree with a version, or aggregate, with partitions by record time if any", name)
		} else if strings.Contains(e[3], "_at") || strings.Contains(e[3], "kafka_") {
			say("%s is ordered by what differs between two copies: %s", name, e[3])
		}
	}
	return problems
}

func TestMigrationsStandRepetition(t *testing.T) {
	files, err := fs.Glob(clickhouse.FS, "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no migrations: %v", err)
	}
	for _, file := range files {
		text, err := fs.ReadFile(clickhouse.FS, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range strings.Split(comment.ReplaceAllString(string(text), ""), ";") {
			for _, p := range lint(file, statement) {
				t.Errorf("%s: %s", file, p)
			}
		}
	}
}

func TestTheLintFindsWhatItLooksFor(t *testing.T) {
	const good = "CREATE TABLE IF NOT EXISTS a_rows (x UInt8 COMMENT 'now()')\nENGINE = ReplacingMergeTree(v)\nORDER BY x"
	if p := lint("0001_a.sql", good); len(p) != 0 {
		t.Errorf("refused: %v", p)
	}
	for _, c := range []struct{ statement, want string }{
		{"CREATE VIEW IF NOT EXISTS a AS SELECT now() AS t", "now("},
		{"CREATE VIEW IF NOT EXISTS a AS SELECT * FROM b", "SELECT *"},
		{"CREATE VIEW a AS SELECT x FROM b", "IF NOT EXISTS"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS a TO b AS\nSELECT x, sum(y) AS y FROM c GROUP BY x", "sum"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS a TO b AS\nSELECT x, count() AS y FROM c GROUP BY x", "count"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS a TO b AS\nSELECT x, sumState(y) AS y FROM c GROUP BY x", "sumState"},
		{"CREATE MATERIALIZED VIEW IF NOT EXISTS a ENGINE = Memory AS\nSELECT x FROM c", "without a name"},
		{"CREATE TABLE IF NOT EXISTS a (x SimpleAggregateFunction(sum, Int64)) ENGINE = AggregatingMergeTree\nORDER BY y", "sum"},
		{"CREATE TABLE IF NOT EXISTS a (x SimpleAggregateFunction(any, Int64)) ENGINE = AggregatingMergeTree\nORDER BY y", "any"},
		{"CREATE TABLE IF NOT EXISTS a_rows (x UInt8)\nENGINE = MergeTree\nORDER BY x", "ReplacingMergeTree"},
		{"CREATE TABLE IF NOT EXISTS a_rows (x UInt8)\nENGINE = ReplacingMergeTree\nORDER BY x", "with a version"},
		{"CREATE TABLE IF NOT EXISTS a_rows (x UInt8)\nENGINE = ReplacingMergeTree(v)\nORDER BY (x, occurred_at)", "two copies"},
		{"CREATE TABLE IF NOT EXISTS a_rows (x UInt8)\nENGINE = ReplacingMergeTree(v)\nPARTITION BY toYYYYMM(occurred_at)\nORDER BY x", "record time"},
		{"ALTER TABLE a MODIFY TTL toDateTime(ingested_at) + INTERVAL 1 MONTH", "retention.sql"},
	} {
		if got := strings.Join(lint("0001_a.sql", c.statement), "; "); !strings.Contains(got, c.want) {
			t.Errorf("%s\ngot %q, want %q", c.statement, got, c.want)
		}
	}
	if got := lint("0009_retention.sql", "ALTER TABLE a MODIFY TTL occurred_at + INTERVAL 1 MONTH"); len(got) == 0 {
		t.Error("retention by what a source says about time was let through")
	}
}
