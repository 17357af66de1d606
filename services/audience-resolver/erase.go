package resolver

import (
	"slices"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// erase forgets a person. What became of her messages stays, since the counters of
// runs were made from it and an outcome may still come, but under a hash: it can be
// found by who has her user_id, as outcomes on their way do, and names nobody.
func (l *personLoop) erase(b *batch, c *cell[event.Profile], userID string, partition int32) error {
	c.rec, c.dirty = nil, true
	for _, kind := range []string{kindMemberships, kindReplaced, kindMessages} {
		s, err := b.state(userID, kind, partition)
		if err != nil {
			return err
		}
		if len(s.rec.Messages) > 0 {
			kept, err := b.state(l.unnamed(userID), kindMessages, partition)
			if err != nil {
				return err
			}
			kept.rec.Messages, kept.dirty = append(slices.Clone(kept.rec.Messages), s.rec.Messages...), true
		}
		s.rec, s.dirty = &event.PersonState{UserID: s.rec.UserID, Kind: kind}, true
	}
	return nil
}

// unnamed is what stands for an erased person in the keys of her state.
func (l *personLoop) unnamed(userID string) string {
	return identity.Person(l.cluster.Namespace(), userID).String()
}

// message finds one message of a person: the cell it is in, and where. One that is
// not known gets -1 and the cell it would be in.
func (l *personLoop) message(b *batch, userID string, id identity.ID, partition int32) (c *cell[event.PersonState], at int, err error) {
	is := func(m event.MessageState) bool { return m.MessageID == id }
	if c, err = b.state(userID, kindMessages, partition); err != nil {
		return nil, -1, err
	}
	if at = slices.IndexFunc(c.rec.Messages, is); at >= 0 {
		return c, at, nil
	}
	before, err := b.known(l.unnamed(userID), kindMessages, partition)
	if err != nil || before == nil {
		return c, -1, err
	}
	if at = slices.IndexFunc(before.rec.Messages, is); at >= 0 {
		return before, at, nil
	}
	return c, -1, nil
}
