package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"time"

	"github.com/spf13/cobra"
)

// testPrefix keeps a test from being taken for the real thing.
const testPrefix = "[Test] "

func (a *app) sendTestCommand() *cobra.Command {
	var to, as string
	cmd := &cobra.Command{
		Use: "send-test CAMPAIGN --to ADDRESS", Short: "Send the mail of one person to your own address",
		Long: `send-test hands the mail that --as would get to the mail server at SMTP_ADDR (SMTP_TLS, SMTP_USERNAME and SMTP_PASSWORD as for
the sender), addressed to --to, with "[Test] " before its subject. Without --as it is the mail of the audience's first person.
It is not part of any run and is counted in none. Its links are real ones of that person: following the unsubscribe link
unsubscribes that person, not you.`,
		Example: "  hikyaku send-test thanks-2011 --to me@example.com\n  hikyaku send-test thanks-2011 --to me@example.com --as 12347", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.sendTest(cmd.Context(), args[0], to, as) },
	}
	cmd.Flags().StringVar(&to, "to", "", "address that gets it")
	cmd.Flags().StringVar(&as, "as", "", "user_id of the person whose mail it is")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func (a *app) sendTest(ctx context.Context, campaign, to, as string) error {
	if parsed, err := mail.ParseAddress(to); err != nil || parsed.Address != to {
		return usage("--to %q is no address of the form name@domain", to)
	}
	c, _, err := a.composition(ctx, campaign)
	if err != nil {
		return err
	}
	if as == "" {
		if as, err = a.firstMember(ctx, c); err != nil {
			return err
		}
	}
	p, err := a.person(ctx, as)
	if errors.Is(err, errNobody) {
		return nobody(as)
	}
	if err != nil {
		return err
	}
	// Each test is a message of its own: mail servers drop a second one with the
	// same Message-ID.
	req, err := a.request(ctx, c, p, "test "+c.at.AsOf.Format(time.RFC3339Nano), to)
	if err != nil {
		return err
	}
	template := *c.template
	template.Subject = testPrefix + template.Subject
	c.template = &template
	rendered, err := a.render(ctx, req, c)
	if err != nil {
		return err
	}
	if err := a.handOver(ctx, rendered.EnvelopeFrom, to, rendered.MIME); err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"campaign_id": campaign, "as": as, "to": to, "message_id": req.MessageID.String(), "subject": rendered.Subject})
	}
	fmt.Fprintf(a.out, "%s took the mail of %s for %s: %s\n", a.cfg.SMTPAddr, printable(as), to, printable(rendered.Subject))
	fmt.Fprintln(a.err, "It belongs to no run and is counted in none. Its links are that person's.")
	return nil
}

func (a *app) firstMember(ctx context.Context, c *composition) (string, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return "", err
	}
	q := membersQuery(c.audience, c.at, 1)
	a.sql(q.SQL, q.Args...)
	rows, err := conn.Query(ctx, q.SQL, q.Args...)
	if err != nil {
		return "", fmt.Errorf("looking for somebody in audience %s: %w", c.audience.ID, err)
	}
	defer rows.Close()
	var user, address string
	if rows.Next() {
		if err := rows.Scan(&user, &address); err != nil {
			return "", fmt.Errorf("looking for somebody in audience %s: %w", c.audience.ID, err)
		}
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("looking for somebody in audience %s: %w", c.audience.ID, err)
	}
	if user == "" {
		return "", usage("nobody is in audience %s now; say with --as whose mail to send", c.audience.ID)
	}
	return user, nil
}

// handOver gives one message to the mail server. The answer to its last line
// decides; without one nobody knows.
func (a *app) handOver(ctx context.Context, from, to string, message []byte) error {
	cfg := a.cfg
	host, _, err := net.SplitHostPort(cfg.SMTPAddr)
	if err != nil {
		return usage("SMTP_ADDR is %q: expected host:port", cfg.SMTPAddr)
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	dialer := net.Dialer{}
	conn, err := dialer.DialContext(ctx, "tcp", cfg.SMTPAddr)
	if err != nil {
		return missing("the mail server at %s does not answer; SMTP_ADDR names another: %w", cfg.SMTPAddr, err)
	}
	defer conn.Close()
	// Whatever ends the context ends the conversation, too.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	client, err := smtp.NewClient(conn, host)
	if err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	if err := client.Hello(cfg.SMTPHello); err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	offered, _ := client.Extension("STARTTLS")
	switch {
	case cfg.SMTPTLS != "off" && cfg.SMTPTLS != "opportunistic" && cfg.SMTPTLS != "required":
		return usage("SMTP_TLS is %q: expected off, opportunistic or required", cfg.SMTPTLS)
	case cfg.SMTPTLS == "required" && !offered:
		return missing("the mail server at %s offers no STARTTLS and SMTP_TLS is required", cfg.SMTPAddr)
	case cfg.SMTPTLS != "off" && offered:
		// Opportunistic hides from listeners only, as in the sender.
		if err := client.StartTLS(&tls.Config{ServerName: host, InsecureSkipVerify: cfg.SMTPTLS != "required"}); err != nil {
			return smtpFailure(cfg.SMTPAddr, err)
		}
	}
	if cfg.SMTPUsername != "" {
		// PlainAuth gives the password to encrypted and local servers only.
		if err := client.Auth(smtp.PlainAuth("", cfg.SMTPUsername, string(cfg.SMTPPassword), host)); err != nil {
			return smtpFailure(cfg.SMTPAddr, err)
		}
	}
	if err := client.Mail(from); err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	if err := client.Rcpt(to); err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	data, err := client.Data()
	if err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	if _, err := data.Write(message); err != nil {
		return smtpFailure(cfg.SMTPAddr, err)
	}
	if err := data.Close(); err != nil {
		var answer *textproto.Error
		if errors.As(err, &answer) {
			return smtpFailure(cfg.SMTPAddr, err)
		}
		return broken("uncertain: the mail server at %s has the whole message and never said whether it took it; look whether it arrives: %w", cfg.SMTPAddr, err)
	}
	_ = client.Quit() // the message is taken
	return nil
}

// smtpFailure tells a server that says no from one that is away.
func smtpFailure(addr string, err error) error {
	var answer *textproto.Error
	if errors.As(err, &answer) {
		return broken("the mail server at %s refused: %w", addr, err)
	}
	return missing("the mail server at %s: %w", addr, err)
}
