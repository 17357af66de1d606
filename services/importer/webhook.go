package importer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/hikyaku/hikyaku/services/importer/internal/announce"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// maxAnnouncement bounds the body of a request, in bytes: what a message in a queue can hold.
const maxAnnouncement = 1 << 20

// serve takes announcements by HTTP until ctx ends.
func (a *announcements) serve(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Announce.Listen)
	if err != nil {
		return fault.Transient(fmt.Errorf("serving on ANNOUNCE_LISTEN %s: %w", a.cfg.Announce.Listen, err))
	}
	a.log.Info("announcements are taken by HTTP", "address", listener.Addr().String())
	server := &http.Server{
		Handler:     a.handler(),
		BaseContext: func(net.Listener) context.Context { return ctx }, // whoever waits is answered at once when it ends
		// Whoever sends slowly must not hold a connection for long.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       75 * time.Second,
		MaxHeaderBytes:    16 << 10,
		// What clients do wrong is in the metrics, not in the log.
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timing.answer)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	})
	err = server.Serve(listener)
	if stop() {
		return fmt.Errorf("serving on ANNOUNCE_LISTEN %s: %w", a.cfg.Announce.Listen, err)
	}
	<-ended
	return nil
}

// handler answers 200 when everything announced is settled, and 503 when it cannot
// be now. Who is told so, or gone before, may come again, or leave it to the
// listing: versitygw waits for 3 s and does not come again.
func (a *announcements) handler() http.Handler {
	inHand := semaphore.NewWeighted(maxInHand)
	answer := func(w http.ResponseWriter, code int, result, text string) {
		a.metrics.announced.WithLabelValues(sourceHTTP, result).Inc()
		http.Error(w, text, code)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		if !a.allowed(r) {
			answer(w, http.StatusUnauthorized, resultRefused, "the token is missing or wrong")
			return
		}
		if !inHand.TryAcquire(1) {
			w.Header().Set("Retry-After", "5")
			answer(w, http.StatusServiceUnavailable, resultGivenBack, "too many announcements wait")
			return
		}
		defer inHand.Release(1)
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnnouncement))
		if err != nil {
			code := http.StatusBadRequest
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				code = http.StatusRequestEntityTooLarge
			}
			answer(w, code, resultRefused, err.Error())
			return
		}
		objects, err := announce.Parse(body)
		if err != nil {
			answer(w, http.StatusBadRequest, resultRefused, err.Error())
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), a.timing.answer)
		defer cancel()
		if err := a.settle(ctx, objects); err != nil {
			w.Header().Set("Retry-After", "5")
			answer(w, http.StatusServiceUnavailable, resultGivenBack, "what is announced cannot be taken now")
			return
		}
		a.metrics.announced.WithLabelValues(sourceHTTP, resultSettled).Inc()
	})
	return mux
}

// allowed compares what was sent with the token, if there is one: MinIO and EventBridge
// send it as bearer, versitygw, which is given nothing but a URL, as password in it.
func (a *announcements) allowed(r *http.Request) bool {
	if a.cfg.Announce.Token == "" {
		return true
	}
	sent, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, password, ok := r.BasicAuth(); ok {
		sent = password
	}
	// Hashed, since the comparison takes its time from the length.
	x, y := sha256.Sum256([]byte(sent)), sha256.Sum256([]byte(a.cfg.Announce.Token))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
