package definitions

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// transactionalID, after the namespace, is shared by all who write
// definitions: that is what serialises them.
const transactionalID = "definitions"

// Change asks for a new version of a definition.
type Change struct {
	Kind string
	ID   string
	Body []byte // canonical JSON
	// ReplacesVersion is the version in force that the writer has seen, 0 if
	// there was none.
	ReplacesVersion int64
}

// Conflict says that the version in force is not the one the writer saw.
type Conflict struct {
	Kind     string
	ID       string
	Replaces int64 // what the writer saw
	InForce  int64 // 0 if there is none
}

// Error tells what to look at again.
func (c *Conflict) Error() string {
	return fmt.Sprintf("%s: version %d is in force, not %d; look again", headKey(c.Kind, c.ID), c.InForce, c.Replaces)
}

// errOvertaken says that another writer came while this one was at it. Nothing
// of this one's is in force.
var errOvertaken = errors.New("overtaken by another writer of definitions")

// Write puts the changes in force, all of them or none, and returns the
// resulting version of each, in the order of the changes. A change whose body
// is that of the version in force writes nothing and returns that version, so
// that writing twice is writing once. by says who (applied_by).
//
// Of writers at the same moment the last to begin goes through; the others begin
// again, each after a while of its own, longer every time: without that, many
// would overtake each other for ever.
//
// The error is a *Conflict (wrapped), or transient: Kafka's, or that ctx ended before
// this writer came through. Whether the changes were committed is then not known,
// and writing again finds out.
func Write(ctx context.Context, c *kafka.Cluster, by string, changes []Change) ([]Version, error) {
	for tries := 1; ; tries++ {
		began := time.Now()
		versions, err := write(ctx, c, by, changes)
		if err == nil {
			return versions, nil
		}
		if !errors.Is(err, errOvertaken) || !pause(ctx, time.Since(began), tries) {
			return nil, fmt.Errorf("writing %d definitions: %w", len(changes), err)
		}
	}
}

// pause waits between nothing and so many times what a write takes here and now
// that one of as many writers finds nobody at it. It reports false if ctx ended.
func pause(ctx context.Context, took time.Duration, tries int) bool {
	timer := time.NewTimer(rand.N(took<<min(tries, 6) + 1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func write(ctx context.Context, c *kafka.Cluster, by string, changes []Change) ([]Version, error) {
	client, err := c.TransactionalProducer(transactionalID)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	// Open first: this fences whoever wrote before, so that nothing is added
	// between what is read below and what is written after it. Kafka itself
	// has no compare-and-set.
	if _, _, err := client.ProducerID(ctx); err != nil {
		return nil, classify(err)
	}
	crash.At(crash.DefinitionsOpened)
	known, err := readAll(ctx, c)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	out := make([]Version, 0, len(changes))
	var records []*kgo.Record
	for _, ch := range changes {
		head, inForce := known.head(ch.Kind, ch.ID)
		if inForce && bytes.Equal(head.Body, ch.Body) {
			out = append(out, head)
			continue
		}
		if head.Number != ch.ReplacesVersion {
			return nil, &Conflict{Kind: ch.Kind, ID: ch.ID, Replaces: ch.ReplacesVersion, InForce: head.Number}
		}
		v := Version{Kind: ch.Kind, ID: ch.ID, Number: known.next(ch.Kind, ch.ID), Body: ch.Body, AppliedAt: now, AppliedBy: by}
		d := event.Definition{Kind: v.Kind, ID: v.ID, Version: v.Number, Body: string(v.Body), AppliedAt: now, AppliedBy: by}
		version, err := c.Record(topic.Definitions, versionKey(v.Kind, v.ID, v.Number), &d)
		if err != nil {
			return nil, err
		}
		d.Body = ""
		// The version comes before the head that names it, for readers in order.
		head2, err := c.Record(topic.Definitions, headKey(v.Kind, v.ID), &d)
		if err != nil {
			return nil, err
		}
		records = append(records, version, head2)
		known.versions[versionKey(v.Kind, v.ID, v.Number)] = v
		known.heads[headKey(v.Kind, v.ID)] = v.Number
		out = append(out, v)
	}
	if len(records) == 0 {
		return out, nil
	}
	if err := client.BeginTransaction(); err != nil {
		return nil, classify(err)
	}
	if err := kafka.ProduceSync(ctx, client, records...); err != nil {
		// Best effort, so that readers need not wait until the transaction times
		// out: the next writer's opening aborts it in any case. One that was
		// overtaken has nothing to abort, and must not open the id again to do so.
		if err = classify(err); !errors.Is(err, errOvertaken) {
			_ = client.EndTransaction(ctx, kgo.TryAbort)
		}
		return nil, err
	}
	crash.At(crash.DefinitionsProduced)
	if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return nil, classify(err)
	}
	crash.At(crash.DefinitionsCommitted)
	return out, nil
}

// next is the number after the highest there ever was: the numbers of a
// deleted definition are not used again.
func (k *catalogue) next(kind, id string) int64 {
	n := k.heads[headKey(kind, id)] + 1
	for {
		_, taken := k.versions[versionKey(kind, id, n)]
		_, unreadable := k.unreadable[versionKey(kind, id, n)]
		if !taken && !unreadable {
			return n
		}
		n++
	}
}

// readAll reads the topic up to its end at the moment of the call.
func readAll(ctx context.Context, c *kafka.Cluster) (*catalogue, error) {
	known := newCatalogue()
	table := c.Table([]topic.Name{topic.Definitions}, func(r *kgo.Record) error { return known.apply(c, r) })
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := table.Run(ctx); err != nil {
			cancel(err)
		}
	}()
	err := table.CaughtUp(ctx)
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	// known belongs to the table's goroutine until that has ended.
	cancel(nil)
	<-ended
	return &known, err
}

func classify(err error) error {
	if kafka.Fenced(err) {
		return fault.Transient(fmt.Errorf("%w (%w)", errOvertaken, err))
	}
	return fault.Transient(err)
}
