package collector

import (
	"time"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is everything the collector can be told.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Sink       SinkConfig
	Telemetry  telemetry.Config
	Lifecycle  lifecycle.Config
}

// SinkConfig is how the sink cuts its inserts.
type SinkConfig struct {
	Linger       time.Duration `env:"SINK_LINGER, default=200ms" help:"how long the sink gathers records for an insert; ClickHouse likes few large inserts"`
	BatchRecords int           `env:"SINK_BATCH_RECORDS, default=20000" unit:"records" help:"at most this many records go into one insert"`
	BatchMiB     int           `env:"SINK_BATCH_MIB, default=32" unit:"MiB" help:"records gathered for one insert hold about this much at most"`
}

// Validate refuses settings that cannot work.
func (c SinkConfig) Validate() error {
	switch {
	case c.Linger < 0 || c.Linger > 10*time.Second:
		return config.Invalid("SINK_LINGER", c.Linger, "a duration from 0 to 10s")
	case c.BatchRecords < 1:
		return config.Invalid("SINK_BATCH_RECORDS", c.BatchRecords, "a number of records above 0")
	case c.BatchMiB < 1:
		return config.Invalid("SINK_BATCH_MIB", c.BatchMiB, "a number of MiB above 0")
	}
	return nil
}
