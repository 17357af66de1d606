package kafka

import (
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

// Lingers is how long a member lingers.
var Lingers = lingers

// Sized is what bounds the next batch.
var Sized = sized
