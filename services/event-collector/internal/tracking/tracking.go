// Package tracking answers the links that mails carry: clicks, opens and
// unsubscribes. Whatever is recorded was signed by us; a link that was tampered
// with is refused, and nothing is recorded. Hits are raw: whether a person or a
// machine made them is judged later.
package tracking

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Options are what the handler needs.
type Options struct {
	Keys *token.Keys
	// Write returns when all entries are acknowledged.
	Write func(context.Context, ...output.Entry) error
	// HitTimeout is how long a person waits for their page while Kafka has not
	// acknowledged the hit.
	HitTimeout time.Duration
	// AckTimeout is how long an unsubscription waits for Kafka.
	AckTimeout time.Duration
	Log        *slog.Logger
	Registry   prometheus.Registerer
}

// Handler serves /c/, /o/ and /u/.
type Handler struct {
	Options
	now    func() time.Time
	hits   *prometheus.CounterVec
	lost   *prometheus.CounterVec
	forged prometheus.Counter
}

// The kinds of engagements.
const (
	opened       = "opened"
	clicked      = "clicked"
	unsubscribed = "unsubscribed"
)

// New returns a handler whose metrics are registered.
func New(o Options) *Handler {
	h := &Handler{Options: o, now: time.Now,
		hits:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tracking_hits_total", Help: "Hits acknowledged by Kafka, by kind."}, []string{"kind"}),
		lost:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tracking_hits_lost_total", Help: "Opens and clicks that were answered although Kafka had not acknowledged them; some may still arrive."}, []string{"kind"}),
		forged: prometheus.NewCounter(prometheus.CounterOpts{Name: "tracking_invalid_total", Help: "Links that were not signed by us, or not for this."}),
	}
	o.Registry.MustRegister(h.hits, h.lost, h.forged)
	return h
}

// Register adds the routes. GET stands for HEAD too.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /c/{token}", h.click)
	mux.HandleFunc("GET /o/{token}", h.open)
	mux.HandleFunc("GET /u/{token}", h.ask)
	mux.HandleFunc("POST /u/{token}", h.unsubscribe)
}

// parse returns the request's token, or answers 400.
func (h *Handler) parse(w http.ResponseWriter, r *http.Request, purpose token.Purpose, text string) (*token.Token, bool) {
	// A page about one person's mail is nobody else's to keep, find or learn of.
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("X-Robots-Tag", "noindex, nofollow")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	t, err := h.Keys.Parse(purpose, text)
	if err != nil {
		h.forged.Inc()
		http.Error(w, "This link is not valid.", http.StatusBadRequest)
		return nil, false
	}
	return t, true
}

func (h *Handler) click(w http.ResponseWriter, r *http.Request) {
	t, ok := h.parse(w, r, token.Click, r.PathValue("token"))
	if !ok {
		return
	}
	// Signed by us, so it is what the template said; but only web pages were ever
	// tracked, and nothing else must become a link through us.
	if scheme, _, ok := strings.Cut(t.Target, "://"); !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		h.forged.Inc()
		http.Error(w, "This link is not valid.", http.StatusBadRequest)
		return
	}
	h.hit(r, t, clicked)
	http.Redirect(w, r, t.Target, http.StatusFound)
}

// pixel is the smallest GIF there is: 1×1, transparent.
const pixel = "GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"

func (h *Handler) open(w http.ResponseWriter, r *http.Request) {
	t, ok := h.parse(w, r, token.Open, strings.TrimSuffix(r.PathValue("token"), ".gif"))
	if !ok {
		return
	}
	h.hit(r, t, opened)
	w.Header().Set("Content-Type", "image/gif")
	w.Header().Set("Content-Length", "43")
	_, _ = w.Write([]byte(pixel))
}

// hit records an open or a click. The person gets what they came for whether or
// not Kafka answers.
func (h *Handler) hit(r *http.Request, t *token.Token, kind string) {
	if r.Method != http.MethodGet {
		return // HEAD is somebody looking before anything is opened
	}
	// A browser that goes on at once cancels the request: it was a click all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.HitTimeout)
	defer cancel()
	var id identity.ID
	rand.Read(id[:]) // never fails; each hit is one of its own
	e := h.engagement(r, t, kind, id)
	if err := h.Write(ctx, output.Entry{Topic: topic.Engagements, Key: t.UserID, Record: e}); err != nil {
		h.lost.WithLabelValues(kind).Inc()
		return
	}
	crash.At(crash.TrackingAcknowledged)
	h.hits.WithLabelValues(kind).Inc()
}

func (h *Handler) engagement(r *http.Request, t *token.Token, kind string, id identity.ID) *event.Engagement {
	return &event.Engagement{EngagementID: id, MessageID: t.MessageID, RunID: t.RunID, CampaignID: t.CampaignID, UserID: t.UserID, Channel: t.Channel,
		Kind: kind, URL: t.Target, OccurredAt: h.now().UTC().Truncate(time.Microsecond), Method: r.Method,
		UserAgent: cut(r.UserAgent()), Network: network(r.RemoteAddr), Referer: cut(r.Referer())}
}

// maxHeaderBytes is what is kept of a header that anybody may fill.
const maxHeaderBytes = 512

func cut(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxHeaderBytes)], "")
}

// network cuts a client's address to what is not one household's: /24, or /48.
func network(remoteAddr string) string {
	at, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return ""
	}
	addr, bits := at.Addr().Unmap(), 24
	if addr.Is6() {
		addr, bits = addr.WithZone(""), 48
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}
