package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// The claim loop hands records to somebody outside who cannot be asked to forget
// them. It promises that no call is made without a durable claim (I8), and that
// whoever owns a partition next knows exactly for which records a call may have
// been made without an answer on record.
//
// The claim is the commit: an OffsetCommit moves each partition's offset to its
// first unsettled record and says in the metadata how far calls may have been made
// (claim). The group coordinator refuses it to a member of an older generation;
// that is the fence, and a claim written as a record would have none. The answer is
// an outcome with `source`, acknowledged before the offset passes the record (I1).
// On assignment the loop reads the metadata, and in the partition of outcomes with
// the same number which of the claimed records have an answer; what has none is
// unresolved, and the handler settles it by policy.
//
// A rebalance waits, in the revocation callback and not in a poll, until the calls
// in flight have ended and their outcomes are acknowledged; none is begun
// meanwhile (I3). Then the exact prefix is committed with an empty `to`, so that
// the next owner finds nothing unresolved. Calls have a deadline below the
// rebalance timeout, so the wait is bounded; if it is exceeded all the same, the
// last claim stands and the next owner resolves it.
//
// All state belongs to one goroutine (run); what happens elsewhere is posted to it.

// Outputs are what settles a record: each group is acknowledged before the next is
// produced. A retry stands in a group before its outcome, since in the other order
// a crash between them loses the message. The outcome must lie in the partition of
// outcomes that has the record's partition number and must carry its `source`.
type Outputs [][]*kgo.Record

// Call asks the outside to do what a record says.
type Call interface {
	// Do makes the call and returns what came of it. Transient: nothing was
	// asked, because whoever is asked is away or wants fewer calls; the record
	// waits, unclaimed, and so do all others. Poison: park the record. Anything
	// else ends the loop. When ctx ends before a call can have had an effect, Do
	// returns Transient; afterwards, what came of it as far as is known.
	Do(ctx context.Context) (Outputs, error)
}

// ClaimHandler decides what records ask for.
type ClaimHandler interface {
	// Prepare returns the call that a record asks for or, where none is needed,
	// what settles it. It is asked directly before each claim, and again when a
	// claim was given back. Poison: the record is parked. NotBefore or Transient:
	// the record's partition waits. It is called from one goroutine.
	Prepare(ctx context.Context, r *kgo.Record) (Call, Outputs, error)
	// Unresolved returns what settles a record that was claimed by somebody who
	// did not live to say what came of it. Poison and Transient as above.
	Unresolved(ctx context.Context, r *kgo.Record) (Outputs, error)
}

// ClaimOptions say what a claim loop reads and how much it does at once.
type ClaimOptions struct {
	Group    topic.Group
	Topics   []topic.Name
	Handler  ClaimHandler
	Provider string // component of Health that tells whether calls get through

	// Connections is how many calls are in flight at most. Twice as many records
	// are claimed and unsettled at most, over all partitions: that is how many
	// people one kill can leave uncertain.
	Connections int
	// CallTimeout ends a call. It must be below the rebalance timeout (60 s).
	CallTimeout time.Duration

	// hook, in tests, is asked at each point of a record's way and ends the loop
	// as a kill would when it returns true.
	hook func(point claimPoint, r *kgo.Record) (kill bool)
}

type claimPoint string

const (
	pointClaiming claimPoint = "claiming" // the claim is about to be committed
	pointClaimed  claimPoint = "claimed"  // the claim is committed, the call not begun
	pointCalled   claimPoint = "called"   // the call has ended, its outcome not produced
	pointAcked    claimPoint = "acked"    // the outcome is acknowledged, the offset not committed
)

var errKilled = errors.New("killed by the test")

const (
	// MaxCallTimeout is the longest ClaimOptions.CallTimeout. It leaves time to acknowledge and commit before the
	// coordinator throws out a member that keeps others waiting.
	MaxCallTimeout = rebalanceTimeout - 10*time.Second
	// maxSpan bounds the settled records kept behind one that is not: what a
	// recovery has to read again.
	maxSpan = 8192
	// maxOpen bounds the records that need no call and whose outcome is not yet
	// acknowledged, per partition, so that they fit into the metadata.
	maxOpen = 150
	// lastWords is how long calls in flight may still end after an error.
	lastWords = 10 * time.Second
	// tidyAfter is how long a partition that has come to rest waits for its
	// exact prefix to be committed. A kill before that costs a recovery, no
	// uncertain message.
	tidyAfter = 100 * time.Millisecond
	// pauseFrom: a partition that waits for less is not worth fetching again.
	pauseFrom = 100 * time.Millisecond
	// probeMax is the longest pause between attempts to reach who is away.
	probeMax = 5 * time.Second
)

// RunClaims reads, claims, calls and settles until ctx ends; then it begins no more
// calls, lets those in flight end within the drain time, commits the exact prefix
// and returns nil. Errors are Fatal; after any of them the next run recovers.
func (c *Cluster) RunClaims(ctx context.Context, o ClaimOptions) error {
	if o.Connections < 1 || o.CallTimeout <= 0 || o.CallTimeout > MaxCallTimeout {
		return fault.Fatal(fmt.Errorf("running the claim loop of %s: %d connections, call timeout %s; at least 1, and from 0 to %s wanted",
			o.Group, o.Connections, o.CallTimeout, MaxCallTimeout))
	}
	l := newClaimLoop(c, o)
	return l.run(ctx)
}

type itemState uint8

const (
	itemFresh      itemState = iota // nothing has been asked or claimed
	itemUnresolved                  // claimed by a former owner, no answer on record
	itemClaiming                    // in the commit that is under way
	itemClaimed                     // may be called
	itemCalling                     // is being called
	itemAnswered                    // called; its outputs are not all acknowledged
	itemSpared                      // needs no call; its outputs are not all acknowledged
	itemSettled
)

type claimItem struct {
	p         *claimPartition
	r         *kgo.Record // nil once settled
	offset    int64
	state     itemState
	call      Call
	scan      int64     // end of the partition of outcomes before its outcome could be; -1: it will have none
	claimedAt time.Time // before the commit was sent
	left      Outputs   // groups still to be produced
	waiting   int       // acknowledgements awaited of the present group
	parked    bool
}

type claimPartition struct {
	name   topic.Name
	topic  string // Kafka's name
	number int32

	items  []*claimItem // from the first unsettled, in order
	popped int          // items that were settled and removed
	cursor int          // position, counted with popped, of the first that may be fresh
	next   int64        // offset after the last record read

	recovered *recovery // while records of a former claim are still being read
	notBefore time.Time
	pause     backoff
	paused    bool
	stuck     bool                // what is queued waits for what is in hand
	dirty     bool                // the committed offset or metadata may be out of date
	claiming  bool                // has records in the claim to be committed
	spared    int                 // items in itemSpared
	keys      map[string]struct{} // of records claimed or being called

	offset   int64 // as committed
	metadata string
}

// source is the partition as outcomes name it.
func (p *claimPartition) source() event.Source {
	return event.Source{Topic: string(p.name), Partition: p.number}
}

func (p *claimPartition) at(i int) *claimItem { return p.items[i-p.popped] }
func (p *claimPartition) end() int            { return p.popped + len(p.items) }
