package intake

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

func TestWhatCouldNotBeStoredIsNotPaidFor(t *testing.T) {
	t.Parallel()
	keys, err := ParseKeys("k", 2)
	require.NoError(t, err)
	away := errors.New("away")
	h := New(Options{Keys: keys, AckTimeout: time.Second, Concurrency: 1, Registry: prometheus.NewRegistry(),
		Write: func(context.Context, ...output.Entry) error { return away }})
	h.now = func() time.Time { return received }
	mux := http.NewServeMux()
	h.Register(mux)
	send := func() int {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/track", strings.NewReader(`{"userId":"u","event":"x","writeKey":"k"}`)))
		if w.Code == http.StatusServiceUnavailable {
			require.Equal(t, "5", w.Header().Get("Retry-After"))
		}
		return w.Code
	}
	for range 5 {
		require.Equal(t, http.StatusServiceUnavailable, send())
	}
	away = nil
	require.Equal(t, []int{200, 200, 429}, []int{send(), send(), send()})
}

func TestWhoSaysGzipAndSendsSomethingElseIsToldSo(t *testing.T) {
	t.Parallel()
	keys, err := ParseKeys("k", 0)
	require.NoError(t, err)
	h := New(Options{Keys: keys, AckTimeout: time.Second, Concurrency: 1, Registry: prometheus.NewRegistry()})
	mux := http.NewServeMux()
	h.Register(mux)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write([]byte(`{"userId":"u","event":"x"}`))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	whole := packed.String()
	for body, says := range map[string]string{
		`{"userId":"u","event":"x"}`: "not gzip", whole + "and more of it": "not gzip", whole[:len(whole)-8] + "12345678": "not gzip", whole[:12] + "\xff\xff" + whole[14:]: "not gzip",
		whole[:20]: "to its end",
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/track?writeKey=k", strings.NewReader(body))
		r.Header.Set("Content-Encoding", "gzip")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		require.Equal(t, http.StatusBadRequest, w.Code)
		require.Contains(t, w.Body.String(), says, "%q", body)
	}
}
