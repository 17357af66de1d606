package chdb

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	chcompress "github.com/ClickHouse/ch-go/compress"
	"github.com/klauspost/compress/zstd"
)

const (
	// statementBytes is how much of a request is looked at to find where an INSERT's data begins; ClickHouse's max_query_size.
	statementBytes = 256 << 10
	// maxQueryBytes bounds a query that is not an INSERT with data.
	maxQueryBytes = 16 << 20
	// frameBytes is the size, before compression, of a frame of ClickHouse's own compression.
	frameBytes = 1 << 20
)

// streamable formats have neither head nor foot, so that the chunks of an answer can be sent one after the other. In others each
// chunk would be a document of its own; those are made whole before they are sent.
var streamable = map[string]bool{
	"Native": true, "RowBinary": true, "JSONEachRow": true, "NDJSON": true, "JSONLines": true, "JSONCompactEachRow": true,
	"JSONStringsEachRow": true, "JSONCompactStringsEachRow": true, "TabSeparated": true, "TSV": true, "TabSeparatedRaw": true,
	"TSVRaw": true, "Raw": true, "CSV": true, "TSKV": true,
}

// Handler serves ClickHouse's HTTP interface: /ping and queries at /.
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ping", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "Ok.\n") })
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		a := &answer{engine: e, w: w, values: r.URL.Query()}
		a.begin()
		if err := a.serve(r); err != nil {
			a.fail(err)
		}
	})
	return mux
}

// answer is one request being answered.
type answer struct {
	engine *Engine
	w      http.ResponseWriter
	values url.Values
	body   io.WriteCloser // compresses, if asked; nil until the first byte
	sent   bool
	gzip   bool
	tag    string // marks an exception in the middle of a body
}

// begin writes the headers that even errors have.
func (a *answer) begin() {
	id := a.values.Get("query_id")
	if id == "" {
		id = randomHex(16)
		id = id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	}
	a.tag = randomHex(8)
	h := a.w.Header()
	h.Set("X-ClickHouse-Query-Id", id)
	h.Set("X-ClickHouse-Server-Display-Name", "hikyaku")
	h.Set("X-ClickHouse-Timezone", a.engine.timezone)
	h.Set("X-ClickHouse-Exception-Tag", a.tag)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func (a *answer) serve(r *http.Request) error {
	body, err := a.requestBody(r)
	if err != nil {
		return err
	}
	query := a.values.Get("query")
	if query != "" {
		body = io.MultiReader(strings.NewReader(query+"\n"), body)
	}
	in := bufio.NewReaderSize(body, statementBytes)
	head, err := in.Peek(statementBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return readError(err)
	}
	st := inspect(head)
	switch {
	case st.kind == kindEmpty && r.Method == http.MethodGet:
		io.WriteString(a.w, "Ok.\n")
		return nil
	case st.kind == kindEmpty:
		return exception(codeSyntax, "SYNTAX_ERROR", "Syntax error: Empty query")
	case st.multiple:
		return exception(codeSyntax, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)")
	case st.localFile:
		return exception(codeNotImplemented, "NOT_IMPLEMENTED", "INFILE and OUTFILE name files of a client, and HTTP has none")
	case r.Method == http.MethodGet && st.kind != kindSelect && st.kind != kindRead:
		return exception(codeReadonly, "READONLY", "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. You should use method POST for modifying queries")
	}
	// As on a server, a client has to ask for it twice.
	a.gzip = truthy(a.values.Get("enable_http_compression")) && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip")
	database, settings, params, err := a.options(r)
	if err != nil {
		return err
	}
	if st.kind == kindInsert {
		if _, err := in.Discard(st.dataAt); err != nil {
			return readError(err)
		}
		return a.insert(r.Context(), st, string(head[:st.dataAt]), in, database, settings, params)
	}
	text, err := io.ReadAll(io.LimitReader(in, maxQueryBytes+1))
	if err != nil {
		return readError(err)
	}
	if len(text) > maxQueryBytes {
		return exception(codeTooLarge, "SYNTAX_ERROR", "Max query size exceeded")
	}
	if st.sync > 0 {
		// libchdb.so never starts the task that removes the files of dropped tables, and waiting for it would be for ever. The table
		// is gone either way; its files go with the data directory.
		text = text[:st.sync]
	}
	return a.run(r.Context(), st, string(text), r.Header.Get("X-ClickHouse-Format"), database, settings, params)
}

// requestBody undoes what the client did to its body: HTTP's compression, then ClickHouse's own.
func (a *answer) requestBody(r *http.Request) (io.Reader, error) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/") {
		return nil, exception(codeNotImplemented, "NOT_IMPLEMENTED", "External tables are not supported")
	}
	var body io.Reader = r.Body
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, readError(err)
		}
		body = z
	case "zstd":
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, readError(err)
		}
		body = z.IOReadCloser()
	default:
		return nil, exception(codeNotImplemented, "NOT_IMPLEMENTED", "Content-Encoding "+encoding+" is not supported")
	}
	if truthy(a.values.Get("decompress")) {
		body = &frames{chcompress.NewReader(body)}
	}
	return body, nil
}

