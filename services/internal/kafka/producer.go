package kafka

import (
	"context"
	"fmt"
	"slices"
	"time"

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
	if err := Transact(ctx, client, records...); err != nil {
		return fault.Transient(fmt.Errorf("writing as %s: %w", id, err))
	}
	return nil
}

// Transact commits records in a transaction of their own. After an error it is not aborted: the
// client could open the id again to do so, and fence the one who has it now. Whoever
// opens it next aborts it.
func Transact(ctx context.Context, cl *kgo.Client, records ...*kgo.Record) error {
	err := cl.BeginTransaction()
	if err == nil {
		err = ProduceSync(ctx, cl, records...)
	}
	if err == nil {
		err = cl.EndTransaction(ctx, kgo.TryCommit)
	}
	return err
}

// ProduceSync produces records in a transaction and returns when all are acknowledged, or
// the first error. Whoever ends a transaction has to have produced by it: see known.
// When ctx ends first, it closes the client: by itself that waits, for as long as a broker
// is away, to learn what became of a batch that it has sent.
func ProduceSync(ctx context.Context, cl *kgo.Client, records ...*kgo.Record) error {
	defer context.AfterFunc(ctx, cl.Close)()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	known(ctx, cl, records)
	return nil
}

// known waits until the client knows the partitions that it has produced to. When it learns of
// a topic it first hands on the records that have waited for that, and then stores what it has
// learnt (franz-go 1.22.2, storePartitionsUpdate). Acknowledged in between, they would be of
// no partition that EndTransaction looks at: it would send nothing and return nil, and the
// broker would abort what was said to be committed.
func known(ctx context.Context, cl *kgo.Client, records []*kgo.Record) {
	var topics []string // few
	for _, r := range records {
		if slices.Contains(topics, r.Topic) {
			continue
		}
		topics = append(topics, r.Topic)
		for ctx.Err() == nil {
			if leader, _, err := cl.PartitionLeader(r.Topic, r.Partition); leader >= 0 || err != nil {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
}

func join(parts ...[]kgo.Opt) []kgo.Opt {
	var all []kgo.Opt
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
