package lifecycle

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// garbageBytes may gather before it is collected, however little is alive: a
	// service keeps a few MiB and makes as many with a hundred messages; by Go's
	// rule, as much garbage as is alive, it would collect all the time.
	garbageBytes = 64 << 20
	// leastAliveBytes bounds what follows from a heap that is almost empty.
	leastAliveBytes = 4 << 20
	// goPercent is Go's rule, for a service that keeps more than garbageBytes.
	goPercent = 100
)

// letGarbageGather trades memory for time: a collection begins when garbageBytes have
// gathered, or as much as is alive if that is more. GOGC and GOMEMLIMIT, if one of
// them is set, decide alone.
func letGarbageGather() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(garbagePercent(0))
	afterNextCollection()
}

// afterNextCollection sets the percentage anew after each collection. The marker is
// garbage at once, so what is to be done after its end is done after the next one.
func afterNextCollection() {
	runtime.AddCleanup(new(marker), func(struct{}) {
		now := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}}
		metrics.Read(now)
		want, is := garbagePercent(now[0].Value.Uint64()), int(now[1].Value.Uint64())
		// Setting it stops the world for a moment, so not for little.
		if want > is+is/8 || want < is-is/8 {
			debug.SetGCPercent(want)
		}
		afterNextCollection()
	}, struct{}{})
}

// marker holds a pointer: values without one may share their memory with others
// and outlive a collection.
type marker struct{ _ *byte }

// garbagePercent is how much garbage may gather, in percent of what is alive.
func garbagePercent(aliveBytes uint64) int {
	return max(goPercent, int(100*garbageBytes/max(aliveBytes, leastAliveBytes)))
}