// frames reads ClickHouse's compression and reports the end as io.EOF itself; ch-go wraps it.
type frames struct{ r *chcompress.Reader }

func (f *frames) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func readError(err error) error {
	return exception(codeBadArguments, "BAD_ARGUMENTS", "Cannot read the request: "+err.Error())
}

// notSettings are parameters of the HTTP interface itself; all others are settings of the query.
var notSettings = map[string]bool{
	"query": true, "database": true, "default_format": true, "query_id": true, "compress": true, "decompress": true, "user": true,
	"password": true, "quota_key": true, "role": true, "stacktrace": true, "buffer_size": true, "wait_end_of_query": true,
	"client_protocol_version": true, "close_session": true, "session_check": true, "session_timeout": true,
}

// options splits the URL's parameters. Nobody is refused: there are no users here.
func (a *answer) options(r *http.Request) (database string, settings map[string]string, params []param, err error) {
	database = a.values.Get("database")
	if database == "" {
		database = r.Header.Get("X-ClickHouse-Database")
	}
	if database == "" {
		database = "default"
	}
	settings = map[string]string{
		// A client that goes away does not stop its query by itself.
		"max_execution_time": strconv.FormatFloat(a.engine.opts.MaxExecutionTime.Seconds(), 'f', -1, 64),
		"implicit_select":    "0", // libchdb.so sets it, a server does not
		// The profilers interrupt threads by signals, for a log that does not exist here.
		"query_profiler_cpu_time_period_ns":  "0",
		"query_profiler_real_time_period_ns": "0",
		// Compiled expressions cost tens of megabytes and pay off on data larger than this engine is for.
		"compile_expressions":           "0",
		"compile_aggregate_expressions": "0",
		"compile_sort_description":      "0",
		// By default a thread for each free GiB, which in MaxServerMemoryBytes is one, however many cores there are.
		"max_threads_min_free_memory_per_thread": "100000000",
	}
	for name, values := range a.values {
		value := values[len(values)-1]
		switch {
		case name == "session_id":
			return "", nil, nil, exception(codeNotImplemented, "NOT_IMPLEMENTED", "Named sessions are not supported")
		case strings.HasPrefix(name, "param_"):
			params = append(params, param{name[len("param_"):], value})
		case notSettings[name] || name == "log_comment": // by which kill finds the query
		case !isSetting(name):
			return "", nil, nil, exception(115, "UNKNOWN_SETTING", "Unknown setting '"+name+"'")
		default:
			settings[name] = value
		}
	}
	return database, settings, params, nil
}

// isSetting keeps what goes unquoted into SET to names.
func isSetting(name string) bool {
	for i := range len(name) {
		if !isWord(name[i]) || name[i] >= 0x80 || i == 0 && name[i] <= '9' {
			return false
		}
	}
	return name != ""
}

