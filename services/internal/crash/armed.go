//go:build crashpoints

package crash

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// order is what the environment asks for, read once.
var order = sync.OnceValue(func() struct {
	point Point
	left  *atomic.Int64
} {
	name, n, _ := strings.Cut(os.Getenv("CRASH_AT"), "#")
	left := &atomic.Int64{}
	left.Store(1)
	if times, err := strconv.ParseInt(n, 10, 64); err == nil {
		left.Store(times)
	}
	return struct {
		point Point
		left  *atomic.Int64
	}{Point(name), left}
})

// At kills the process if this is where it was told to die.
func At(p Point) {
	if o := order(); o.point == p && o.left.Add(-1) == 0 {
		_, _ = os.Stderr.WriteString("crash: dying at " + os.Getenv("CRASH_AT") + "\n") // so that it can be told from another kill
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the kernel has done it, nothing more may happen
	}
}

// In is At for a step of the loop of a group.
func In(group topic.Group, s Step) { At(s.Of(group)) }

// Sabotaged reports whether this process was told to break the promise.
func Sabotaged(p Promise) bool { return Promise(os.Getenv("SABOTAGE")) == p }
