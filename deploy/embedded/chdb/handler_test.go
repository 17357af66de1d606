package chdb_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb"
	"github.com/hikyaku/hikyaku/deploy/embedded/chdb/chdbtest"
)

// post sends a query as curl would and returns what came, with the error of reading it.
func post(t testing.TB, base string, values url.Values, query string) (*http.Response, string, error) {
	t.Helper()
	resp, err := http.Post(base+"/?"+values.Encode(), "text/plain", strings.NewReader(query))
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestFormatsAsCurlAsksForThem(t *testing.T) {
	t.Parallel()
	base := chdbtest.Start(t)
	for query, want := range map[string]string{
		"SELECT number, 'a' FROM numbers(2)":                                     "0\ta\n1\ta\n",
		"SELECT number FROM numbers(2) FORMAT JSONEachRow":                       "{\"number\":0}\n{\"number\":1}\n",
		"SELECT 1 AS n FORMAT CSVWithNames":                                      "\"n\"\n1\n",
		"SELECT number % 1 AS n, count() FROM numbers(3) GROUP BY n WITH TOTALS": "0\t3\n\n0\t3\n",
		"SELECT * FROM numbers(0)":                                               "",
		"EXISTS TABLE nope":                                                      "0\n",
	} {
		resp, body, err := post(t, base, nil, query)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		require.Equal(t, want, body, query)
	}
	_, body, err := post(t, base, nil, "SELECT 1 FORMAT Pretty")
	require.NoError(t, err)
	require.Contains(t, body, "┃ 1 ┃")
	// A format with head and foot is one document, however many blocks the answer has.
	_, body, err = post(t, base, nil, "SELECT number FROM numbers(200000) FORMAT JSONCompact")
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(body, `"meta"`))
	require.Contains(t, body, `"rows": 200000`)

	resp, err := http.Get(base + "/ping")
	require.NoError(t, err)
	defer resp.Body.Close()
	ping, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "Ok.\n", string(ping))
}

func TestExceptionsAreHTTPErrorsWithTheirCode(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	for _, c := range []struct {
		query  string
		values url.Values
		status int
		code   int
	}{
		{query: "SELEC 1", status: 400, code: 62},
		{query: "SELECT 1; SELECT 2", status: 400, code: 62},
		{query: "", status: 400, code: 62},
		{query: "SELECT * FROM nope", status: 404, code: 60},
		{query: "SHOW TABLES FROM nope", status: 404, code: 81},
		{query: "SELECT 1", values: url.Values{"database": {"nope"}}, status: 404, code: 81},
		{query: "SELECT 1", values: url.Values{"no_such_setting": {"1"}}, status: 404, code: 115},
		{query: "SELECT 1", values: url.Values{"max_threads = 1, readonly": {"1"}}, status: 404, code: 115},
		{query: "SELECT {n:UInt8}", values: url.Values{"param_n": {"x"}}, status: 400, code: 457},
		{query: "SELECT 1 FORMAT Nope", status: 404, code: 73},
		{query: "SELECT throwIf(1)", status: 500, code: 395},
		{query: "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))", values: url.Values{"max_execution_time": {"0.1"}}, status: 408, code: 159},
		{query: "SELECT groupArray(number) FROM numbers(100000000)", values: url.Values{"max_memory_usage": {"10000000"}}, status: 500, code: 241},
		{query: "SELECT 1 INTO OUTFILE 'x'", status: 501, code: 48},
		{query: "INSERT INTO t FORMAT JSONEachRow {}", status: 404, code: 60},
		{query: "SELECT sumState(number) FROM numbers(3)", values: url.Values{"default_format": {"Native"}, "client_protocol_version": {"54460"}}, status: 500, code: 1002},
	} {
		if c.values.Get("database") == "" {
			if c.values == nil {
				c.values = url.Values{}
			}
			c.values.Set("database", database)
		}
		resp, body, err := post(t, base, c.values, c.query)
		require.NoError(t, err)
		require.Equal(t, c.status, resp.StatusCode, "%s: %s", c.query, body)
		require.Equal(t, strconv.Itoa(c.code), resp.Header.Get("X-ClickHouse-Exception-Code"), body)
		require.True(t, strings.HasPrefix(body, fmt.Sprintf("Code: %d. DB::Exception: ", c.code)), body)
	}
	err := connect(t, base, database).Exec(context.Background(), "DROP TABLE nope")
	var ex *clickhouse.Exception
	require.ErrorAs(t, err, &ex)
	require.EqualValues(t, 60, ex.Code)

	resp, err := http.Get(base + "/?query=" + url.QueryEscape("CREATE TABLE t (n UInt8) ENGINE = Memory"))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, "164", resp.Header.Get("X-ClickHouse-Exception-Code"), "GET changes nothing")
}

