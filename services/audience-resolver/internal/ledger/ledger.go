// Package ledger knows what became of a message: its class, as a function of
// the set of its outcomes, in whatever order they arrive and however often each
// is repeated (docs/architecture.md, "The class of a message"). ClickHouse
// computes the same rule from the same outcomes by another path; that the two
// agree is the proof of a run's balance.
package ledger

import "github.com/hikyaku/hikyaku/schemas/event"

// Class is what a message counts as. Excluded is the class of a person who was
// never requested; all others are parts of requested.
type Class = string

// The classes.
const (
	Excluded  Class = "excluded"
	Waiting   Class = "waiting"
	Rejected  Class = "rejected"
	Accepted  Class = "accepted"
	Failed    Class = "failed"
	Uncertain Class = "uncertain"
	Expired   Class = "expired"
	Cancelled Class = "cancelled"
	Parked    Class = "parked"
)

// The outcomes that do not name a class.
const (
	Deferred = "deferred" // a retry follows
	Replayed = "replayed" // an operator put the record of a parked attempt back: another attempt follows
)

// The outcomes that a provider reports later: evidence of acceptance, since it had
// taken the message. One that goes back, or is complained of, was accepted too.
const (
	Delivered  = "delivered"
	Bounced    = "bounced"
	Complained = "complained"
)

// accepts reports whether an outcome is, or proves, a provider's acceptance.
func accepts(outcome string) bool {
	switch outcome {
	case Accepted, Delivered, Bounced, Complained:
		return true
	}
	return false
}

// rank orders the outcomes of one attempt: an answer outranks not knowing.
// Outcomes that are steps and not endings (rendered) have none.
func rank(outcome string) (int, bool) {
	if accepts(outcome) {
		return 6, true
	}
	switch outcome {
	case Uncertain:
		return 0, true
	case Deferred:
		return 1, true
	case Expired, Cancelled:
		return 2, true
	case Failed, Rejected:
		return 3, true
	case Parked:
		return 4, true
	case Replayed:
		return 5, true
	}
	return 0, false
}

// Ends reports whether an outcome can change a class at all. A step that ends no
// attempt, such as rendered, cannot.
func Ends(outcome string) bool {
	_, ends := rank(outcome)
	return ends
}

// Apply takes one more outcome into account and reports whether the class
// changed, and from what.
//
// I10: an ending is overruled by evidence, never by absence: acceptance stands
// whatever else is said, a later attempt speaks for an earlier one, and within
// an attempt any answer outranks uncertain.
func Apply(m *event.MessageState, outcome string, attempt int32) (before Class, changed bool) {
	r, ends := rank(outcome)
	if !ends || m.Class == Excluded {
		return m.Class, false
	}
	if m.Class == Accepted {
		return m.Class, false
	}
	accepted := accepts(outcome)
	if !accepted && m.Ending != "" {
		if attempt < m.Attempt {
			return m.Class, false
		}
		old, ends := rank(m.Ending)
		if attempt == m.Attempt && ends && !beats(r, outcome, old, m.Ending) {
			return m.Class, false
		}
	}
	before = m.Class
	m.Attempt, m.Ending = attempt, outcome
	switch {
	case accepted:
		m.Class = Accepted
	case outcome == Deferred || outcome == Replayed:
		m.Class = Waiting
	default:
		m.Class = outcome
	}
	return before, m.Class != before
}

// beats breaks ties between outcomes of one rank by their name, so that the
// order of arrival never decides.
func beats(r int, outcome string, oldRank int, old string) bool {
	return r > oldRank || r == oldRank && outcome > old
}

// Admit is the state of a message that was just requested.
func Admit(m *event.MessageState) { m.Class = Waiting }

// requested is the ending of an attempt that has none yet: any outcome of it
// speaks, none of an earlier attempt does.
const requested = "requested"

// Readmit is the state of a message whose candidate was parked and is admitted
// now, at the replay, as this attempt. It reports false for any other message,
// and for a replay that was admitted before.
func Readmit(m *event.MessageState, attempt int32) bool {
	if m.Class != Waiting || m.Ending != Replayed || m.Attempt != attempt-1 {
		return false
	}
	m.Attempt, m.Ending = attempt, requested
	return true
}

// Exclude is the state of a person who is not sent to.
func Exclude(m *event.MessageState) { m.Class = Excluded }

// Move takes one unit from one class of the counters to another. An empty
// class is none.
func Move(c *event.RunCounters, from, to Class) {
	if p := counter(c, from); p != nil {
		*p--
	}
	if p := counter(c, to); p != nil {
		*p++
	}
}

func counter(c *event.RunCounters, class Class) *int64 {
	switch class {
	case Waiting:
		return &c.Waiting
	case Rejected:
		return &c.Rejected
	case Accepted:
		return &c.Accepted
	case Failed:
		return &c.Failed
	case Uncertain:
		return &c.Uncertain
	case Expired:
		return &c.Expired
	case Cancelled:
		return &c.Cancelled
	case Parked:
		return &c.Parked
	}
	return nil
}

// ExcludedTotal is the number of exclusions, whatever the reason.
func ExcludedTotal(c *event.RunCounters) int64 {
	var n int64
	for i := range c.Excluded {
		n += c.Excluded[i].Count
	}
	return n
}

// CountExclusion adds one exclusion for a reason; reasons stay sorted.
func CountExclusion(c *event.RunCounters, reason string) {
	i := 0
	for ; i < len(c.Excluded) && c.Excluded[i].Reason <= reason; i++ {
		if c.Excluded[i].Reason == reason {
			c.Excluded[i].Count++
			return
		}
	}
	c.Excluded = append(c.Excluded, event.ReasonCount{})
	copy(c.Excluded[i+1:], c.Excluded[i:])
	c.Excluded[i] = event.ReasonCount{Reason: reason, Count: 1}
}
