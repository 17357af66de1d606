// Package render turns a message request and the exact versions of campaign
// and template it names into the bytes handed to a provider.
//
// It is a function of the request: its only clock is requested_at; boundary,
// Message-ID and link tokens derive from message_id and the key id that the
// request names; header fields and values have one order. The same request
// renders to the same bytes for as long as the renderer's version is the same
// and the key is kept, which is what lets any message ever sent be
// reconstructed without having stored it. The console renders previews with
// it, so that a preview is the message.
package render

import (
	"context"
	"crypto/sha256"
	"fmt"
	"html"
	"net/mail"
	"strings"
	"sync"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

// Version is recorded with every message. It changes whenever the same request
// may render to other bytes.
const Version = "2"

// Reasons of a rejection, as in outcomes.
const (
	TemplateError  = "template_error"
	InvalidAddress = "invalid_address"
	TooLarge       = "too_large"
)

// Rejection says that this one message cannot be rendered; others can.
type Rejection struct {
	Reason string // a short word, counted
	Detail string // in words; holds no values of the person
}

func (r *Rejection) Error() string { return r.Reason + ": " + r.Detail }

// Renderer renders messages. It is safe for concurrent use.
type Renderer struct {
	trackingURL string // without a slash at its end
	escapedURL  string // the same as an attribute of HTML
	keys        *token.Keys
	engine      *liquid.Engine
	maxBytes    int

	mu       sync.RWMutex
	compiled map[versionOf]*compiled
}

// versionOf names a version of a template.
type versionOf struct {
	id      string
	version int64
}

type compiled struct {
	subject, html, text *liquid.Template // html and text may be nil
}

// New returns a renderer whose links lead to trackingURL, signed with keys. A
// message larger than maxBytes is rejected.
func New(trackingURL string, keys *token.Keys, maxBytes int) *Renderer {
	trackingURL = strings.TrimRight(trackingURL, "/")
	return &Renderer{trackingURL: trackingURL, escapedURL: html.EscapeString(trackingURL), keys: keys,
		engine: liquid.New(liquid.Options{}), maxBytes: maxBytes, compiled: map[versionOf]*compiled{}}
}

// Rendered is a finished e-mail.
type Rendered struct {
	Subject          string
	HTML, Text       []byte // HTML with tracked links and pixel
	EnvelopeFrom, To string
	MIME             []byte
	Hash             [sha256.Size]byte // of MIME

	plain     []byte // HTML before links are rewritten
	variables map[string]any
}

// Email renders a request. The error is a *Rejection, or one that concerns every
// message of the template and not this person.
func (r *Renderer) Email(ctx context.Context, req *event.MessageRequest, campaign *definition.Campaign, template *definition.Template) (*Rendered, error) {
	m := new(Rendered)
	if err := r.EmailInto(ctx, m, req, campaign, template); err != nil {
		return nil, err
	}
	return m, nil
}

// EmailInto is Email for many messages, one after another: it writes into the
// memory of m, and what m held is gone, also after an error.
func (r *Renderer) EmailInto(ctx context.Context, m *Rendered, req *event.MessageRequest, campaign *definition.Campaign, template *definition.Template) error {
	t, err := r.template(template, req.TemplateVersion)
	if err != nil {
		return err
	}
	to, err := mail.ParseAddress(req.Address)
	if err != nil || to.Address != req.Address || strings.ContainsAny(req.Address, "\r\n") {
		return &Rejection{InvalidAddress, "the address is not of the form name@domain"}
	}
	m.EnvelopeFrom, m.To = campaign.From.Address, req.Address
	links := linker{r: r, req: req}
	path, err := links.append(nil, token.Unsubscribe, "")
	if err != nil {
		return err
	}
	unsubscribe := r.trackingURL + string(path)
	if m.variables == nil {
		m.variables = map[string]any{}
	}
	clear(m.variables)
	setVariables(m.variables, req, unsubscribe)
	var subject []byte
	for _, part := range []struct {
		name string
		t    *liquid.Template
		to   *[]byte
	}{{"subject", t.subject, &subject}, {"html", t.html, &m.plain}, {"text", t.text, &m.Text}} {
		*part.to = (*part.to)[:0]
		if part.t == nil {
			continue
		}
		if *part.to, err = part.t.Append(ctx, *part.to, m.variables); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &Rejection{TemplateError, part.name + ": " + err.Error()}
		}
	}
	// A subject is one line, whatever the template or a value holds.
	m.Subject = strings.Join(strings.Fields(string(subject)), " ")
	m.HTML = m.HTML[:0]
	if t.html != nil {
		if m.HTML, err = rewriteLinks(m.HTML, m.plain, func(b []byte, target string) ([]byte, error) {
			if strings.HasPrefix(target, r.trackingURL+"/u/") {
				return b, nil // unsubscribing is not a click
			}
			return links.append(append(b, r.escapedURL...), token.Click, target)
		}); err != nil {
			return err
		}
		m.plain = append(m.plain[:0], r.escapedURL...)
		if m.plain, err = links.append(m.plain, token.Open, ""); err != nil {
			return err
		}
		m.HTML = appendPixel(m.HTML, m.plain)
	}
	if m.MIME, err = appendMIME(m.MIME[:0], req, campaign, m, unsubscribe); err != nil {
		return fmt.Errorf("writing message %s: %w", req.MessageID, err)
	}
	if len(m.MIME) > r.maxBytes {
		return &Rejection{TooLarge, fmt.Sprintf("the message has %d bytes, at most %d are allowed", len(m.MIME), r.maxBytes)}
	}
	m.Hash = sha256.Sum256(m.MIME)
	return nil
}