func TestAnErrorInTheMiddleOfAnAnswerIsNotMistakenForItsEnd(t *testing.T) {
	t.Parallel()
	base := chdbtest.Start(t)
	const query = "SELECT throwIf(number = 5000000) FROM numbers(6000000)"
	resp, body, err := post(t, base, nil, query)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Contains(t, body, "__exception__\r\n"+resp.Header.Get("X-ClickHouse-Exception-Tag")+"\r\nCode: 395. DB::Exception: ")
	for _, method := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4} {
		conn := connect(t, base, "default", func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: method} })
		rows, err := conn.Query(context.Background(), query)
		require.NoError(t, err)
		for rows.Next() {
		}
		var ex *clickhouse.Exception
		require.ErrorAs(t, rows.Err(), &ex)
		require.EqualValues(t, 395, ex.Code)
		rows.Close()
	}
}

func TestNothingOfARequestStaysInItsSession(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	ask := func(values url.Values, query string) string {
		resp, body, err := post(t, base, values, query)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		return strings.TrimSpace(body)
	}
	const query = "SELECT getSetting('max_block_size'), getSetting('readonly'), currentDatabase()"
	require.Equal(t, "1234\t0\t"+database, ask(url.Values{"max_block_size": {"1234"}, "database": {database}}, query))
	ask(nil, "SET max_block_size = 1235")
	ask(nil, "USE "+database)
	ask(nil, "CREATE TEMPORARY TABLE mine (n UInt8)")
	for range 40 { // more than there are sessions
		require.Equal(t, "65409\t0\tdefault", ask(nil, query))
		require.Equal(t, "0", ask(nil, "EXISTS TEMPORARY TABLE mine"))
	}
}

func TestParametersAreBoundAndNeverPartOfTheQuery(t *testing.T) {
	t.Parallel()
	conn := connect(t, chdbtest.Start(t), "default")
	values := []string{"", "'; DROP TABLE t; --", "`quoted`", "飛脚", "{n:UInt8}", `"`, `back\slash`, "tab\tline\nnul\x00"}
	for _, want := range values {
		var got string
		require.NoError(t, conn.QueryRow(context.Background(), "SELECT {v:String}", clickhouse.Named("v", want)).Scan(&got))
		require.Equal(t, want, got)
	}
	var got []string
	require.NoError(t, conn.QueryRow(context.Background(), "SELECT {v:Array(String)}", clickhouse.Named("v", values)).Scan(&got))
	require.Equal(t, values, got)
}

