// Package chdbtest gives tests the real ClickHouse engine: one per test process, because libchdb.so allows no more, shared by all its
// tests, each of which takes a database of its own. Without libchdb.so a test is skipped and says what to run.
package chdbtest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb"
)

// Main is for TestMain: it runs the tests, closes the engine if one was started, and returns the exit code. Without it the engine is cut
// off in the middle of what it does in the background, and the race detector, which ends a process as C does, brings it down for that.
// What a process that was killed leaves in its directory is removed by the next one.
func Main(m *testing.M) int {
	code := m.Run()
	if stop != nil {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, "closing the test engine:", err)
			return max(code, 1)
		}
	}
	return code
}

// stop closes the engine; nil if none was started.
var stop func() error

// Start returns the base URL of the engine's HTTP interface, such as http://127.0.0.1:34567. The engine lives until Main has run all tests.
func Start(t testing.TB) string {
	t.Helper()
	base, err := start()
	if errors.Is(err, chdb.ErrNoLibrary) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// Database makes a database for this test, dropped when it ends, and returns the engine's URL and the name.
func Database(t testing.TB) (base, name string) {
	t.Helper()
	base = Start(t)
	name = "test_" + strings.ToLower(rand.Text()[:12])
	Exec(t, base, "CREATE DATABASE "+name)
	t.Cleanup(func() { Exec(t, base, "DROP DATABASE "+name) })
	return base, name
}

// Exec runs one statement and returns the body of the answer. The test fails at an exception.
func Exec(t testing.TB, base, query string) string {
	t.Helper()
	resp, err := http.Post(base+"/?"+url.Values{"max_execution_time": {"60"}}.Encode(), "text/plain", strings.NewReader(query))
	if err != nil {
		t.Fatalf("running %q: %v", query, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("running %q: %v", query, err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("running %q: %s", query, body)
	}
	return string(body)
}

// start is once per process, as the engine is.
var start = sync.OnceValues(func() (string, error) {
	removeLeftovers()
	dir, err := os.MkdirTemp("", prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("starting the test engine: %w", err)
	}
	engine, err := chdb.Open(dir, chdb.Options{})
	if err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	server := httptest.NewServer(engine.Handler())
	stop = func() error {
		server.CloseClientConnections()
		server.Close()
		return errors.Join(engine.Close(), os.RemoveAll(dir))
	}
	return server.URL, nil
})

const prefix = "hikyaku-chdbtest-"

// removeLeftovers removes the directories of processes that are gone.
func removeLeftovers() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.Split(strings.TrimPrefix(filepath.Base(dir), prefix), "-")[0])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			os.RemoveAll(dir)
		}
	}
}