// template compiles each version once. A template that was applied was parsed
// then; if it does not parse now, the engine has changed: that is no person's
// fault and stops the line.
func (r *Renderer) template(t *definition.Template, version int64) (*compiled, error) {
	key := versionOf{t.ID, version}
	r.mu.RLock()
	c := r.compiled[key]
	r.mu.RUnlock()
	if c != nil && version > 0 {
		return c, nil
	}
	c = &compiled{}
	for _, part := range []struct {
		name, src string
		mode      liquid.Mode
		to        **liquid.Template
	}{{"subject", t.Subject, liquid.Text, &c.subject}, {"html", t.HTML, liquid.HTML, &c.html}, {"text", t.Text, liquid.Text, &c.text}} {
		if part.src == "" {
			continue
		}
		var err error
		if *part.to, err = r.engine.Parse(part.src, part.mode, t.Strict); err != nil {
			return nil, fmt.Errorf("parsing the %s of template %s@%d: %w", part.name, t.ID, version, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.compiled[key] = c
	return c, nil
}

// setVariables sets what a template can read: the person's attributes by name,
// segments by id, and what Hikyaku itself knows. Ours win over attributes of
// the same name.
func setVariables(vars map[string]any, req *event.MessageRequest, unsubscribe string) {
	for i := range req.Attributes {
		vars[req.Attributes[i].Name] = req.Attributes[i].Value.Any()
	}
	if len(req.Segments) > 0 {
		segments := make(map[string]any, len(req.Segments))
		for i := range req.Segments {
			values := make(map[string]any, len(req.Segments[i].Attributes))
			for _, a := range req.Segments[i].Attributes {
				values[a.Name] = a.Value.Any()
			}
			segments[req.Segments[i].SegmentID] = values
		}
		vars["segment"] = segments
	}
	vars["user_id"], vars["address"], vars["campaign_id"] = req.UserID, req.Address, req.CampaignID
	vars["requested_at"] = req.RequestedAt.UTC().Format(time.RFC3339)
	vars["unsubscribe_url"] = unsubscribe
}

// linker makes the links of one message.
type linker struct {
	r   *Renderer
	req *event.MessageRequest
}

// append appends what follows the tracking URL in a link. It holds no character
// that is written otherwise in HTML.
func (l linker) append(b []byte, p token.Purpose, target string) ([]byte, error) {
	b, err := l.r.keys.Append(append(b, '/', byte(p), '/'), l.req.KeyID, &token.Token{Purpose: p, MessageID: l.req.MessageID, RunID: l.req.RunID,
		Channel: l.req.Channel, CampaignID: l.req.CampaignID, UserID: l.req.UserID, Target: target,
		RequestedAt: l.req.RequestedAt})
	if err != nil {
		return b, fmt.Errorf("signing a link of message %s: %w", l.req.MessageID, err)
	}
	return b, nil
}
