package tracking

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

func TestAddressesAreCutToNetworks(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"203.0.113.77:4711": "203.0.113.0/24", "[2001:db8:1:2:3:4:5:6]:4711": "2001:db8:1::/48", "[::ffff:203.0.113.77]:1": "203.0.113.0/24",
		"[fe80::1%eth0]:1": "fe80::/48", "": "", "@": "", "203.0.113.77": "",
	} {
		require.Equal(t, want, network(remote), remote)
	}
}

func TestWhatAnybodyMaySendIsCut(t *testing.T) {
	t.Parallel()
	require.Equal(t, strings.Repeat("x", maxHeaderBytes), cut(strings.Repeat("x", maxHeaderBytes+1)))
	require.Equal(t, strings.Repeat("x", maxHeaderBytes-1), cut(strings.Repeat("x", maxHeaderBytes-1)+"飛"), "not inside a character")
	require.Equal(t, "ab", cut("a\xffb"))
}

// FuzzLinks: only what was signed, for what it was signed for, is recorded or
// leads anywhere.
func FuzzLinks(f *testing.F) {
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte("a secret for these tests")})
	require.NoError(f, err)
	const target = "https://shop.example/"
	signed := map[string]bool{}
	for _, p := range []token.Purpose{token.Click, token.Open, token.Unsubscribe} {
		tok := &token.Token{Purpose: p, MessageID: identity.Hash("m"), Channel: "email", UserID: "u"}
		if p == token.Click {
			tok.Target = target
		}
		text, err := keys.Append(nil, "1", tok)
		require.NoError(f, err)
		path := "/" + string(rune(p)) + "/" + string(text)
		signed[path] = true
		f.Add(path, true)
		f.Add(path, false)
		f.Add(path[:len(path)-1], false)
		f.Add("/o/"+string(text), true)
	}
	f.Add("/c/https:%2f%2fevil.example", false)
	recorded := 0
	h := New(Options{Keys: keys, HitTimeout: time.Second, AckTimeout: time.Second, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Registry: prometheus.NewRegistry(),
		Write: func(context.Context, ...output.Entry) error { recorded++; return nil }})
	mux := http.NewServeMux()
	h.Register(mux)
	f.Fuzz(func(t *testing.T, path string, post bool) {
		method := http.MethodGet
		if post {
			method = http.MethodPost
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://collector"+path, strings.NewReader("x"))
		if err != nil || !strings.HasPrefix(r.URL.Path, "/") {
			return
		}
		r.RemoteAddr = "203.0.113.77:1"
		recorded = 0
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		known := signed[strings.TrimSuffix(r.URL.Path, ".gif")]
		if to := w.Header().Get("Location"); w.Code == http.StatusFound && to != target {
			t.Fatalf("%s leads to %q", path, to)
		}
		if !known && (recorded > 0 || w.Code == http.StatusFound || w.Code == http.StatusOK) {
			t.Fatalf("%s %s was not signed: %d, %d recorded", method, path, w.Code, recorded)
		}
		if known && strings.HasPrefix(r.URL.Path, "/u/") && !post && recorded > 0 {
			t.Fatal("a GET has unsubscribed")
		}
	})
}
