package definitions

import (
	"context"
	"fmt"

	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Settle ends the transaction of a writer that died in the middle of it. Until
// somebody does, or the broker gives it up after kafka.TransactionTimeout, readers
// of the definitions wait behind it. A writer that is alive is overtaken, as by
// Write. The error is transient.
func Settle(ctx context.Context, c *kafka.Cluster) error {
	client, err := c.TransactionalProducer(transactionalID)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fmt.Errorf("opening the id of those who write definitions: %w", classify(err))
	}
	return nil
}
