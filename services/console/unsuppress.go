package console

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

func (a *app) unsuppressCommand() *cobra.Command {
	var channel, address string
	cmd := &cobra.Command{
		Use: "unsuppress USER_ID", Short: "Let an address be written to again that bounced or complained",
		Long: `An address that bounced for good, or whose owner complained of spam, is suppressed: campaigns exclude the person with the reason
suppressed until the person has another address, or until this lifts it. What is reported later than now suppresses it again. The provider may keep
a list of its own (SES does): lift it there, too. Whoever complained is unsubscribed as well, which this does not change.`,
		Example: "  hikyaku unsuppress 12347\n  hikyaku unsuppress 12347 --address old@example.com", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.unsuppress(cmd.Context(), args[0], channel, address)
		},
	}
	cmd.Flags().StringVar(&channel, "channel", definition.ChannelEmail, "the channel of the address")
	cmd.Flags().StringVar(&address, "address", "", "the address, if not the one that the person has now; written without asking whether it is suppressed")
	return cmd
}

func (a *app) unsuppress(ctx context.Context, userID, channel, address string) error {
	if channel != definition.ChannelEmail {
		return usage("--channel %s: there is no such channel; %s is one", printable(channel), definition.ChannelEmail)
	}
	reason, consent := "", ""
	if address == "" {
		p, err := a.person(ctx, userID)
		if errors.Is(err, errNobody) {
			return nobody(userID)
		}
		if err != nil {
			return err
		}
		if reason, consent, address = p.suppressions[channel], p.consents[channel], p.addresses[channel]; reason == "" {
			return usage("the %s address of %s is not suppressed, as far as ClickHouse has heard; --address writes it all the same", channel, userID)
		}
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	at := now()
	if err := say(ctx, c, topic.ProfileUpdates, userID, &event.ProfilePatch{UserID: userID, OccurredAt: at, SetAt: at, SetBy: "operator:" + author(),
		Suppressions: []event.SuppressionPatch{{Channel: channel, Address: address}}}); err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"user_id": userID, "channel": channel, "address": address, "was": reason})
	}
	fmt.Fprintf(a.out, "%s may be written to again by %s\n", printable(address), channel)
	if consent == "unsubscribed" {
		fmt.Fprintf(a.out, "but %s is unsubscribed from %s, and stays so\n", printable(userID), channel)
	}
	return nil
}
