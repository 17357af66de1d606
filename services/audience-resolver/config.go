package resolver

import (
	"time"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is everything the resolver can be told.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Telemetry  telemetry.Config
	Lifecycle  lifecycle.Config

	DataDir       string        `env:"HIKYAKU_DATA, default=.hikyaku" unit:"directory" help:"the person store lives in <directory>/<service>-<INSTANCE>; it is a cache of Kafka and may be deleted while the service is stopped"`
	StoreCacheMiB int64         `env:"STORE_CACHE_MIB, default=64" unit:"MiB" help:"memory for the person store's block cache"`
	Window        int           `env:"WINDOW, default=20000" unit:"messages" help:"at most about this many messages of a run are between admission and an ending, over all partitions"`
	StaleAfter    time.Duration `env:"STALE_AFTER, default=10m" help:"a run that waits longer than this for fresh data is shown as blocked"`
	TrackingKeyID string        `env:"TRACKING_KEY_ID, default=1" help:"id of the key that signs the links of new messages; the renderer and the collector must have its secret"`
}

// Validate refuses settings that cannot work.
func (c Config) Validate() error {
	if c.Window < 1 {
		return config.Invalid("WINDOW", c.Window, "a number of messages above 0")
	}
	if c.StoreCacheMiB < 1 {
		return config.Invalid("STORE_CACHE_MIB", c.StoreCacheMiB, "a number of MiB above 0")
	}
	if c.StaleAfter <= 0 {
		return config.Invalid("STALE_AFTER", c.StaleAfter, "a duration above 0")
	}
	if c.TrackingKeyID == "" || len(c.TrackingKeyID) > 255 {
		return config.Invalid("TRACKING_KEY_ID", c.TrackingKeyID, "1 to 255 characters")
	}
	return nil
}
