// Package chdb serves ClickHouse's own engine, loaded as a library, over ClickHouse's HTTP interface: one process without containers
// in which clickhouse-go, curl and every other HTTP client work unchanged.
//
// The promise: what a query answers here is what a ClickHouse server of the same version answers, or an HTTP error; never an empty or
// shortened result in place of an error. What differs: no users, no grants, no named sessions, no external tables.
//
// libchdb.so comes from npm (package.json beside this file) and is loaded without cgo. It allows one data directory per process.
package chdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// Options of an engine. The zero value is what the embedded stack runs.
type Options struct {
	// MaxServerMemoryBytes bounds what all queries, merges and caches hold together. Queries beyond it fail with code 241. Default 1 GiB.
	MaxServerMemoryBytes int64
	// MaxExecutionTime ends a query that brings no max_execution_time of its own. Default 10 minutes.
	MaxExecutionTime time.Duration
	// MaxQueries run at the same time; more wait their turn. Default 16.
	MaxQueries int
	// Log takes what the engine cannot tell a client. Default: discarded.
	Log *slog.Logger
}

// Engine is the one ClickHouse of this process. Its methods may be called from many goroutines.
type Engine struct {
	lib  *library
	opts Options
	args []string
	log  *slog.Logger

	slots chan struct{} // one per query that may run

	mu      sync.Mutex
	idle    []*session
	opened  int  // sessions made, for their names
	closing bool // no more sessions
	purging bool // purge is due

	adminMu sync.Mutex
	admin   *session // for what is nobody's query; nil once closed. While it is open the engine runs, whatever else is closed

	version  string // 26.5.1.1
	timezone string
}

// process is locked while an engine is open: libchdb.so has one data directory per process, whoever asks.
var process sync.Mutex

// Open starts the engine on the directory path, which is created when missing. It fails with ErrNoLibrary when libchdb.so is not
// there, and when this process already has an engine or another process holds the directory.
func Open(path string, opts Options) (*Engine, error) {
	if opts.MaxServerMemoryBytes == 0 {
		opts.MaxServerMemoryBytes = 1 << 30
	}
	if opts.MaxExecutionTime == 0 {
		opts.MaxExecutionTime = 10 * time.Minute
	}
	if opts.MaxQueries == 0 {
		opts.MaxQueries = 16
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	lib, err := loadLibrary()
	if err != nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening chdb: %w", err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("opening chdb: %w", err)
	}
	if !process.TryLock() {
		return nil, errors.New("opening chdb: this process has an engine already")
	}
	e := &Engine{lib: lib, opts: opts, args: serverArguments(path, opts), log: opts.Log, slots: make(chan struct{}, opts.MaxQueries)}
	if e.admin, err = e.connect(lib.boot); err != nil {
		process.Unlock()
		return nil, fmt.Errorf("opening chdb in %s: %w", path, err)
	}
	if err := e.hello(); err != nil {
		e.disconnect(e.admin)
		process.Unlock()
		return nil, fmt.Errorf("opening chdb in %s: %w", path, err)
	}
	return e, nil
}

// serverArguments are read once, by the first connection. They are sized for a laptop that also runs everything else; ClickHouse's
// defaults assume a machine of its own (5 GiB for each cache).
func serverArguments(path string, opts Options) []string {
	return []string{
		"clickhouse",
		"--path=" + path,
		"--max_server_memory_usage=" + strconv.FormatInt(opts.MaxServerMemoryBytes, 10),
		"--mark_cache_size=16777216",
		"--primary_index_cache_size=16777216",
		"--index_mark_cache_size=4194304",
		"--query_condition_cache_size=4194304",
		// Threads above these end when they have nothing to do.
		"--max_thread_pool_free_size=8",
		"--background_pool_size=2",
		// Who waits for an answer goes before what is tidied up meanwhile.
		"--os_threads_nice_value_merge_mutate=10",
		// Below a pool of 10 threads the defaults (20 and 8 free entries) would let no mutation and no large merge ever begin.
		"--merge_tree.number_of_free_entries_in_pool_to_execute_mutation=1",
		"--merge_tree.number_of_free_entries_in_pool_to_lower_max_size_of_merge=1",
		"--merge_tree.number_of_free_entries_in_pool_to_execute_optimize_entire_partition=1",
	}
}

// hello reads what every response repeats in its headers.
func (e *Engine) hello() error {
	r := e.admin.query("SELECT version(), timezone()", "TabSeparated", nil)
	defer r.free()
	if err := r.err(); err != nil {
		return err
	}
	version, timezone, ok := strings.Cut(strings.TrimSuffix(string(r.bytes()), "\n"), "\t")
	if !ok {
		return fmt.Errorf("the engine gave no version but %q", r.bytes())
	}
	e.version, e.timezone = version, timezone
	return nil
}

