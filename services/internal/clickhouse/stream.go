package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Streamer asks for answers in one of ClickHouse's own formats, which no driver takes
// apart, and hands them on as they come. It needs ClickHouse's HTTP interface.
type Streamer struct {
	endpoint url.URL
	values   url.Values
	client   *http.Client
	patience time.Duration
}

// NewStreamer checks the settings and connects to nothing.
func NewStreamer(cfg Config, namespace string) (*Streamer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, config.Invalid("CLICKHOUSE_URL", "…", "a URL such as http://127.0.0.1:8123")
	}
	return &Streamer{
		endpoint: *u, patience: cfg.QueryTimeout,
		values: url.Values{
			"database": {Database(namespace)},
			// As for Conn, but for the time: an answer takes as long as its reader.
			"select_sequential_consistency":                {"1"},
			"do_not_merge_across_partitions_select_final":  {"0"},
			"max_execution_time":                           {"86400"},
			"cancel_http_readonly_queries_on_client_close": {"1"},
		},
		client: &http.Client{Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: cfg.DialTimeout}).DialContext,
			ResponseHeaderTimeout: cfg.QueryTimeout, // it comes with the first rows
			MaxIdleConnsPerHost:   1,
			IdleConnTimeout:       time.Minute,
		}},
	}, nil
}

// HTTP says whether ClickHouse is spoken to by HTTP; Stream works only then.
func (s *Streamer) HTTP() bool { return strings.HasPrefix(s.endpoint.Scheme, "http") }

// Stream sends a query that ends in its FORMAT. Params are bound to {name:Type} in it; settings are
// ClickHouse's. Close the answer. Errors, also of its Read, are classified: what is
// away, or says nothing for as long as a statement may take, is Transient.
func (s *Streamer) Stream(ctx context.Context, query string, params, settings map[string]string) (io.ReadCloser, error) {
	values := url.Values{}
	for name, v := range s.values {
		values[name] = v
	}
	for name, v := range settings {
		values.Set(name, v)
	}
	for name, v := range params {
		values.Set("param_"+name, escaped.Replace(v))
	}
	u := s.endpoint
	u.User, u.Path, u.RawQuery = nil, "/", values.Encode()
	reading, cancel := context.WithCancel(ctx)
	request, err := http.NewRequestWithContext(reading, http.MethodPost, u.String(), strings.NewReader(query))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("asking %s: %w", abbreviate(query), err)
	}
	if s.endpoint.User != nil {
		password, _ := s.endpoint.User.Password()
		request.SetBasicAuth(s.endpoint.User.Username(), password)
	}
	response, err := s.client.Do(request)
	if err != nil {
		cancel()
		return nil, classify(ctx, "asking "+abbreviate(query), withoutURL(err))
	}
	if response.StatusCode != http.StatusOK {
		defer cancel()
		defer response.Body.Close()
		return nil, classify(ctx, "asking "+abbreviate(query), refused(response))
	}
	body := &stream{ReadCloser: response.Body, ctx: ctx, cancel: sync.OnceFunc(cancel), query: query, patience: s.patience}
	body.idle = time.AfterFunc(s.patience, body.cancel)
	body.idle.Stop()
	return body, nil
}

// escaped is how ClickHouse wants the values of parameters.
var escaped = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`)

// withoutURL takes the request's address off an error: it holds what was asked for.
func withoutURL(err error) error {
	if e, ok := err.(*url.Error); ok {
		return e.Err
	}
	return err
}

// refused reads what ClickHouse says instead of an answer.
func refused(r *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	code, err := strconv.ParseInt(r.Header.Get("X-ClickHouse-Exception-Code"), 10, 32)
	if err == nil {
		return &clickhouse.Exception{Code: int32(code), Message: strings.TrimSpace(string(text))}
	}
	return &clickhouse.HTTPError{StatusCode: r.StatusCode, Err: errors.New(strings.TrimSpace(string(text)))}
}

// stream is an answer being read.
type stream struct {
	io.ReadCloser
	ctx      context.Context
	cancel   func()
	idle     *time.Timer
	query    string
	patience time.Duration
}

func (s *stream) Read(p []byte) (int, error) {
	s.idle.Reset(s.patience)
	n, err := s.ReadCloser.Read(p)
	waited := !s.idle.Stop()
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case waited && s.ctx.Err() == nil:
		return n, fault.Transient(fmt.Errorf("reading the answer to %s: nothing came for %s", abbreviate(s.query), s.patience))
	}
	return n, classify(s.ctx, "reading the answer to "+abbreviate(s.query), err)
}

func (s *stream) Close() error {
	s.idle.Stop()
	s.cancel() // what is not read yet need not come
	return s.ReadCloser.Close()
}
