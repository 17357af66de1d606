package kafka

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
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

func join(parts ...[]kgo.Opt) []kgo.Opt {
	var all []kgo.Opt
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
