// Package bodies bounds the memory that the bodies of requests take together.
package bodies

import (
	"container/list"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Bound bounds the bodies that are being read or worked on, in bytes. Where there is no
// more, whoever has been sending for longest has to give way: somebody slow can hold
// memory only while nobody else wants it.
type Bound struct {
	bytes *semaphore.Weighted

	mu      sync.Mutex
	readers list.List // of *Body, the one that has been sending for longest first
}

// New returns a bound of so many bytes.
func New(limitBytes int64) *Bound { return &Bound{bytes: semaphore.NewWeighted(limitBytes)} }

// Reading is how many bodies are on their way.
func (b *Bound) Reading() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.readers.Len()
}

// Body is what one request holds.
type Body struct {
	of *Bound
	// cut ends the reading of it.
	cut  func()
	held int64
	at   *list.Element
	gone bool   // it was told to give way
	stop func() // ends its waiting for bytes, if it waits
}

// Begin says that a body is on its way; cut must end its reading at once. Release it when the request has been answered.
func (b *Bound) Begin(cut func()) *Body {
	body := &Body{of: b, cut: cut}
	b.mu.Lock()
	defer b.mu.Unlock()
	body.at = b.readers.PushBack(body)
	return body
}

// Take holds so many bytes more. It waits for others no longer than patience, and not at
// all once it was told to give way itself: what it holds is what others wait for.
func (b *Body) Take(ctx context.Context, n int64, patience time.Duration) bool {
	bytes := b.of.bytes
	if bytes.TryAcquire(n) {
		b.held += n
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !b.waits(cancel) {
		return false
	}
	for b.of.giveWay(b) {
		// Whoever was told so lets go as soon as its reading has ended.
		soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := bytes.Acquire(soon, n)
		cancel()
		if err == nil {
			b.held += n
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	if bytes.Acquire(ctx, n) != nil {
		return false
	}
	b.held += n
	return true
}

// waits says what ends the body's waiting when it is told to give way; false if it was told already.
func (b *Body) waits(stop func()) bool {
	b.of.mu.Lock()
	defer b.of.mu.Unlock()
	b.stop = stop
	return !b.gone
}

// giveWay cuts off whoever has been sending for longest; false if that is who asks, or nobody.
// Who was cut off itself cuts nobody off: all who are left began after it.
func (b *Bound) giveWay(asks *Body) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	front := b.readers.Front()
	if front == nil || asks.gone || front.Value.(*Body) == asks {
		return false
	}
	slow := front.Value.(*Body)
	b.readers.Remove(front)
	slow.at, slow.gone = nil, true
	slow.cut()
	if slow.stop != nil {
		slow.stop()
	}
	return true
}

// End says that the body is all there, or will not be. It reports whether it was told to
// give way.
func (b *Body) End() (gone bool) {
	b.of.mu.Lock()
	defer b.of.mu.Unlock()
	if b.at != nil {
		b.of.readers.Remove(b.at)
		b.at = nil
	}
	return b.gone
}

// Release lets go of the bytes.
func (b *Body) Release() {
	if b.held > 0 {
		b.of.bytes.Release(b.held)
		b.held = 0
	}
}
