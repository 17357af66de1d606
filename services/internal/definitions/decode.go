package definitions

import (
	"context"
	"fmt"
	"sync"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Decode reads the body of a version as what its kind says.
func Decode[D definition.Definition](v Version) (D, error) {
	var none D
	def, err := definition.Decode(v.Kind, v.Body)
	if err != nil {
		return none, fmt.Errorf("decoding %s: %w", versionKey(v.Kind, v.ID, v.Number), err)
	}
	d, ok := def.(D)
	if !ok {
		return none, fmt.Errorf("decoding %s: it is a %T", versionKey(v.Kind, v.ID, v.Number), def)
	}
	return d, nil
}

// Exact finds exact versions of one kind, as runs and requests name them, and
// decodes each once. It is safe for concurrent use.
type Exact[D definition.Definition] struct {
	store *Store
	kind  string

	mu   sync.RWMutex
	seen map[string]D
}

// NewExact returns the versions of a kind.
func NewExact[D definition.Definition](s *Store, kind string) *Exact[D] {
	return &Exact[D]{store: s, kind: kind, seen: map[string]D{}}
}

// Get returns a version. One that has not been read yet is waited for: whoever
// named it was ahead of this store. Errors: Transient when ctx ends first,
// Poison when everything has been read and there is no such version.
func (e *Exact[D]) Get(ctx context.Context, id string, number int64) (D, error) {
	key := versionKey(e.kind, id, number)
	e.mu.RLock()
	d, ok := e.seen[key]
	e.mu.RUnlock()
	if ok {
		return d, nil
	}
	v, ok := e.store.Get(e.kind, id, number)
	if !ok {
		if err := e.store.CaughtUp(ctx); err != nil {
			return d, fault.Transient(fmt.Errorf("waiting for definition %s: %w", key, err))
		}
		if v, ok = e.store.Get(e.kind, id, number); !ok {
			if why := e.store.Unreadable(e.kind, id, number); why != "" {
				return d, fault.Poison(fmt.Errorf("definition %s cannot be read: %s", key, why))
			}
			return d, fault.Poison(fmt.Errorf("definition %s does not exist", key))
		}
	}
	d, err := Decode[D](v)
	if err != nil {
		// Versions are immutable: it will never be another.
		return d, fault.Poison(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen[key] = d
	return d, nil
}
