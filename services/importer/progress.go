package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

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

	mu        sync.RWMutex
	byID      map[identity.ID]*entry
	bySource  map[source][]identity.ID
	byVersion map[version][]identity.ID
	moved     chan struct{} // closed and replaced whenever an import is
}

// version is one version of an object under one spec, where buckets have them. It
// tells apart what a source does not: the same bytes put twice within a second. And
// a server may show another time for a version once there is a newer one.
type version struct{ bucket, key, id, specID string }

func versionOf(o object, specID string) version { return version{o.bucket, o.key, o.versionID, specID} }

func newProgress(c *kafka.Cluster, m *metrics, log *slog.Logger) *progress {
	p := &progress{byID: map[identity.ID]*entry{}, bySource: map[source][]identity.ID{}, byVersion: map[version][]identity.ID{}, moved: make(chan struct{})}
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
		e.owner = kafka.Owner(r)
		if importfile.Ended(e.State) {
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
	} else if e.Undoes == "" { // else it says nothing about the object
		o := objectOf(&e.Import)
		src, v := sourceOf(o, e.SpecID), versionOf(o, e.SpecID)
		p.bySource[src] = append(p.bySource[src], e.ImportID)
		if v.id != "" {
			p.byVersion[v] = append(p.byVersion[v], e.ImportID)
		}
	}
	m.imports.WithLabelValues(e.State).Inc()
	p.byID[e.ImportID] = e
	close(p.moved)
	p.moved = make(chan struct{})
}

// changed returns a channel that is closed when the next record of an import has
// been read.
func (p *progress) changed() <-chan struct{} {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.moved
}

func (p *progress) get(id identity.ID) *entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.byID[id]
}

// wanted says whether an object is to be imported under a version of a spec:
// unless it was, or is being; under a mended spec if it failed. An object whose
// version is known is told by that.
func (p *progress) wanted(o object, specID string, specVersion int64) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	ids := p.bySource[sourceOf(o, specID)]
	if o.versionID != "" {
		ids = p.byVersion[versionOf(o, specID)]
	}
	for _, id := range ids {
		if e := p.byID[id]; e.State != importfile.StateFailed || e.SpecVersion >= specVersion {
			return false
		}
	}
	return true
}

// alias keeps that a listing shows a version of an object that is known, but had
// another time when it was imported. So the next listing need not ask.
func (p *progress) alias(src source, o object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range p.byVersion[versionOf(o, src.specID)] {
		if !slices.Contains(p.bySource[src], id) {
			p.bySource[src] = append(p.bySource[src], id)
		}
	}
}

// unfinished returns the imports that somebody has begun and nobody ended.
func (p *progress) unfinished() []*entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*entry
	for _, e := range p.byID {
		if !importfile.Ended(e.State) {
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
