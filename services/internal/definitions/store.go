// Package definitions keeps what people have defined: every version of every
// definition, and per kind and id the version in force, all in one compacted
// topic of one partition.
//
// Versions are immutable and numbered 1, 2, … per kind and id. Store follows
// the topic in memory. Write adds versions, all of them or none, and refuses
// to replace a version that the writer has not seen.
package definitions

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Version is one version of a definition.
type Version struct {
	Kind      string
	ID        string
	Number    int64     // from 1
	Body      []byte    // canonical JSON; not to be changed
	AppliedAt time.Time // UTC
	AppliedBy string
	Place     int64 // in the topic: what was written later has a greater one; 0 in what Write returns of what it wrote
}

// Store holds all versions in memory. It is safe for concurrent use; Run must
// be running for it to know anything.
type Store struct {
	table *kafka.Table

	mu       sync.RWMutex
	known    catalogue
	changing chan struct{} // closed and replaced with each change
}

// NewStore returns a store that reads the definitions of the cluster's namespace.
func NewStore(c *kafka.Cluster) *Store {
	s := &Store{known: newCatalogue(), changing: make(chan struct{})}
	s.table = c.Table([]topic.Name{topic.Definitions}, func(r *kgo.Record) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.known.apply(c, r); err != nil {
			return err
		}
		close(s.changing)
		s.changing = make(chan struct{})
		return nil
	})
	return s
}

// Run follows the topic until ctx ends.
func (s *Store) Run(ctx context.Context) error { return s.table.Run(ctx) }

// CaughtUp blocks until everything committed before the call is in the store.
func (s *Store) CaughtUp(ctx context.Context) error { return s.table.CaughtUp(ctx) }

// Head returns the version in force.
func (s *Store) Head(kind, id string) (Version, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.known.head(kind, id)
}

// Get returns one version, in force or not.
func (s *Store) Get(kind, id string, number int64) (Version, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.known.versions[versionKey(kind, id, number)]
	return v, ok
}

// All returns the versions in force of a kind, by id.
func (s *Store) All(kind string) []Version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Version
	for key := range s.known.heads {
		k, id, _ := strings.Cut(key, "/")
		if k != kind {
			continue
		}
		if v, ok := s.known.head(kind, id); ok {
			out = append(out, v)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// WaitFor blocks until the store holds a version that a record named: another
// topic may be ahead of this one. The error is the context's, or Poison if there is
// one that cannot be read.
func (s *Store) WaitFor(ctx context.Context, kind, id string, number int64) (Version, error) {
	for {
		changed := s.Changed()
		if v, ok := s.Get(kind, id, number); ok {
			return v, nil
		}
		if why := s.Unreadable(kind, id, number); why != "" {
			return Version{}, fault.Poison(fmt.Errorf("definition %s cannot be read: %s", versionKey(kind, id, number), why))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Version{}, fmt.Errorf("waiting for definition %s: %w", versionKey(kind, id, number), ctx.Err())
		}
	}
}

// Changed returns a channel that is closed when the next record has been
// applied. Take it before looking, so that no change is missed.
func (s *Store) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changing
}

// Unreadable returns why a version, or with number 0 the one in force, cannot be
// read; "" if it can, or if there is none.
func (s *Store) Unreadable(kind, id string, number int64) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if number == 0 {
		if why := s.known.unreadable[headKey(kind, id)]; why != "" {
			return why
		}
		number = s.known.heads[headKey(kind, id)]
	}
	return s.known.unreadable[versionKey(kind, id, number)]
}

// catalogue is the content of the topic.
type catalogue struct {
	versions   map[string]Version // by kind/id@version
	heads      map[string]int64   // by kind/id
	unreadable map[string]string  // by either key: why
}

func newCatalogue() catalogue {
	return catalogue{versions: map[string]Version{}, heads: map[string]int64{}, unreadable: map[string]string{}}
}

func (k *catalogue) head(kind, id string) (Version, bool) {
	n, ok := k.heads[headKey(kind, id)]
	if !ok {
		return Version{}, false
	}
	v, ok := k.versions[versionKey(kind, id, n)]
	return v, ok
}

// decoder is what a catalogue needs of the cluster.
type decoder interface {
	Decode(r *kgo.Record, into event.Record) error
}

// apply takes one record. One that cannot be read concerns those who name it and
// nobody else: it is as good as not there, until it has been written anew. Nothing
// older stands in for it, or what is in force would depend on when this began to
// read.
func (k *catalogue) apply(c decoder, r *kgo.Record) error {
	key := string(r.Key)
	if r.Value == nil {
		k.forget(key)
		return nil
	}
	var d event.Definition
	err := c.Decode(r, &d)
	if err == nil && key != versionKey(d.Kind, d.ID, d.Version) && key != headKey(d.Kind, d.ID) {
		err = fault.Poison(fmt.Errorf("it holds %s", versionKey(d.Kind, d.ID, d.Version)))
	}
	if err != nil {
		if fault.ClassOf(err) != fault.ClassPoison {
			return fmt.Errorf("reading definition %s: %w", key, err)
		}
		k.forget(key)
		k.unreadable[key] = err.Error()
		return nil
	}
	delete(k.unreadable, key)
	switch {
	case key == versionKey(d.Kind, d.ID, d.Version):
		k.versions[key] = Version{Kind: d.Kind, ID: d.ID, Number: d.Version, Body: []byte(d.Body), AppliedAt: d.AppliedAt, AppliedBy: d.AppliedBy, Place: r.Offset}
	case d.Deleted:
		// A deleted definition has no version in force; its versions stay, for
		// the runs that name them.
		delete(k.heads, key)
	default:
		k.heads[key] = d.Version
	}
	return nil
}

func (k *catalogue) forget(key string) {
	delete(k.versions, key)
	delete(k.heads, key)
	delete(k.unreadable, key)
}

func headKey(kind, id string) string { return kind + "/" + id }

func versionKey(kind, id string, number int64) string {
	return fmt.Sprintf("%s/%s@%d", kind, id, number)
}
