package chdb

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInspectFindsWhatAStatementIs(t *testing.T) {
	for query, want := range map[string]statement{
		"":                                                  {kind: kindEmpty},
		" -- nothing\n /* at all */ ":                       {kind: kindEmpty},
		"SELECT 1":                                          {kind: kindSelect},
		"(SELECT 1) UNION ALL (SELECT 2)":                   {kind: kindSelect},
		"with 1 as x select x format JSON":                  {kind: kindSelect, format: "JSON"},
		"SELECT 1 FORMAT CSV SETTINGS a=1, b=2":             {kind: kindSelect, format: "CSV"},
		"SELECT 1 SETTINGS a=1 FORMAT CSV;":                 {kind: kindSelect, format: "CSV"},
		"SELECT 'x FORMAT CSV'":                             {kind: kindSelect},
		"SELECT $$ FORMAT CSV $$":                           {kind: kindSelect},
		"SELECT `FORMAT` FROM t # FORMAT CSV":               {kind: kindSelect},
		"SELECT (SELECT format FROM t)":                     {kind: kindSelect},
		"SELECT format AS f FROM t":                         {kind: kindSelect},
		"SELECT 1; SELECT 2":                                {kind: kindSelect, multiple: true},
		"SELECT ';'; -- done":                               {kind: kindSelect},
		"SELECT 1 GROUP BY 1 WITH TOTALS":                   {kind: kindSelect, totals: true},
		"SELECT 1 INTO OUTFILE 'x'":                         {kind: kindSelect, localFile: true},
		"DESCRIBE TABLE t":                                  {kind: kindRead},
		"SET a = 1":                                         {kind: kindSession},
		"CREATE TEMPORARY TABLE t (n UInt8)":                {kind: kindSession},
		"CREATE TABLE t (n UInt8)":                          {},
		"DROP TABLE t SYNC":                                 {sync: 13},
		"INSERT INTO t SELECT 1 FORMAT Null":                {format: "Null"},
		"INSERT INTO t WITH 1 AS x SELECT x":                {},
		"INSERT INTO t FROM INFILE 'x' FORMAT CSV":          {kind: kindInsert, localFile: true, format: "CSV", sourceAt: 30, formatAt: 30, dataAt: 40},
		"INSERT INTO t FORMAT Native":                       {kind: kindInsert, format: "Native", sourceAt: 14, formatAt: 14, dataAt: 27},
		"INSERT INTO t (format, values) FORMAT CSV \r\n\n1": {kind: kindInsert, format: "CSV", sourceAt: 31, formatAt: 31, dataAt: 44},
		"INSERT INTO t SETTINGS a=1 FORMAT CSV\n1;2":        {kind: kindInsert, format: "CSV", sourceAt: 14, formatAt: 27, dataAt: 38},
		"insert into t values (1), (';')":                   {kind: kindInsert, format: "Values", sourceAt: 14, formatAt: 14, dataAt: 20},
	} {
		require.Equal(t, want, inspect([]byte(query)), query)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte("INSERT INTO t (a) SETTINGS x='/*' FORMAT CSV\n1"))
	f.Add([]byte("INSERT SETTINGS"))
	f.Add([]byte("SELECT $a$ $a$, `x`, \"y\" -- z"))
	f.Fuzz(func(t *testing.T, query []byte) {
		st := inspect(query)
		require.True(t, st.kind != kindInsert || 0 < st.sourceAt && st.sourceAt <= st.formatAt && st.formatAt <= st.dataAt && st.dataAt <= len(query))
		require.Less(t, st.sync, len(query)+1)
	})
}
