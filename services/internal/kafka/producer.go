package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Producer returns a plain producer: idempotent, acknowledged by all in-sync
// replicas, outside transactions. It waits for as long as a broker is away;
// give Produce a context. Further options come last and win. Close it.
func (c *Cluster) Producer(opts ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(join(c.clientOptions("producer"), c.producerOptions(), opts)...)
	if err != nil {
		return nil, fmt.Errorf("building a producer: %w", err)
	}
	return cl, nil
}

// TransactionalProducer returns a producer that owns the transactional id
// <namespace>.<id>. Opening it (the first BeginTransaction, or ProducerID) fences
// whoever had the id before; whoever is fenced gets kerr.InvalidProducerEpoch
// or kerr.ProducerFenced. Close it.
func (c *Cluster) TransactionalProducer(id string) (*kgo.Client, error) {
	cl, err := kgo.NewClient(join(c.clientOptions(id), c.producerOptions(), c.transactionOptions(id))...)
	if err != nil {
		return nil, fmt.Errorf("building the producer of transactional id %s: %w", id, err)
	}
	return cl, nil
}

// WriteOnce opens a transactional id, which fences whoever had it, lets look read what is
// there now and say what to write, and commits that; nothing if that is nothing.
// Between reading and writing nobody else can write under the id. The error is
// look's; or it is Transient: another has opened the id since, or Kafka is away, and whether
// it was committed is not known.
func (c *Cluster) WriteOnce(ctx context.Context, id string, look func(context.Context) ([]*kgo.Record, error)) error {
	client, err := c.TransactionalProducer(id)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fault.Transient(fmt.Errorf("opening %s: %w", id, err))
	}
	records, err := look(ctx)
	if err != nil || len(records) == 0 {
		return err
	}
	err = client.BeginTransaction()
	if err == nil {
		err = client.ProduceSync(ctx, records...).FirstErr()
	}
	// It is not aborted: the client could open the id again to do so, and fence the one
	// who has it now. Whoever opens it next aborts it.
	if err == nil {
		err = client.EndTransaction(ctx, kgo.TryCommit)
	}
	if err != nil {
		return fault.Transient(fmt.Errorf("writing as %s: %w", id, err))
	}
	return nil
}

func join(parts ...[]kgo.Opt) []kgo.Opt {
	var all []kgo.Opt
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
