package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// The states of an import, in this order; failed may follow any but done.
const (
	stateAnnounced = "announced" // seen; nothing written yet
	stateReading   = "reading"   // rows up to offset_bytes are committed
	statePublished = "published" // all rows are committed
	stateLoaded    = "loaded"    // resolver and sink have passed them
	stateDone      = "done"      // the segment points at it, the report is written
	stateFailed    = "failed"
)

var states = []string{stateAnnounced, stateReading, statePublished, stateLoaded, stateDone, stateFailed}

func ended(state string) bool { return state == stateDone || state == stateFailed }

// headerOwner names the member that wrote a progress record, so that an
// instance that was killed knows its own imports again and need not wait until
// their progress is stale.
const headerOwner = "owner"

// source is one object under one spec, whatever the spec's version.
type source struct {
	bucket, key, etag    string
	sizeBytes, lastMicro int64
	specID               string
}

func sourceOf(o object, specID string) source {
	return source{o.bucket, o.key, o.etag, o.sizeBytes, o.lastModified.UnixMicro(), specID}
}

func objectOf(p *event.Import) object {
	return object{
		bucket: p.Bucket, key: p.Key, etag: p.ETag, sizeBytes: p.SizeBytes,
		lastModified: p.LastModified, versionID: p.VersionID,
	}
}

// String makes one text of it, to hash.
func (s source) String() string {
	return fmt.Sprintf("%s/%s %s %d %d %s", s.bucket, s.key, s.etag, s.sizeBytes, s.lastMicro, s.specID)
}

// entry is what is known of one import. It is replaced, never changed.
type entry struct {
	event.Import
	owner string // member that wrote it
}

// progress is the topic imports in memory: every import there ever was.
type progress struct {
	table *kafka.Table

	mu       sync.RWMutex
	byID     map[identity.ID]*entry
	bySource map[source][]identity.ID
}

func newProgress(c *kafka.Cluster, m *metrics, log *slog.Logger) *progress {
	p := &progress{byID: map[identity.ID]*entry{}, bySource: map[source][]identity.ID{}}
	p.table = c.Table([]topic.Name{topic.Imports}, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		e := &entry{}
		switch err := c.Decode(r, &e.Import); {
		case fault.ClassOf(err) == fault.ClassPoison:
			// As if it had not been written: the import goes on from an earlier
			// byte, or from the first, and writes the same records again.
			log.Error("what is kept of an import cannot be read: it is taken up from where it was before", "import_id", string(r.Key), "error", err)
			return nil
		case err != nil:
			return err
		}
		for _, h := range r.Headers {
			if h.Key == headerOwner {
				e.owner = string(h.Value)
			}
		}
		if ended(e.State) {
			e.Header, e.Published = nil, nil // nobody reads on from here
		}
		p.apply(e, m)
		return nil
	})
	return p
}

func (p *progress) apply(e *entry, m *metrics) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before, known := p.byID[e.ImportID]; known {
		m.imports.WithLabelValues(before.State).Dec()
	} else {
		src := sourceOf(objectOf(&e.Import), e.SpecID)
		p.bySource[src] = append(p.bySource[src], e.ImportID)
	}
	m.imports.WithLabelValues(e.State).Inc()
	p.byID[e.ImportID] = e
}

func (p *progress) get(id identity.ID) *entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.byID[id]
}

// wanted says whether an object is to be imported under a version of a spec:
// unless it was, or is being; under a mended spec if it failed.
func (p *progress) wanted(src source, specVersion int64) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, id := range p.bySource[src] {
		if e := p.byID[id]; e.State != stateFailed || e.SpecVersion >= specVersion {
			return false
		}
	}
	return true
}

// unfinished returns the imports that somebody has begun and nobody ended.
func (p *progress) unfinished() []*entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*entry
	for _, e := range p.byID {
		if !ended(e.State) {
			out = append(out, e)
		}
	}
	return out
}

// later orders the imports of one segment by announcement: by the time of
// their objects, since a listing shows many at once in the order of their names.
func later(a, b *event.Import) bool {
	if !a.LastModified.Equal(b.LastModified) {
		return a.LastModified.After(b.LastModified)
	}
	if !a.AnnouncedAt.Equal(b.AnnouncedAt) {
		return a.AnnouncedAt.After(b.AnnouncedAt)
	}
	return a.ImportID.String() > b.ImportID.String()
}

// follow runs a table beside do, and ends it before it returns.
func follow(ctx context.Context, table *kafka.Table, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- table.Run(ctx) }()
	err := do(ctx)
	cancel()
	return errors.Join(err, <-ran)
}

// micros is the time as records carry it.
func micros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
