package tracking

import (
	"context"
	_ "embed"
	"html/template"
	"io"
	"net/http"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// page is what the unsubscribe page says.
type page struct {
	Title, Text string
	Ask         bool // with a button that asks again by POST
}

func show(w http.ResponseWriter, status int, p page) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// Nothing is loaded, framed or run; the form goes back to this page only.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	w.WriteHeader(status)
	_ = pageTemplate.Execute(w, p) // a client that is gone has no use for a page
}

// ask shows the page with the button. Scanners follow every link in a mail: a
// GET must not unsubscribe.
func (h *Handler) ask(w http.ResponseWriter, r *http.Request) {
	if _, ok := h.parse(w, token.Unsubscribe, r.PathValue("token")); !ok {
		return
	}
	show(w, http.StatusOK, page{Title: "Unsubscribe?", Text: "You will not get any more e-mails from us.", Ask: true})
}

// unsubscribe takes the button's POST and that of a mail provider (RFC 8058,
// one-click). The signed link says all there is to say, so the body, urlencoded
// or multipart, is not asked: a wish to be left alone is not refused for its form.
func (h *Handler) unsubscribe(w http.ResponseWriter, r *http.Request) {
	t, ok := h.parse(w, token.Unsubscribe, r.PathValue("token"))
	if !ok {
		return
	}
	// Read what little there should be, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.AckTimeout)
	defer cancel()
	// Once per message, however often it is asked for.
	e := h.engagement(r, t, unsubscribed, identity.Hash(unsubscribed, string(t.MessageID[:])))
	patch := &event.ProfilePatch{UserID: t.UserID, OccurredAt: e.OccurredAt, SetAt: e.OccurredAt, SetBy: "unsubscribe:" + t.MessageID.String(),
		Consents: []event.ConsentPatch{{Channel: t.Channel, Consent: unsubscribed}}}
	err := h.Write(ctx, output.Entry{Topic: topic.ProfileUpdates, Key: t.UserID, Record: patch}, output.Entry{Topic: topic.Engagements, Key: t.UserID, Record: e})
	if err != nil {
		// Whoever asked must not believe that it is done.
		h.Log.Warn("an unsubscription could not be stored and was answered with 503", "message_id", t.MessageID.String(), "error", err)
		w.Header().Set("Retry-After", "30")
		show(w, http.StatusServiceUnavailable, page{Title: "Not yet", Text: "We could not store your wish just now. Please try again in a moment.", Ask: true})
		return
	}
	crash.At(crash.UnsubscribeAcknowledged)
	h.counts[unsubscribed].hits.Inc()
	show(w, http.StatusOK, page{Title: "You are unsubscribed", Text: "You will not get any more e-mails from us. Messages already on their way may still arrive."})
}