func TestInsertsTakeTheirDataFromURLOrBodyPlainOrCompressed(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	in := url.Values{"database": {database}}
	chdbtest.Exec(t, base, "CREATE TABLE "+database+".t (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
	var large strings.Builder // more than is looked at to find where the data begins
	large.WriteString("INSERT INTO t FORMAT JSONEachRow\n")
	for i := range 20_000 {
		fmt.Fprintf(&large, "{\"n\":%d,\"s\":\"row; FORMAT %d\"}\n", i, i)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, "1,a\n2,b\n")
	require.NoError(t, z.Close())

	rows := 0
	for _, c := range []struct {
		query, body, encoding string
		rows                  int
	}{
		{query: "", body: large.String(), rows: 20_000},
		{query: "INSERT INTO t VALUES", body: "(1+1, concat('a', 'b')), (2, 'c')", rows: 2},
		{query: "", body: "INSERT INTO t (s, n) VALUES ('x', 1)", rows: 1},
		{query: "INSERT INTO t SETTINGS async_insert=0 FORMAT CSV", body: zipped.String(), encoding: "gzip", rows: 2},
		{query: "INSERT INTO t FORMAT CSV", body: "", rows: 0},
		{query: "INSERT INTO t SELECT number, '' FROM numbers(3)", rows: 3},
	} {
		values := url.Values{"database": {database}, "query": {c.query}}
		req, err := http.NewRequest(http.MethodPost, base+"/?"+values.Encode(), strings.NewReader(c.body))
		require.NoError(t, err)
		req.Header.Set("Content-Encoding", c.encoding)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		answer, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s%.100s: %s", c.query, c.body, answer)
		rows += c.rows
		_, count, err := post(t, base, in, "SELECT count() FROM t")
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(rows)+"\n", count, "%s%.100s", c.query, c.body)
	}
	// A broken row fails the insert, all of it.
	resp, body, err := post(t, base, in, "INSERT INTO t FORMAT JSONEachRow {\"n\":1}\n{\"n\":\"x\"}\n")
	require.NoError(t, err)
	require.NotEqual(t, http.StatusOK, resp.StatusCode, body)
	_, count, err := post(t, base, in, "SELECT count() FROM t")
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(rows)+"\n", count)
}

func TestAnswersAreGzippedForThoseWhoAskTwice(t *testing.T) {
	t.Parallel()
	base := chdbtest.Start(t)
	req, err := http.NewRequest(http.MethodPost, base+"/?enable_http_compression=1", strings.NewReader("SELECT number FROM numbers(100000)"))
	require.NoError(t, err)
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, "gzip", resp.Header.Get("Content-Encoding"))
	z, err := gzip.NewReader(resp.Body)
	require.NoError(t, err)
	lines := 0
	for s := bufio.NewScanner(z); s.Scan(); lines++ {
		require.Equal(t, strconv.Itoa(lines), s.Text())
	}
	require.Equal(t, 100_000, lines)
}

// resident is the peak of this process's memory, in bytes.
func resident(t testing.TB, field string) int64 {
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(status), field+":")
	require.True(t, ok)
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	require.NoError(t, err)
	return kib << 10
}

// Not parallel: it measures the process.
func TestALargeAnswerIsStreamedInBoundedMemory(t *testing.T) {
	base := chdbtest.Start(t)
	// The peak begins anew: that of the tests before does not count. (Not every kernel has it.)
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	before := resident(t, "VmRSS")
	resp, err := http.Post(base+"/", "text/plain", strings.NewReader("SELECT repeat('x', 200) FROM numbers(5000000) FORMAT TabSeparated"))
	require.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.EqualValues(t, 5_000_000*201, n)
	require.Less(t, resident(t, "VmHWM")-before, int64(400<<20), "a gigabyte went through")
}

