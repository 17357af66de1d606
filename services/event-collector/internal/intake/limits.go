package intake

import (
	"container/list"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// memory bounds the bodies that are being read or worked on, in bytes. Where there is no
// more, whoever has been sending for longest has to give way: somebody slow can hold
// memory only while nobody else wants it.
type memory struct {
	bytes *semaphore.Weighted
	limit int64

	mu      sync.Mutex
	readers list.List // of *reader, the one that has been sending for longest first
}

// reader is a request whose body is still on its way.
type reader struct {
	m *memory
	// cut ends the reading of its body.
	cut  func()
	held int64
	at   *list.Element
	gone bool // it was told to give way
}

func newMemory(limit int64) *memory {
	return &memory{bytes: semaphore.NewWeighted(limit), limit: limit}
}

// take holds so many bytes more. It waits for others no longer than patience.
func (r *reader) take(ctx context.Context, n int64, patience time.Duration) bool {
	m := r.m
	if m.bytes.TryAcquire(n) {
		r.held += n
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for m.giveWay(r) {
		// Whoever was told so lets go as soon as its reading has ended.
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := m.bytes.Acquire(soon, n)
		cancel()
		if err == nil {
			r.held += n
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	if m.bytes.Acquire(ctx, n) != nil {
		return false
	}
	r.held += n
	return true
}

// giveWay cuts off whoever has been sending for longest; false if that is r or nobody.
func (m *memory) giveWay(r *reader) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	front := m.readers.Front()
	if front == nil || front.Value.(*reader) == r {
		return false
	}
	slow := front.Value.(*reader)
	m.readers.Remove(front)
	slow.at, slow.gone = nil, true
	slow.cut()
	return true
}

// begin says that the body is not all there.
func (r *reader) begin() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.at = r.m.readers.PushBack(r)
}

// end says that the body is all there, or will not be. It reports whether the request
// was told to give way.
func (r *reader) end() (gone bool) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.at != nil {
		r.m.readers.Remove(r.at)
		r.at = nil
	}
	return r.gone
}

// release lets go of the bytes, when the request has been answered.
func (r *reader) release() {
	if r.held > 0 {
		r.m.bytes.Release(r.held)
		r.held = 0
	}
}
