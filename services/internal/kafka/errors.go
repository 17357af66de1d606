package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// passing tells errors that pass by themselves: the network, a broker that is away
// or busy, a group that is rebalancing.
func passing(err error) bool {
	var netErr net.Error
	switch {
	case kerr.IsRetriable(err),
		errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.As(err, &netErr),
		errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.RebalanceInProgress),
		errors.Is(err, kerr.MemberIDRequired), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		return true
	}
	return kgo.IsRetryableBrokerErr(err)
}

// Fenced says that somebody else has opened the transactional id since, or the broker
// has given up a transaction of ours; which of the two it does not tell.
// INVALID_TXN_STATE is what the end of a transaction gets that another's opening
// has just aborted.
func Fenced(err error) bool {
	for _, fenced := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping, kerr.InvalidTxnState} {
		if errors.Is(err, fenced) {
			return true
		}
	}
	return false
}

// lostOffset says what became of a group's place and that a person must decide.
func (c *Cluster) lostOffset(group topic.Group, name topic.Name, partition int32, what string) error {
	return fault.Fatal(fmt.Errorf("group %s has lost its place in topic %s, partition %d: %s. "+
		"Starting at the beginning would do everything again, starting at the end would drop people, so neither is done: "+
		"see the runbook OffsetLost (in a new namespace, or after a topic was added, run provision)",
		group.In(c.cfg.Namespace), name.In(c.cfg.Namespace), partition, what))
}

// fenced says that this process is not the one that has its name.
func (c *Cluster) fenced(err error) error {
	return fault.Fatal(fmt.Errorf("fenced by its own name: another process runs as %s (INSTANCE must be unique among the instances of %s): %w",
		c.member, c.service, err))
}