func TestAQueryEndsWhenItsClientGoesAway(t *testing.T) {
	t.Parallel()
	base := chdbtest.Start(t)
	running := func(marker string) string {
		return strings.TrimSpace(chdbtest.Exec(t, base, "SELECT count() FROM system.processes WHERE query LIKE '%"+marker+"%' AND query NOT LIKE '%processes%'"))
	}
	for marker, query := range map[string]string{
		"aggregate":  "SELECT count() AS aggregate FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))",
		"streamed":   "SELECT number AS streamed FROM numbers(1000000000000)",
		"materialed": "SELECT max(sipHash64(number)) AS materialed FROM numbers(1000000000000) FORMAT JSON",
	} {
		t.Run(marker, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			gone := make(chan error, 1)
			go func() {
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, base+"/", strings.NewReader(query))
				resp, err := http.DefaultClient.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				gone <- err
			}()
			require.Eventually(t, func() bool { return running(marker) == "1" }, time.Minute, 10*time.Millisecond)
			cancel()
			require.ErrorIs(t, <-gone, context.Canceled)
			require.Eventually(t, func() bool { return running(marker) == "0" }, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestQueriesOfSeveralClientsRunAtTheSameTime(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	chdbtest.Exec(t, base, "CREATE TABLE "+database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for i := range 8 {
		conn := connect(t, base, database)
		wg.Go(func() {
			for j := range 10 {
				batch, err := conn.PrepareBatch(context.Background(), "INSERT INTO t")
				for k := 0; err == nil && k < 100; k++ {
					err = batch.Append(uint64(i*1000 + j*100 + k))
				}
				if err == nil {
					err = batch.Send()
				}
				var n uint64
				if err == nil {
					err = conn.QueryRow(context.Background(), "SELECT sum(number) FROM numbers(?)", 1000).Scan(&n)
				}
				if err == nil && n != 499500 {
					err = fmt.Errorf("another query's answer: %d", n)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	require.NoError(t, <-errs)
	require.Equal(t, "8000\t8000\n", chdbtest.Exec(t, base, "SELECT count(), uniqExact(n) FROM "+database+".t"))
}

func TestGoStillCatchesItsOwnFaultsBesideTheEngine(t *testing.T) {
	t.Parallel()
	base := chdbtest.Start(t)
	for range 200 { // while other tests open connections, and this one with each SET
		chdbtest.Exec(t, base, "SET max_threads = 1")
		require.Panics(t, func() {
			var nothing *http.Request
			t.Log(nothing.Method)
		})
	}
}

func TestOneEngineAtATime(t *testing.T) {
	t.Parallel()
	chdbtest.Start(t)
	_, err := chdb.Open(t.TempDir(), chdb.Options{})
	require.ErrorContains(t, err, "has an engine already")
}

// child is this test binary serving a directory of its own until its standard input ends.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	base  string
}

func startChild(t *testing.T, dir string) (*child, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHDB_TEST_SERVE="+dir)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	base, ok := strings.CutPrefix(strings.TrimSpace(line), "serving ")
	if !ok {
		return nil, errors.New(line)
	}
	return &child{cmd, stdin, base}, nil
}

func TestMain(m *testing.M) {
	dir := os.Getenv("CHDB_TEST_SERVE")
	if dir == "" {
		os.Exit(chdbtest.Main(m))
	}
	e, err := chdb.Open(dir, chdb.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	server := httptest.NewServer(e.Handler())
	fmt.Println("serving " + server.URL)
	io.Copy(io.Discard, os.Stdin)
	server.Close()
	if err := e.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func TestAcknowledgedRowsSurviveAKillAndAClose(t *testing.T) {
	t.Parallel()
	chdbtest.Start(t) // skips without the library
	dir := t.TempDir()
	c, err := startChild(t, dir)
	require.NoError(t, err)
	chdbtest.Exec(t, c.base, "CREATE DATABASE d")
	chdbtest.Exec(t, c.base, "CREATE TABLE d.t (n UInt64) ENGINE = MergeTree ORDER BY n")
	chdbtest.Exec(t, c.base, "INSERT INTO d.t SELECT number FROM numbers(1000)")
	_, err = startChild(t, dir)
	require.Error(t, err, "the directory is taken")
	require.NoError(t, c.cmd.Process.Kill())
	c.cmd.Wait()

	c, err = startChild(t, dir)
	require.NoError(t, err)
	require.Equal(t, "1000\n", chdbtest.Exec(t, c.base, "SELECT count() FROM d.t"))
	chdbtest.Exec(t, c.base, "INSERT INTO d.t VALUES (1000)")
	require.NoError(t, c.stdin.Close())
	require.NoError(t, c.cmd.Wait(), "closing is clean")

	c, err = startChild(t, dir)
	require.NoError(t, err)
	require.Equal(t, "1001\n", chdbtest.Exec(t, c.base, "SELECT count() FROM d.t"))
}
