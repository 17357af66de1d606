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
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
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
const Version = "1"

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
	keys        *token.Keys
	engine      *liquid.Engine
	maxBytes    int

	mu       sync.RWMutex
	compiled map[string]*compiled // by template id and version
}

type compiled struct {
	subject, html, text *liquid.Template // html and text may be nil
}

// New returns a renderer whose links lead to trackingURL, signed with keys. A
// message larger than maxBytes is rejected.
func New(trackingURL string, keys *token.Keys, maxBytes int) *Renderer {
	return &Renderer{trackingURL: strings.TrimRight(trackingURL, "/"), keys: keys, engine: liquid.New(liquid.Options{}), maxBytes: maxBytes, compiled: map[string]*compiled{}}
}

// Rendered is a finished e-mail.
type Rendered struct {
	Subject, HTML, Text string // HTML with tracked links and pixel
	EnvelopeFrom, To    string
	MIME                []byte
	Hash                [sha256.Size]byte // of MIME
}

// Email renders a request. The error is a *Rejection, or one that concerns
// every message of the template and not this person.
func (r *Renderer) Email(ctx context.Context, req *event.MessageRequest, campaign *definition.Campaign, template *definition.Template) (*Rendered, error) {
	t, err := r.template(template, req.TemplateVersion)
	if err != nil {
		return nil, err
	}
	to, err := mail.ParseAddress(req.Address)
	if err != nil || to.Address != req.Address || strings.ContainsAny(req.Address, "\r\n") {
		return nil, &Rejection{InvalidAddress, "the address is not of the form name@domain"}
	}
	links := linker{r: r, req: req}
	unsubscribe, err := links.url(token.Unsubscribe, "")
	if err != nil {
		return nil, err
	}
	vars := variables(req, unsubscribe)
	out := &Rendered{EnvelopeFrom: campaign.From.Address, To: req.Address}
	for _, part := range []struct {
		name string
		t    *liquid.Template
		to   *string
	}{{"subject", t.subject, &out.Subject}, {"html", t.html, &out.HTML}, {"text", t.text, &out.Text}} {
		if part.t == nil {
			continue
		}
		if *part.to, err = part.t.Render(ctx, vars); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, &Rejection{TemplateError, part.name + ": " + err.Error()}
		}
	}
	// A subject is one line, whatever the template or a value holds.
	out.Subject = strings.Join(strings.Fields(out.Subject), " ")
	if t.html != nil {
		b, err := rewriteLinks(make([]byte, 0, len(out.HTML)+len(out.HTML)/2), out.HTML, func(target string) (string, error) {
			if strings.HasPrefix(target, r.trackingURL+"/u/") {
				return target, nil // unsubscribing is not a click
			}
			return links.url(token.Click, target)
		})
		if err != nil {
			return nil, err
		}
		open, err := links.url(token.Open, "")
		if err != nil {
			return nil, err
		}
		out.HTML = string(addPixel(b, open))
	}
	if out.MIME, err = mime(req, campaign, out, unsubscribe); err != nil {
		return nil, fmt.Errorf("writing message %s: %w", req.MessageID, err)
	}
	if len(out.MIME) > r.maxBytes {
		return nil, &Rejection{TooLarge, fmt.Sprintf("the message has %d bytes, at most %d are allowed", len(out.MIME), r.maxBytes)}
	}
	out.Hash = sha256.Sum256(out.MIME)
	return out, nil
}

// template compiles each version once. A template that was applied was parsed
// then; if it does not parse now, the engine has changed: that is no person's
// fault and stops the line.
func (r *Renderer) template(t *definition.Template, version int64) (*compiled, error) {
	key := fmt.Sprintf("%s@%d", t.ID, version)
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
			return nil, fmt.Errorf("parsing the %s of template %s: %w", part.name, key, err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.compiled[key] = c
	return c, nil
}

// variables are what a template can read: the person's attributes by name,
// segments by id, and what Hikyaku itself knows. Ours win over attributes of
// the same name.
func variables(req *event.MessageRequest, unsubscribe string) map[string]any {
	vars := make(map[string]any, len(req.Attributes)+8)
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
	return vars
}

// linker makes the links of one message.
type linker struct {
	r   *Renderer
	req *event.MessageRequest
}

func (l linker) url(p token.Purpose, target string) (string, error) {
	var b bytes.Buffer
	b.WriteString(l.r.trackingURL)
	b.WriteByte('/')
	b.WriteByte(byte(p))
	b.WriteByte('/')
	text, err := l.r.keys.Append(b.AvailableBuffer(), l.req.KeyID, &token.Token{Purpose: p, MessageID: l.req.MessageID, RunID: l.req.RunID,
		Channel: l.req.Channel, CampaignID: l.req.CampaignID, UserID: l.req.UserID, Target: target})
	if err != nil {
		return "", fmt.Errorf("signing a link of message %s: %w", l.req.MessageID, err)
	}
	b.Write(text)
	return b.String(), nil
}
