package collector

import (
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/intake"
)

// The roles of an instance.
const (
	RoleIntake = "intake" // HTTP to Kafka
	RoleSink   = "sink"   // Kafka to ClickHouse
)

// Config is everything the collector can be told.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Tracking   render.Config
	Intake     IntakeConfig
	Sink       SinkConfig
	Telemetry  telemetry.Config
	Lifecycle  lifecycle.Config

	Roles []string `env:"ROLES, default=intake,sink" unit:"intake, sink" help:"what this instance does; the two can run apart"`
}

// Has reports whether this instance has the role.
func (c Config) Has(role string) bool { return slices.Contains(c.Roles, role) }

// Validate refuses unknown roles, and a public write key unless it was asked for.
func (c Config) Validate() error {
	if len(c.Roles) == 0 {
		return config.Invalid("ROLES", "", "intake, sink or both")
	}
	for _, role := range c.Roles {
		if role != RoleIntake && role != RoleSink {
			return config.Invalid("ROLES", role, "intake, sink or both")
		}
	}
	if !c.Has(RoleIntake) {
		return nil
	}
	keys, err := intake.ParseKeys(string(c.Intake.WriteKeys), c.Intake.WriteKeyRate)
	if err != nil {
		return config.Invalid("WRITE_KEYS", c.Intake.WriteKeys, "key, or name:key,name:key:scope+scope: "+err.Error())
	}
	if keys.Find(InsecureWriteKey) != nil && !c.Tracking.Insecure {
		return config.Invalid("WRITE_KEYS", c.Intake.WriteKeys, "a write key of your own (or ALLOW_INSECURE_DEFAULTS=true on a laptop): everybody knows the default")
	}
	return nil
}

// InsecureWriteKey is the write key of a stack that nobody has configured. It is
// public, so it is accepted only where the collector is told to.
const InsecureWriteKey = "dev"

// IntakeConfig is how the collector takes in what comes over HTTP.
type IntakeConfig struct {
	Addr         string        `env:"COLLECTOR_ADDR, default=127.0.0.1:8080" unit:"host:port" help:"where /v1, /c, /o and /u are served; TRACKING_URL must lead there"`
	Connections  int           `env:"COLLECTOR_CONNECTIONS, default=4096" unit:"connections" help:"at most this many are open at COLLECTOR_ADDR; one more closes the one that has been at rest for longest"`
	WriteKeys    config.Secret `env:"WRITE_KEYS, default=dev" help:"who may send events: one key, or several as name:key,name:key:scope+scope; the name stands in the records; the scopes are events and profiles, both if none is given"`
	WriteKeyRate float64       `env:"WRITE_KEY_RATE, default=0" unit:"events/s" help:"what each write key may send on the average, a second's worth at once; beyond it 429; 0 is no limit"`
	Origins      []string      `env:"INTAKE_ORIGINS, default=*" unit:"https://host" help:"the web pages that may send events, several with commas; * is all, as write keys in pages are public; off is none"`
	AckTimeout   time.Duration `env:"INTAKE_ACK_TIMEOUT, default=5s" help:"how long a request waits for Kafka before it is answered with 503"`
	HitTimeout   time.Duration `env:"TRACKING_HIT_TIMEOUT, default=1s" help:"how long a click or an open waits for Kafka before it is answered all the same"`
	Concurrency  int           `env:"INTAKE_CONCURRENCY, default=512" unit:"requests" help:"at most this many requests to /v1 are worked on at once, when their bodies are there"`
	MemoryMiB    int           `env:"INTAKE_MEMORY_MIB, default=64" unit:"MiB" help:"bodies of requests to /v1 that are read or worked on take this much at most; where there is no more, whoever sends slowest gives way"`
}

// Validate refuses settings that cannot work.
func (c IntakeConfig) Validate() error {
	switch {
	case c.AckTimeout <= 0 || c.AckTimeout > 20*time.Second:
		return config.Invalid("INTAKE_ACK_TIMEOUT", c.AckTimeout, "a duration above 0, at most 20s")
	case c.HitTimeout <= 0 || c.HitTimeout > 20*time.Second:
		return config.Invalid("TRACKING_HIT_TIMEOUT", c.HitTimeout, "a duration above 0, at most 20s")
	case slices.ContainsFunc(c.Origins, func(o string) bool { return o != "*" && o != "off" && !strings.Contains(o, "://") }):
		return config.Invalid("INTAKE_ORIGINS", strings.Join(c.Origins, ","), "origins such as https://shop.example, or *, or off")
	case c.Concurrency < 1:
		return config.Invalid("INTAKE_CONCURRENCY", c.Concurrency, "a number of requests above 0")
	case c.Connections < 1:
		return config.Invalid("COLLECTOR_CONNECTIONS", c.Connections, "a number of connections above 0")
	case c.MemoryMiB < 1:
		return config.Invalid("INTAKE_MEMORY_MIB", c.MemoryMiB, "a number of MiB above 0")
	case c.WriteKeyRate < 0:
		return config.Invalid("WRITE_KEY_RATE", c.WriteKeyRate, "a number of events per second, or 0")
	}
	return nil
}

// SinkConfig is how the sink cuts its inserts.
type SinkConfig struct {
	Linger       time.Duration `env:"SINK_LINGER, default=2s" help:"how long the sink gathers records for an insert while they keep coming, longer (up to 5s) where several share the work; ClickHouse likes few large inserts"`
	BatchRecords int           `env:"SINK_BATCH_RECORDS, default=50000" unit:"records" help:"at most this many records go into one insert"`
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
