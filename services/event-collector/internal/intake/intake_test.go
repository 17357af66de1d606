package intake

import (
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
