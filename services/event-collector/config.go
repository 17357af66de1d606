package collector

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go/logging"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/intake"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/tracking"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/webhook"
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
	Spool      SpoolConfig
	Hits       HitsConfig
	Webhooks   WebhookConfig
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
	AckTimeout   time.Duration `env:"INTAKE_ACK_TIMEOUT, default=500ms" help:"how long Kafka may take to acknowledge before everything goes into the spool"`
	HitTimeout   time.Duration `env:"TRACKING_HIT_TIMEOUT, default=1s" help:"how long a click or an open waits for Kafka or the spool before it is answered all the same"`
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

// WebhookConfig is whose reports the collector takes in. What is not set is not
// served.
type WebhookConfig struct {
	SESTopics   []string      `env:"SES_TOPIC_ARNS" unit:"ARN,ARN" help:"SNS topics that Amazon SES reports to; /w/ses takes them, and confirms their subscriptions"`
	SESQueueURL string        `env:"SES_QUEUE_URL" unit:"URL" help:"SQS queue with the reports of Amazon SES, through SNS (raw or not) or EventBridge; none when unset"`
	SQSEndpoint string        `env:"AWS_ENDPOINT_URL_SQS" unit:"URL" help:"SQS server; that of AWS_REGION when unset"`
	Region      string        `env:"AWS_REGION, default=us-east-1" help:"region of the queue"`
	LINE        config.Secret `env:"LINE_CHANNEL_SECRETS" help:"channel secrets of LINE, one or several with commas between; /w/line takes what they sign"`
	Sources     config.Secret `env:"WEBHOOK_SECRETS" help:"source:whsec_… of signed webhooks (Standard Webhooks), several with commas between, two of one source while its secret is replaced; /w/hooks/<source> takes them"`
}

// Validate refuses what nobody could be known by.
func (c WebhookConfig) Validate() error {
	for _, arn := range c.SESTopics {
		if _, ok := webhook.RegionHost(arn); !ok {
			return config.Invalid("SES_TOPIC_ARNS", arn, "ARNs such as arn:aws:sns:eu-central-1:123456789012:ses-events")
		}
	}
	if u, err := url.Parse(c.SESQueueURL); c.SESQueueURL != "" && (err != nil || u.Host == "") {
		return config.Invalid("SES_QUEUE_URL", c.SESQueueURL, "a URL such as https://sqs.eu-central-1.amazonaws.com/123456789012/ses-events")
	}
	if u, err := url.Parse(c.SQSEndpoint); c.SQSEndpoint != "" && (err != nil || u.Host == "") {
		return config.Invalid("AWS_ENDPOINT_URL_SQS", c.SQSEndpoint, "a URL such as http://127.0.0.1:4566")
	}
	if _, err := webhook.ParseLINE(string(c.LINE)); err != nil {
		return config.Invalid("LINE_CHANNEL_SECRETS", c.LINE, "channel secrets: "+err.Error())
	}
	if _, err := webhook.ParseSources(string(c.Sources)); err != nil {
		return config.Invalid("WEBHOOK_SECRETS", c.Sources, "source:whsec_…: "+err.Error())
	}
	return nil
}

// SpoolConfig is where the intake keeps what Kafka does not take in time.
type SpoolConfig struct {
	DataDir string `env:"HIKYAKU_DATA, default=.hikyaku" unit:"directory" help:"the spool lies in <directory>/<service>-<INSTANCE>/spool unless SPOOL_DIR is set; what is in it was acknowledged: the volume must outlive the process"`
	Dir     string `env:"SPOOL_DIR" unit:"directory" help:"where intake keeps what Kafka has not acknowledged in time"`
	MaxMiB  int    `env:"SPOOL_MAX_MIB, default=1024" unit:"MiB" help:"how large the spool may grow; then requests are answered with 503 until Kafka is back"`
}

// Validate refuses settings that cannot work.
func (c SpoolConfig) Validate() error {
	if c.MaxMiB < 1 || c.MaxMiB > 1<<20 {
		return config.Invalid("SPOOL_MAX_MIB", c.MaxMiB, "a number of MiB from 1 to 1048576")
	}
	return nil
}

// HitsConfig is what the collector learns and keeps of whoever opens and clicks.
type HitsConfig struct {
	Address string   `env:"TRACKING_ADDRESS, default=truncated" unit:"truncated, hashed, none" help:"what is kept of a client's address: its network (/24, or /48), a hash with TRACKING_SECRET and the day, or nothing; the classifier's rules about networks need the network"`
	Proxies []string `env:"TRUSTED_PROXIES" unit:"networks" help:"load balancers and proxies, as 10.0.0.0/8,192.0.2.1, whose X-Forwarded-For or else Forwarded is believed; nobody's unless named"`
}

// Validate refuses settings that cannot work.
func (c HitsConfig) Validate() error {
	if c.Address != tracking.Truncated && c.Address != tracking.Hashed && c.Address != tracking.None {
		return config.Invalid("TRACKING_ADDRESS", c.Address, "truncated, hashed or none")
	}
	if _, err := tracking.ParseProxies(c.Proxies); err != nil {
		return config.Invalid("TRUSTED_PROXIES", c.Proxies, "networks or addresses, as 10.0.0.0/8,192.0.2.1: "+err.Error())
	}
	return nil
}

// spool is where an instance's spool is, and how large it may grow.
func (c Config) spool(member string) spool.Options {
	dir := c.Spool.Dir
	if dir == "" {
		dir = filepath.Join(c.Spool.DataDir, member, "spool")
	}
	return spool.Options{Dir: dir, Label: c.Kafka.Namespace, MaxBytes: int64(c.Spool.MaxMiB) << 20}
}

// queue is SQS; nil if there is none to read. It opens no connection.
func (c WebhookConfig) queue() (*webhook.Queue, error) {
	if c.SESQueueURL == "" {
		return nil, nil
	}
	loaded, err := awsconfig.LoadDefaultConfig(context.Background(), awsconfig.WithRegion(c.Region),
		// A server that accepts and then says nothing is away.
		awsconfig.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.ResponseHeaderTimeout = webhook.ReceiveWait + 10*time.Second })),
		// It writes to stderr in a format of its own, about what is retried.
		awsconfig.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, fmt.Errorf("building the SQS client: %w", err)
	}
	client := sqs.NewFromConfig(loaded, func(o *sqs.Options) {
		if c.SQSEndpoint != "" {
			o.BaseEndpoint = &c.SQSEndpoint
		}
	})
	return &webhook.Queue{Client: client, URL: c.SESQueueURL}, nil
}

// SinkConfig is how the sink cuts its inserts.
type SinkConfig struct {
	Linger       time.Duration `env:"SINK_LINGER, default=2s" help:"how long the sink gathers records for an insert while they keep coming, longer (up to 5s) where several share the work; ClickHouse likes few large inserts"`
	BatchRecords int           `env:"SINK_BATCH_RECORDS, default=100000" unit:"records" help:"at most this many records go into one insert"`
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
