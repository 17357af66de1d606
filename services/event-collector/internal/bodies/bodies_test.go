package bodies

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// sender is somebody whose body is on its way.
type sender struct {
	*Body
	cut atomic.Bool
}

func (b *Bound) sender() *sender {
	s := &sender{}
	s.Body = b.Begin(func() { s.cut.Store(true) })
	return s
}

// asks begins to take bytes and returns when it has them or waits; what comes of it is told.
func (s *sender) asks(t *testing.T, n int64, patience time.Duration) <-chan bool {
	taken := make(chan bool, 1)
	go func() { taken <- s.Take(t.Context(), n, patience) }()
	synctest.Wait()
	return taken
}

func TestWhoeverHasBeenSendingForLongestGivesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := New(10)
		first, second, third := b.sender(), b.sender(), b.sender()
		require.True(t, <-first.asks(t, 6, time.Minute))
		require.True(t, <-second.asks(t, 4, time.Minute))
		taken := third.asks(t, 5, time.Minute)
		require.True(t, first.cut.Load())
		require.False(t, second.cut.Load(), "whoever began later is spared")
		first.Release()
		require.True(t, <-taken)
		require.True(t, first.End())
		require.False(t, second.End() || third.End())
		require.Zero(t, b.Reading())
	})
}

func TestWhoWaitsLosesPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := New(10)
		worked, asks := b.sender(), b.sender()
		require.True(t, <-worked.asks(t, 10, time.Minute))
		require.False(t, worked.End(), "it is all there, and is worked on")
		began := time.Now()
		require.False(t, <-asks.asks(t, 1, time.Minute))
		require.Equal(t, time.Minute, time.Since(began))
		worked.Release()
		require.True(t, <-asks.asks(t, 10, time.Minute), "who got nothing holds nothing")
	})
}

// Three who began one after the other. The second waits for what the first was told to let
// go, and is then told so itself, by the third.
func TestWhoWasToldToGiveWayLetsGoAtOnceAndCutsNobodyOff(t *testing.T) {
	t.Parallel()
	for name, known := range map[string]bool{"it has just cut somebody off": false, "it is who has been sending for longest": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := New(10)
				first := b.sender()
				require.True(t, <-first.asks(t, 8, time.Minute))
				if known {
					first.End() // there is nobody to be cut off
				}
				second := b.sender()
				require.True(t, <-second.asks(t, 2, time.Minute))
				waits := second.asks(t, 5, time.Minute)
				require.Equal(t, !known, first.cut.Load())
				began := time.Now()

				third := b.sender()
				taken := third.asks(t, 2, time.Minute)
				require.True(t, second.cut.Load())
				require.False(t, <-waits)
				require.False(t, third.cut.Load(), "whoever came last is cut off by one that was cut off")
				require.Zero(t, time.Since(began), "it has nothing to wait for")
				require.False(t, <-second.asks(t, 5, time.Minute), "nor later")
				second.Release()
				require.True(t, <-taken)
				require.True(t, second.End())
				require.False(t, third.End())
			})
		})
	}
}
