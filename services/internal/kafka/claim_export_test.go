package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// HookClaims lets a test end the loop as a kill would, or hold it up, at a point.
func HookClaims(o ClaimOptions, hook func(point string, r *kgo.Record) (kill bool)) ClaimOptions {
	o.hook = func(point claimPoint, r *kgo.Record) bool { return hook(string(point), r) }
	return o
}

// ErrKilled is what a loop returns that its hook has ended.
var ErrKilled = errKilled

// TelemetryOf returns what the cluster reports to.
func TelemetryOf(c *Cluster) *telemetry.Telemetry { return c.tel }

// Apart is how far batches are from one another.
var Apart = apart

// Lingers is how long a loop lingers that is at work and owns so many of p partitions.
func Lingers(linger time.Duration, own, p int) time.Duration {
	m := &membership{c: &Cluster{p: p}, partitions: map[string][]int32{}}
	for i := range own {
		for _, t := range []string{"events", "outcomes"} { // the same numbers of each
			m.partitions[t] = append(m.partitions[t], int32(i))
		}
	}
	return (&effectLoop{membership: m, o: EffectOptions{Linger: linger}, atWork: true}).linger()
}

// Sized is what bounds the next batch.
var Sized = sized