func truthy(v string) bool { return v != "" && v != "0" && v != "false" }

// insert gives the engine the data as a file, because binary data cannot be part of a query's text.
func (a *answer) insert(ctx context.Context, st statement, head string, data io.Reader, database string, settings map[string]string, params []param) error {
	file, path, err := newSpool()
	if err != nil {
		return err
	}
	defer removeSpool(file)
	if _, err := io.Copy(file, data); err != nil {
		return readError(err) // nothing was inserted
	}
	query := head[:st.sourceAt] + " FROM INFILE " + quote(path) + " COMPRESSION 'none' " + head[st.sourceAt:st.formatAt] + " FORMAT " + st.format
	s, err := a.engine.acquire(ctx, database, settings)
	if err != nil {
		return err
	}
	defer a.engine.release(s, false)
	// Not ended when the client goes away: half of an insert would be worse than one nobody waited for.
	r := s.query(query, "Null", params)
	defer r.free()
	if err := r.err(); err != nil {
		return err
	}
	a.summary(r)
	return nil
}

func removeSpool(f *os.File) {
	f.Close()
	if !strings.HasPrefix(f.Name(), "/proc/") {
		os.Remove(f.Name())
	}
}

// run answers what is not an INSERT with data.
func (a *answer) run(ctx context.Context, st statement, query, requested, database string, settings map[string]string, params []param) error {
	format := st.format
	if format == "" {
		format = a.values.Get("default_format")
	}
	if format == "" {
		format = requested
	}
	if format == "" {
		format = "TabSeparated"
	}
	var convert *native
	if format == "Native" {
		if v := a.values.Get("client_protocol_version"); v != "" {
			revision, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				return exception(codeBadArguments, "BAD_ARGUMENTS", "client_protocol_version is not a number")
			}
			convert = newNative(revision, a.engine.version)
		}
	}
	s, err := a.engine.acquire(ctx, database, settings)
	if err != nil {
		return err
	}
	// A query that was killed stays in system.processes until its session has another, or ends.
	defer func() { a.engine.release(s, st.kind == kindSession || ctx.Err() != nil) }()
	if st.kind == kindSelect || st.kind == kindRead {
		defer a.engine.killWhenGone(ctx, s)()
	}
	if st.kind == kindSelect && streamable[format] && !st.totals && !truthy(settings["extremes"]) {
		streamed, err := a.stream(ctx, s, query, format, params, convert)
		if streamed || err != nil {
			return err
		}
	}
	r := s.query(query, format, params)
	defer r.free()
	if err := r.err(); err != nil {
		return err
	}
	a.summary(r)
	if len(r.bytes()) > 0 {
		a.w.Header().Set("X-ClickHouse-Format", format)
		a.w.Header().Set("Content-Type", contentType(format))
	}
	if err := a.write(r.bytes(), convert); err != nil {
		return err
	}
	return a.finish()
}

// stream sends chunk by chunk. It says false when the engine does not stream this statement; then nothing has been run.
func (a *answer) stream(ctx context.Context, s *session, query, format string, params []param, convert *native) (bool, error) {
	stream := s.stream(query, format, params)
	defer stream.free()
	if err := stream.err(); err != nil {
		if strings.Contains(err.Error(), "Streaming query is not supported for query") {
			return false, nil
		}
		return true, err
	}
	a.w.Header().Set("X-ClickHouse-Format", format)
	a.w.Header().Set("Content-Type", contentType(format))
	for {
		more, err := a.chunk(s, stream, convert)
		if err != nil {
			s.cancel(stream)
			return true, err
		}
		if !more {
			return true, a.finish()
		}
		if ctx.Err() != nil {
			s.cancel(stream)
			return true, ctx.Err()
		}
	}
}

