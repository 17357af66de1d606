package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

// maxMailBytes is the renderer's limit: what fits into a record beside the
// record's other fields.
const maxMailBytes = topic.MaxRecordBytes - 8<<10

// standIn is the address of a preview for somebody without one.
const standIn = "nobody@example.invalid"

func (a *app) previewCommand() *cobra.Command {
	var html, text, source bool
	cmd := &cobra.Command{
		Use: "preview CAMPAIGN USER_ID", Short: "The mail that one person would get now",
		Long: `preview renders with the renderer's own code and what is known of the person now, and says on stderr whether the person is
in the audience and may be messaged. Without a flag it shows the head and the text. Nothing is sent and nothing is recorded.

The links are signed with TRACKING_SECRET, and they are real ones: following the unsubscribe link unsubscribes the person.
Exit code 1 if the message would be rejected.`,
		Example: "  hikyaku preview thanks-2011 12347\n  hikyaku preview thanks-2011 12347 --html > mail.html", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			shape := ""
			for name, set := range map[string]bool{"html": html, "text": text, "source": source} {
				switch {
				case set && (shape != "" || a.asJSON):
					return usage("choose one of --html, --text, --source and --json")
				case set:
					shape = name
				}
			}
			return a.preview(cmd.Context(), args[0], args[1], shape)
		},
	}
	cmd.Flags().BoolVar(&html, "html", false, "only the HTML part, links and pixel included")
	cmd.Flags().BoolVar(&text, "text", false, "only the text part")
	cmd.Flags().BoolVar(&source, "source", false, "the message as it is handed to the mail server")
	return cmd
}

// composition is what a mail is made of.
type composition struct {
	campaign        *definition.Campaign
	campaignVersion int64
	template        *definition.Template
	templateVersion int64
	audience        *definition.Audience
	at              audience.Moment
}

// composition looks up what the campaign names, as a run that starts now would.
func (a *app) composition(ctx context.Context, campaign string) (*composition, *definitions.Store, error) {
	store, err := a.definitions(ctx)
	if err != nil {
		return nil, nil, err
	}
	var c composition
	var v definitions.Version
	if c.campaign, v, err = inForce[*definition.Campaign](store, definition.KindCampaign, campaign); err != nil {
		return nil, nil, err
	}
	c.campaignVersion = v.Number
	if c.template, v, err = inForce[*definition.Template](store, definition.KindTemplate, c.campaign.Template); err != nil {
		return nil, nil, err
	}
	c.templateVersion = v.Number
	c.audience, c.at, err = audienceNow(store, c.campaign.Audience)
	return &c, store, err
}

// request is the message request that the resolver would write for the person
// now. Its run is the zero id, which is no run's, so that nothing that comes of
// it is counted in one.
func (a *app) request(ctx context.Context, c *composition, p *person, occurrence, address string) (*event.MessageRequest, error) {
	cfg, err := a.config(ctx)
	if err != nil {
		return nil, err
	}
	members, err := a.memberships(ctx, p.userID, c.at.Segments)
	if err != nil {
		return nil, err
	}
	req := &event.MessageRequest{MessageID: identity.Message(cfg.Kafka.Namespace, c.campaign.ID, occurrence, p.userID, ""),
		CampaignID: c.campaign.ID, CampaignVersion: c.campaignVersion, TemplateID: c.template.ID, TemplateVersion: c.templateVersion,
		Lane: "bulk", UserID: p.userID, Channel: c.template.Channel, Address: address, Policy: c.campaign.Policy,
		RequestedAt: c.at.AsOf, ExpiresAt: c.at.AsOf.Add(c.campaign.ExpiresAfter.Duration()),
		Locale: p.locale, TimeZone: p.timeZone, KeyID: cfg.Tracking.KeyID, Attributes: p.attributes}
	for i := range c.at.Segments {
		pin := &c.at.Segments[i]
		at := -1
		if _, member := audience.InForce(pin, func(id identity.ID) bool {
			at = slices.IndexFunc(members, func(m event.Membership) bool { return m.SegmentID == pin.SegmentID && m.ImportID == id })
			return at >= 0
		}); member {
			req.Segments = append(req.Segments, event.SegmentValues{SegmentID: pin.SegmentID, Attributes: members[at].Attributes})
		}
	}
	return req, nil
}