// Version is that of ClickHouse, as version() gives it.
func (e *Engine) Version() string { return e.version }

// Close waits for the queries that run, and for merges to stop, and leaves the data in its directory. Stop the HTTP server first.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil
	}
	e.closing = true
	e.mu.Unlock()
	// Closing a connection under a running query brings the process down: take every slot, so that none runs.
	for range cap(e.slots) {
		e.slots <- struct{}{}
	}
	for _, s := range e.idle {
		e.disconnect(s)
	}
	e.adminMu.Lock()
	defer e.adminMu.Unlock()
	e.disconnect(e.admin)
	e.admin = nil
	process.Unlock()
	return nil
}

var errClosed = errors.New("the engine is closed")

// acquire returns a session with these settings and this database, waiting for a free slot. The caller gives it back with release.
func (e *Engine) acquire(ctx context.Context, database string, settings map[string]string) (*session, error) {
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := e.take(database, settings)
	if err == nil {
		if err = s.prepare(database, settings); err == nil {
			return s, nil
		}
		e.disconnect(s) // half prepared
	}
	<-e.slots
	return nil, err
}

// take removes the idle session that fits best, or makes one.
func (e *Engine) take(database string, settings map[string]string) (*session, error) {
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil, errClosed
	}
	if n := len(e.idle); n > 0 {
		i := slices.IndexFunc(e.idle, func(s *session) bool { return s.fits(database, settings) })
		if i < 0 {
			i = n - 1
		}
		s := e.idle[i]
		e.idle = slices.Delete(e.idle, i, i+1)
		e.mu.Unlock()
		return s, nil
	}
	e.mu.Unlock()
	return e.connect(e.lib.connect)
}

// release gives a session back, or ends it when the query may have changed it (SET, USE, a temporary table) or was killed.
func (e *Engine) release(s *session, end bool) {
	if end {
		e.disconnect(s)
	}
	e.mu.Lock()
	if !end {
		e.idle = append(e.idle, s)
	}
	if !e.purging {
		e.purging = true
		time.AfterFunc(purgeAfter, e.purge)
	}
	e.mu.Unlock()
	<-e.slots
}

// purgeAfter is how long freed memory stays with the engine's allocator, which gives nothing back by itself: 200 MiB after a million rows.
const purgeAfter = time.Second

func (e *Engine) purge() {
	e.mu.Lock()
	e.purging = false
	e.mu.Unlock()
	e.administer("SYSTEM JEMALLOC PURGE")
}

// administer runs what is nobody's query. It can only be logged when that fails.
func (e *Engine) administer(query string, params ...param) {
	e.adminMu.Lock()
	defer e.adminMu.Unlock()
	if e.admin == nil {
		return
	}
	r := e.admin.query(query, "Null", params)
	defer r.free()
	if err := r.err(); err != nil {
		e.log.Error("administering chdb failed", "query", query, "error", err)
	}
}

