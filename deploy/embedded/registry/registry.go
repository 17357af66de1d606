// Package registry is a Schema Registry over one file: srfake, which speaks
// the protocol but keeps nothing and numbers schemas by order of arrival,
// seeded at start from a journal of every change it has answered.
//
// What it promises. A change (a registration, a deletion, a compatibility
// level) is on disk, fsynced, before it is answered, so schema ids are the same
// after any restart, kill -9 and power cuts included. What it does not
// promise: compatibility is never refused, srfake answers every check with
// yes; scripts/check does that work on the schemas themselves.
package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/sr/srfake"
)

// DefaultAddr is where clients expect the registry.
const DefaultAddr = "127.0.0.1:8081"

// maxBodyBytes is far above srfake's own limit of 1 MiB.
const maxBodyBytes = 4 << 20

// Registry is an open registry. It is an http.Handler's owner, not a server.
type Registry struct {
	fake http.Handler

	mu      sync.Mutex // one change at a time: their order gives the ids
	journal *os.File
	broken  error // an append failed: what is in memory may not be on disk
}

// change is one line of the journal.
type change struct {
	Method string          `json:"method"`
	URI    string          `json:"uri"`
	Body   json.RawMessage `json:"body,omitempty"`
	ID     int             `json:"id,omitempty"` // the schema id that was answered
}

// Open reads the journal at path, making it if there is none. A last line
// without an end was never answered and is cut off; any other line that does
// not give the id it gave before is an error.
func Open(path string) (_ *Registry, err error) {
	r := &Registry{fake: srfake.NewRegistry().Handler()}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("opening schema registry: %w", err)
	}
	r.journal, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening schema registry: %w", err)
	}
	if err := r.replay(); err != nil {
		r.journal.Close()
		return nil, fmt.Errorf("opening schema registry: %s: %w", path, err)
	}
	// The file's name must outlive a power cut as its lines do.
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		dir.Close()
	}
	return r, nil
}

func (r *Registry) replay() error {
	raw, err := io.ReadAll(r.journal)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(raw, '\n') + 1
	if err := r.journal.Truncate(int64(whole)); err != nil {
		return err
	}
	if _, err := r.journal.Seek(int64(whole), io.SeekStart); err != nil {
		return err
	}
	line := 0
	for l := range bytes.Lines(raw[:whole]) {
		line++
		var c change
		if err := json.Unmarshal(l, &c); err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		answer := r.ask(c.Method, c.URI, c.Body)
		if answer.Code/100 != 2 {
			return fmt.Errorf("line %d: %s %s: %s", line, c.Method, c.URI, strings.TrimSpace(answer.Body.String()))
		}
		if id := schemaID(answer.Body.Bytes()); id != c.ID {
			return fmt.Errorf("line %d: %s %s: schema id %d, was %d", line, c.Method, c.URI, id, c.ID)
		}
	}
	return nil
}

// Handler serves the registry's HTTP interface, and GET /healthz.
func (r *Registry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		if reads(req) {
			r.fake.ServeHTTP(w, req)
			return
		}
		r.change(w, req)
	})
	return mux
}

// reads says that a request changes nothing: looking up a schema under a
// subject and checking compatibility are POSTs too.
func reads(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	case http.MethodPost:
		return !strings.HasSuffix(req.URL.Path, "/versions") || strings.Contains(req.URL.Path, "/compatibility/")
	}
	return false
}

func (r *Registry) change(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBodyBytes))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		refuse(w, http.StatusInternalServerError, r.broken)
		return
	}
	// Every service registers its schemas whenever it starts: what is known
	// already is not written again.
	known := false
	if subject, ok := strings.CutSuffix(req.URL.EscapedPath(), "/versions"); ok && req.Method == http.MethodPost {
		known = r.ask(http.MethodPost, subject, body).Code == http.StatusOK
	}
	answer := r.ask(req.Method, req.URL.RequestURI(), body)
	if answer.Code/100 == 2 && !known {
		c := change{Method: req.Method, URI: req.URL.RequestURI(), ID: schemaID(answer.Body.Bytes())}
		if len(body) > 0 {
			c.Body = body
		}
		if err := r.append(c); err != nil {
			// Memory is ahead of the file now; ids given from here on could
			// change at the next start.
			r.broken = fmt.Errorf("writing the schema journal: %w", err)
			refuse(w, http.StatusInternalServerError, r.broken)
			return
		}
	}
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func (r *Registry) append(c change) error {
	line, err := json.Marshal(c) // compacts the body, so that it is one line
	if err != nil {
		return err
	}
	if _, err := r.journal.Write(append(line, '\n')); err != nil {
		return err
	}
	return r.journal.Sync()
}

// ask puts a request to srfake in memory.
func (r *Registry) ask(method, uri string, body []byte) *httptest.ResponseRecorder {
	req, err := http.NewRequest(method, uri, bytes.NewReader(body))
	w := httptest.NewRecorder()
	if err != nil {
		w.Code = http.StatusBadRequest
		return w
	}
	r.fake.ServeHTTP(w, req)
	return w
}

func schemaID(answer []byte) int {
	var a struct {
		ID int `json:"id"`
	}
	_ = json.Unmarshal(answer, &a) // other answers are lists and have no id
	return a.ID
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error_code": status*100 + 1, "message": err.Error()})
}

// Close closes the journal. Changes after it are refused.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil {
		r.broken = errors.New("the schema registry is closed")
	}
	return r.journal.Close()
}