// render makes the mail, exactly as the renderer does.
func (a *app) render(ctx context.Context, req *event.MessageRequest, c *composition) (*render.Rendered, error) {
	keys, err := render.Config(a.cfg.Tracking).Keys()
	if err != nil {
		return nil, usage("TRACKING_SECRET: %w", err)
	}
	mail, err := render.New(a.cfg.Tracking.URL, keys, maxMailBytes).Email(ctx, req, c.campaign, c.template)
	var rejection *render.Rejection
	if errors.As(err, &rejection) {
		return nil, broken("the message to %s would be rejected: %w", req.UserID, rejection)
	}
	return mail, err
}

// nobody says that there is no such person.
func nobody(userID string) error {
	return usage("nobody with the user_id %s is known: there is no profile (of people who were just imported it may be on its way)", userID)
}

type previewed struct {
	CampaignID string `json:"campaign_id"`
	UserID     string `json:"user_id"`
	MessageID  string `json:"message_id"`
	InAudience bool   `json:"in_audience"`
	Admitted   bool   `json:"admitted"`
	Reason     string `json:"reason"` // why not admitted
	From       string `json:"from"`
	To         string `json:"to"`
	Subject    string `json:"subject"`
	Text       string `json:"text"`
	HTML       string `json:"html"`
	Source     string `json:"source"`
}

func (a *app) preview(ctx context.Context, campaign, userID, shape string) error {
	c, _, err := a.composition(ctx, campaign)
	if err != nil {
		return err
	}
	p, err := a.person(ctx, userID)
	if errors.Is(err, errNobody) {
		return nobody(userID)
	}
	if err != nil {
		return err
	}
	in, err := a.isMember(ctx, userID, c.audience.Filter, c.at)
	if err != nil {
		return err
	}
	reason := p.admission(c.template.Channel, c.campaign)
	switch {
	case !in:
		fmt.Fprintf(a.err, "%s is not in audience %s now; hikyaku explain %s %s says why\n", userID, c.audience.ID, campaign, userID)
	case reason == "":
		fmt.Fprintf(a.err, "%s is in audience %s and would get it\n", userID, c.audience.ID)
	default:
		fmt.Fprintf(a.err, "%s is in audience %s\n", userID, c.audience.ID)
	}
	if reason != "" {
		fmt.Fprintf(a.err, "%s would be excluded: %s\n", userID, inWords(reason))
	}
	address := p.addresses[c.template.Channel]
	if address == "" {
		address = standIn
	}
	req, err := a.request(ctx, c, p, "preview", address)
	if err != nil {
		return err
	}
	mail, err := a.render(ctx, req, c)
	if err != nil {
		return err
	}
	from := c.campaign.From.Address
	if c.campaign.From.Name != "" {
		from = fmt.Sprintf("%s <%s>", c.campaign.From.Name, from)
	}
	switch {
	case a.asJSON:
		return a.printJSON(previewed{campaign, userID, req.MessageID.String(), in, reason == "", reason, from, mail.To, mail.Subject, string(mail.Text), string(mail.HTML), string(mail.MIME)})
	case shape == "html":
		_, err = fmt.Fprintf(a.out, "%s\n", mail.HTML)
	case shape == "text":
		_, err = fmt.Fprintf(a.out, "%s\n", mail.Text)
	case shape == "source":
		_, err = a.out.Write(mail.MIME)
	default:
		body := mail.Text
		if len(body) == 0 {
			body = mail.HTML
		}
		_, err = fmt.Fprintf(a.out, "From:    %s\nTo:      %s\nSubject: %s\n\n%s\n", printable(from), printable(mail.To), printable(mail.Subject), body)
	}
	return err
}

// now is the time to the microsecond, as records carry it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