func (a *answer) chunk(s *session, stream result, convert *native) (more bool, err error) {
	r := s.fetch(stream)
	defer r.free()
	if err := r.err(); err != nil {
		return false, err
	}
	data := r.bytes()
	if len(data) == 0 && r.lib.rowsRead(r.p) == 0 {
		return false, nil
	}
	return true, a.write(data, convert)
}

// write sends data, which it does not keep.
func (a *answer) write(data []byte, convert *native) error {
	if convert != nil {
		converted, err := convert.convert(data)
		if err != nil {
			return exception(codeUnknown, "UNKNOWN_EXCEPTION", err.Error())
		}
		data = converted
	}
	if len(data) == 0 {
		return nil
	}
	if a.body == nil {
		a.body = a.compressor()
	}
	a.sent = true
	if _, err := a.body.Write(data); err != nil {
		return fmt.Errorf("sending the answer: %w", err)
	}
	return nil
}

func (a *answer) finish() error {
	if a.body == nil {
		return nil
	}
	if err := a.body.Close(); err != nil {
		return fmt.Errorf("sending the answer: %w", err)
	}
	return nil
}

// summary is only known before the body for answers that are made whole.
func (a *answer) summary(r result) {
	a.w.Header().Set("X-ClickHouse-Summary", fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d"}`,
		r.lib.storageRows(r.p), r.lib.storageBytes(r.p), r.lib.rowsWritten(r.p), r.lib.bytesWritten(r.p)))
}

// fail tells the client. Once a part of the body is out, the exception follows in ClickHouse's frame and the connection is broken off,
// so that no client takes the part for the whole.
func (a *answer) fail(err error) {
	var ex *Exception
	if !errors.As(err, &ex) {
		ex = exception(codeUnknown, "UNKNOWN_EXCEPTION", err.Error())
	}
	if a.sent {
		fmt.Fprintf(a.w, "\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n", a.tag, ex.Text, len(ex.Text)+1, a.tag)
		http.NewResponseController(a.w).Flush()
		panic(http.ErrAbortHandler)
	}
	h := a.w.Header()
	h.Del("X-ClickHouse-Format")
	h.Del("Content-Encoding")
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("X-ClickHouse-Exception-Code", strconv.Itoa(ex.Code))
	a.w.WriteHeader(ex.status())
	io.WriteString(a.w, ex.Text+"\n")
}

// compressor is what the client asked for: ClickHouse's frames (compress=1), or gzip.
func (a *answer) compressor() io.WriteCloser {
	if truthy(a.values.Get("compress")) {
		method := chcompress.LZ4
		if strings.EqualFold(a.values.Get("network_compression_method"), "ZSTD") {
			method = chcompress.ZSTD
		}
		return &frameWriter{a.w, chcompress.NewWriter(chcompress.LevelZero, method)}
	}
	if a.gzip {
		a.w.Header().Set("Content-Encoding", "gzip")
		return gzip.NewWriter(a.w)
	}
	return plain{a.w}
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

type frameWriter struct {
	w     io.Writer
	frame *chcompress.Writer
}

func (f *frameWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), frameBytes)
		if err := f.frame.Compress(rest[:n]); err != nil {
			return 0, err
		}
		if _, err := f.w.Write(f.frame.Data); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

func (f *frameWriter) Close() error { return nil }

func contentType(format string) string {
	switch {
	case strings.HasSuffix(format, "EachRow") || format == "NDJSON" || format == "JSONLines":
		return "application/x-ndjson; charset=UTF-8"
	case strings.HasPrefix(format, "JSON"):
		return "application/json; charset=UTF-8"
	case strings.HasPrefix(format, "CSV"):
		return "text/csv; charset=UTF-8"
	case strings.HasPrefix(format, "TabSeparated") || strings.HasPrefix(format, "TSV"):
		return "text/tab-separated-values; charset=UTF-8"
	case format == "Native" || strings.HasPrefix(format, "RowBinary") || format == "Parquet" || format == "ArrowStream":
		return "application/octet-stream"
	}
	return "text/plain; charset=UTF-8"
}