// killWhenGone ends the query on s once ctx is done: nobody reads the answer any more. The caller calls ended when its query is over;
// after that no kill can hit the next query of the session.
func (e *Engine) killWhenGone(ctx context.Context, s *session) (ended func()) {
	over, killed := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		for { // again, because the first may come before the query does
			e.administer("KILL QUERY WHERE Settings['log_comment'] = {name:String} ASYNC", param{"name", s.name})
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return func() {
		close(over)
		if !stop() {
			<-killed
		}
	}
}

// session is one connection to the engine: its settings and its current database are its own, and it runs one query at a time.
type session struct {
	lib      *library
	handle   *unsafe.Pointer
	name     string // also its log_comment, by which kill finds its query
	database string
	settings map[string]string
}

func (e *Engine) connect(with func(argc int32, argv *unsafe.Pointer) *unsafe.Pointer) (*session, error) {
	e.mu.Lock()
	e.opened++
	name := "session-" + strconv.Itoa(e.opened)
	e.mu.Unlock()
	argv := make([]unsafe.Pointer, len(e.args))
	var pin runtime.Pinner // the array holds Go pointers, which the engine reads during the call only
	defer pin.Unpin()
	for i, a := range e.args {
		text := append([]byte(a), 0)
		pin.Pin(&text[0])
		argv[i] = unsafe.Pointer(&text[0])
	}
	handle := with(int32(len(argv)), &argv[0])
	if handle == nil {
		return nil, errors.New("the engine gave no connection (is its directory in use by another process, or not writable?)")
	}
	s := &session{lib: e.lib, handle: handle, name: name, database: "default"}
	if err := s.exec("SET log_comment = " + quote(name)); err != nil {
		e.disconnect(s)
		return nil, err
	}
	return s, nil
}

func (e *Engine) disconnect(s *session) {
	e.lib.closeConn(s.handle)
}

func (s *session) fits(database string, settings map[string]string) bool {
	if s.database != database || len(s.settings) != len(settings) {
		return false
	}
	for k, v := range settings {
		if w, ok := s.settings[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// prepare makes s as if it were new and had these settings. After an error s is not to be used.
func (s *session) prepare(database string, settings map[string]string) error {
	var changes []string
	for k := range s.settings {
		if _, ok := settings[k]; !ok {
			changes = append(changes, k+" = DEFAULT")
		}
	}
	for k, v := range settings {
		if w, ok := s.settings[k]; !ok || v != w {
			changes = append(changes, k+" = "+quote(v))
		}
	}
	if len(changes) > 0 {
		if err := s.exec("SET " + strings.Join(changes, ", ")); err != nil {
			return err
		}
		s.settings = settings
	}
	// Always: a database dropped meanwhile is an error here, as it is on a server.
	if err := s.exec("USE " + quoteName(database)); err != nil {
		return err
	}
	s.database = database
	return nil
}

func (s *session) exec(query string) error {
	r := s.query(query, "Null", nil)
	defer r.free()
	return r.err()
}

// param is a query parameter; its value is in ClickHouse's escaped text form, as HTTP carries it.
type param struct{ name, value string }

// query runs to the end and returns the whole answer. The caller frees it.
func (s *session) query(query, format string, params []param) result {
	return s.call(s.lib.query, query, format, params)
}

// stream starts a SELECT. Chunks come from fetch. The caller frees the result, after cancel if it stops early.
func (s *session) stream(query, format string, params []param) result {
	return s.call(s.lib.stream, query, format, params)
}

type callFunc func(conn unsafe.Pointer, q *byte, qlen uintptr, f *byte, flen uintptr, names *unsafe.Pointer, nlens *uintptr, vals *unsafe.Pointer, vlens *uintptr, n uintptr) unsafe.Pointer

func (s *session) call(f callFunc, query, format string, params []param) result {
	var pin runtime.Pinner // the arrays hold Go pointers, which the engine reads during the call only
	defer pin.Unpin()
	n := len(params)
	names, values := make([]unsafe.Pointer, n+1), make([]unsafe.Pointer, n+1) // one more, so that the first element exists
	nameBytes, valueBytes := make([]uintptr, n+1), make([]uintptr, n+1)
	for i, p := range params {
		name, value := append([]byte(p.name), 0), append([]byte(p.value), 0)
		pin.Pin(&name[0])
		pin.Pin(&value[0])
		names[i], values[i] = unsafe.Pointer(&name[0]), unsafe.Pointer(&value[0])
		nameBytes[i], valueBytes[i] = uintptr(len(p.name)), uintptr(len(p.value))
	}
	q, fm := append([]byte(query), 0), append([]byte(format), 0)
	return result{s.lib, f(*s.handle, &q[0], uintptr(len(query)), &fm[0], uintptr(len(format)),
		&names[0], &nameBytes[0], &values[0], &valueBytes[0], uintptr(n))}
}

// fetch returns the next chunk of a stream, a complete document in the stream's format; empty at the end. The caller frees it.
func (s *session) fetch(stream result) result {
	return result{s.lib, s.lib.fetch(*s.handle, stream.p)}
}

func (s *session) cancel(stream result) { s.lib.cancel(*s.handle, stream.p) }

// result is memory of the engine. Only err may be asked of one that has an error.
type result struct {
	lib *library
	p   unsafe.Pointer
}

func (r result) free() {
	if r.p != nil {
		r.lib.destroy(r.p)
	}
}

// bytes is valid until free.
func (r result) bytes() []byte {
	n := r.lib.length(r.p)
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(r.lib.buffer(r.p)), n)
}

// err returns an *Exception, or nil.
func (r result) err() error {
	if r.p == nil {
		return &Exception{Code: codeUnknown, Text: "Code: 1002. DB::Exception: the engine gave no result. (UNKNOWN_EXCEPTION)"}
	}
	if text := r.lib.errorText(r.p); text != "" {
		return parseException(text)
	}
	return nil
}

// quote makes a string literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// quoteName makes an identifier.
func quoteName(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}
