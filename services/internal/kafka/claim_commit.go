package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// claim is the metadata of a committed offset: for which records, from the offset
// on, a call may have been made whose answer is not covered by the offset. Empty
// metadata says: for none.
type claim struct {
	To   int64 `json:"to"`   // the last record that may have been called
	Scan int64 `json:"scan"` // where the partition of outcomes ended when the oldest of them was claimed
	// Open lists records up to To that were not called: they needed no call and
	// await their outcome's acknowledgement, or their claim was given back.
	Open []int64 `json:"open,omitempty"`
	// By is the loop that claimed. If it is given the partition again after it had
	// lost it, it knows which of these records it did not call (untouched).
	By string `json:"by,omitempty"`
}

// maxMetadataBytes is Kafka's default offset.metadata.max.bytes.
const maxMetadataBytes = 4096

// claim returns the offset of the first unsettled record and the metadata that
// belongs to it, and forgets the settled records before it.
func (p *claimPartition) claim(by string) (int64, string) {
	done := 0
	for done < len(p.items) && p.items[done].state == itemSettled {
		done++
	}
	if done > 0 {
		clear(p.items[:done])
		p.items = p.items[done:]
		p.popped += done
		p.cursor = max(p.cursor, p.popped)
	}
	if len(p.items) == 0 {
		return p.next, ""
	}
	last := -1
	for i, item := range p.items {
		if item.state != itemFresh && item.state != itemSpared && item.scan >= 0 {
			last = i
		}
	}
	offset := p.items[0].offset
	if last < 0 {
		return offset, "" // none of these was claimed
	}
	c := claim{To: p.items[last].offset, Scan: -1, By: by}
	for _, item := range p.items[:last+1] {
		switch {
		case item.state == itemFresh || item.state == itemSpared:
			c.Open = append(c.Open, item.offset)
		case item.scan >= 0 && (c.Scan < 0 || item.scan < c.Scan):
			c.Scan = item.scan
		}
	}
	return offset, c.encode()
}

// encode writes the claim. Should the open records not fit, the last ones are left
// out: they would be taken for unresolved, which is the safe side.
func (c claim) encode() string {
	for {
		b, err := json.Marshal(c)
		if err != nil {
			panic(fmt.Sprintf("encoding a claim: %v", err)) // numbers only
		}
		if len(b) < maxMetadataBytes {
			return string(b)
		}
		c.Open = c.Open[:len(c.Open)*3/4]
	}
}

// maybeCommit sends one OffsetCommit for all partitions when there is something to
// claim, or when what is at rest should be said.
func (l *claimLoop) maybeCommit(now time.Time, proposal []*claimItem) {
	if len(proposal) > 0 {
		crash.In(l.o.Group, crash.Claiming)
		if !l.killed(pointClaiming, proposal[0].r) {
			l.commit(time.Now(), proposal)
		}
		return
	}
	if l.committing || now.Before(l.commitFrom) {
		return
	}
	dirty := false
	for _, p := range l.order {
		dirty = dirty || p.dirty && p.recovered == nil
	}
	switch {
	case !dirty:
		l.tidyAt = time.Time{}
	case l.tidyAt.IsZero():
		l.tidyAt = now.Add(tidyAfter)
	case !now.Before(l.tidyAt):
		l.commit(now, nil)
	}
}

// commit commits the prefix of every partition that has changed, with the claim of
// the proposal in its metadata, and reports whether there was anything to say.
func (l *claimLoop) commit(now time.Time, proposal []*claimItem) bool {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = l.o.Group.In(l.c.cfg.Namespace)
	// Those of the assignment, not of the moment: a member that was thrown out
	// and has joined again must be refused for what it held before.
	req.MemberID, req.Generation, req.InstanceID = l.memberID, l.generation, &l.c.member
	type said struct {
		p        *claimPartition
		offset   int64
		metadata string
	}
	var sent []said
	topics := map[string]int{}
	for _, p := range l.order {
		if !p.dirty || p.recovered != nil {
			continue
		}
		offset, metadata := p.claim(l.name)
		if crash.Sabotaged(crash.Claim) {
			metadata = "" // what is called now is claimed by nobody
		}
		// A claim made again says nothing new, and must be sent: only the
		// coordinator's answer makes it one.
		changed := p.claiming || offset != p.offset || metadata != p.metadata
		p.dirty, p.claiming = false, false
		if !changed {
			continue
		}
		i, ok := topics[p.topic]
		if !ok {
			i = len(req.Topics)
			topics[p.topic] = i
			t := kmsg.NewOffsetCommitRequestTopic()
			t.Topic = p.topic
			req.Topics = append(req.Topics, t)
		}
		part := kmsg.NewOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset, part.Metadata = p.number, offset, &metadata
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, part)
		sent = append(sent, said{p, offset, metadata})
	}
	l.tidyAt = time.Time{}
	if len(sent) == 0 {
		return false
	}
	l.committing = true
	go func() {
		// A claim older than its validity is worth nothing, however it ends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(l.callCtx), l.valid)
		defer cancel()
		resp, err := req.RequestWith(ctx, l.consumer)
		if err == nil {
			err = commitError(resp)
		}
		l.post(func() {
			l.committing = false
			if err != nil {
				for _, s := range sent {
					s.p.dirty = true
				}
				for _, item := range proposal {
					l.unclaim(item)
				}
				l.refused(err)
				return
			}
			l.commitWait.reset()
			l.metrics.commits.WithLabelValues("ok").Inc()
			l.c.tel.Health.Set("claims", nil)
			if len(proposal) == 0 {
				crash.In(l.o.Group, crash.Tidied)
			}
			for _, s := range sent {
				s.p.offset, s.p.metadata = s.offset, s.metadata
			}
			for _, item := range proposal {
				// I8: acknowledged; what was refused never gets here. Nor has its
				// partition been let go: letGo waits for this answer.
				item.state = itemClaimed
				l.reserve = append(l.reserve, item)
			}
			// The same generation was confirmed for what waits from before.
			for _, item := range l.reserve {
				item.claimedAt = now
			}
		})
	}()
	return true
}

func commitError(resp *kmsg.OffsetCommitResponse) error {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("committing %s/%d: %w", t.Topic, p.Partition, err)
			}
		}
	}
	return nil
}

// refused takes note of a commit that did not succeed: nothing was claimed by it,
// and nothing is called.
func (l *claimLoop) refused(err error) {
	switch {
	case errors.Is(err, kerr.FencedInstanceID):
		l.metrics.commits.WithLabelValues("fenced").Inc()
		l.denied = true
		l.fail(l.c.fenced(err))
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration):
		l.metrics.commits.WithLabelValues("fenced").Inc()
		l.denied = true
		l.c.log.Warn("claim refused: the group has gone on without this member", "group", string(l.o.Group), "error", err.Error())
	case passing(err), errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
		// Whether it was applied is not known. If it was, its records are listed
		// as claimed and not called until the next commit says otherwise, or this
		// loop is assigned them again. The pause lets a request that is still on the
		// wire arrive first.
		l.metrics.commits.WithLabelValues("failed").Inc()
		l.c.tel.Health.Set("claims", err)
		l.commitFrom = time.Now().Add(l.commitWait.next)
		l.commitWait.grow()
	default:
		l.denied = true
		l.fail(fault.Fatal(err))
	}
}
