package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultDrain is the drain time of a context that carries none.
const DefaultDrain = 10 * time.Second

// ErrDrainTimeout is the cause of a work context that ended because the drain
// time was over.
var ErrDrainTimeout = errors.New("drain time is over")

type workKey struct{}

// WithDrain returns ctx carrying a drain time: every context that Drain makes of
// it ends this long after ctx does, however late Drain was called.
func WithDrain(ctx context.Context, drain time.Duration) context.Context {
	// I4: the signal ends ctx, and not the work in hand.
	work, end := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		time.AfterFunc(drain, func() { end(fmt.Errorf("%w (%s)", ErrDrainTimeout, drain)) })
	})
	return context.WithValue(ctx, workKey{}, work)
}

// Drain returns the context on which a batch is finished, flushed and committed:
// a signal does not interrupt it, the drain deadline does, with the cause
// ErrDrainTimeout. Call stop when the batch is done.
func Drain(ctx context.Context) (work context.Context, stop func()) {
	base, ok := ctx.Value(workKey{}).(context.Context)
	if !ok {
		base = WithDrain(ctx, DefaultDrain).Value(workKey{}).(context.Context)
	}
	return context.WithCancel(base)
}
