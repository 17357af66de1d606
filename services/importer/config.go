package importer

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go/logging"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is the importer's settings.
type Config struct {
	Telemetry  telemetry.Config
	Lifecycle  lifecycle.Config
	Kafka      kafka.Config
	S3         S3Config
	Announce   AnnounceConfig
	ClickHouse clickhouse.Config // read by exports alone

	PinpointPrefix string `env:"PINPOINT_PREFIX, default=imports/pinpoint/" unit:"prefix" help:"segment files of Amazon Pinpoint are imported from here without an import spec; the first folder names the segment; off for nowhere"`

	RejectsPrefix string `env:"REJECTS_PREFIX" unit:"prefix" help:"reject files and reports are written under the object's key with this before it; beside the object when unset"`

	PollInterval     time.Duration `env:"POLL_INTERVAL, default=2s" help:"how often work is looked for: imports that others have left, and new objects unless LIST_INTERVAL is longer"`
	ListInterval     time.Duration `env:"LIST_INTERVAL, default=0s" help:"how often the prefixes of the import specs are listed; 0s is every minute with a queue, else every POLL_INTERVAL"`
	ImportsAtOnce    int           `env:"IMPORTS_AT_ONCE, default=2" unit:"imports" help:"large objects read at the same time, and as many that are smaller than TRANSACTION_BYTES; each needs about four times that of memory"`
	MaxAhead         time.Duration `env:"MAX_AHEAD, default=2s" help:"how far large objects run ahead of the audience-resolver and the event-collector, in time that these need to catch up, so that what comes after them, small objects and unsubscriptions among it, need not wait until they are loaded; 0s is as far as they can"`
	ExportsAtOnce    int           `env:"EXPORTS_AT_ONCE, default=1" unit:"exports" help:"written at the same time; each needs about 100 MiB of memory"`
	TransactionBytes int           `env:"TRANSACTION_BYTES, default=8388608" unit:"bytes" help:"records committed together with the progress; a transaction must take less than 2 s"`
}

// S3Config is where the objects are.
type S3Config struct {
	Bucket          string        `env:"S3_BUCKET, default=hikyaku" help:"bucket with the files to import"`
	Endpoint        string        `env:"AWS_ENDPOINT_URL_S3, default=http://127.0.0.1:7070" unit:"URL" help:"S3 server, spoken to in path style"`
	Region          string        `env:"AWS_REGION, default=us-east-1" help:"region of the bucket"`
	AccessKeyID     string        `env:"AWS_ACCESS_KEY_ID" help:"access key; the SDK's own chain of credentials when unset"`
	SecretAccessKey config.Secret `env:"AWS_SECRET_ACCESS_KEY" help:"its secret"`
}

// AnnounceConfig is who says that an object has appeared.
type AnnounceConfig struct {
	QueueURL string        `env:"SQS_QUEUE_URL" unit:"URL" help:"SQS queue with the bucket's notifications, S3's or EventBridge's, also through SNS; none when unset"`
	Endpoint string        `env:"AWS_ENDPOINT_URL_SQS" unit:"URL" help:"SQS server; that of AWS_REGION when unset"`
	Listen   string        `env:"ANNOUNCE_LISTEN" unit:"host:port" help:"where notifications are taken by HTTP, from MinIO, versitygw or EventBridge; nowhere when unset"`
	Token    config.Secret `env:"ANNOUNCE_TOKEN" help:"what they must send as bearer token or as password; needed unless ANNOUNCE_LISTEN is on loopback"`
}

// Validate refuses what could not work.
func (c Config) Validate() error {
	if c.PinpointPrefix != pinpointOff && c.PinpointPrefix != "" && (!strings.HasSuffix(c.PinpointPrefix, "/") || strings.HasPrefix(c.PinpointPrefix, "/")) {
		return config.Invalid("PINPOINT_PREFIX", c.PinpointPrefix, "off, or a prefix that ends in / and does not begin with one")
	}
	if strings.HasPrefix(c.RejectsPrefix, "/") {
		return config.Invalid("REJECTS_PREFIX", c.RejectsPrefix, "a prefix that does not begin with /")
	}
	if c.PollInterval < 10*time.Millisecond {
		return config.Invalid("POLL_INTERVAL", c.PollInterval, "a duration of at least 10ms")
	}
	if c.ListInterval != 0 && c.ListInterval < c.PollInterval {
		return config.Invalid("LIST_INTERVAL", c.ListInterval, "0s or a duration of at least POLL_INTERVAL")
	}
	if c.ImportsAtOnce < 1 || c.ImportsAtOnce > maxOpen {
		return config.Invalid("IMPORTS_AT_ONCE", c.ImportsAtOnce, fmt.Sprintf("a number from 1 to %d", maxOpen))
	}
	if c.MaxAhead < 0 {
		return config.Invalid("MAX_AHEAD", c.MaxAhead, "0s or a duration")
	}
	if c.ExportsAtOnce < 1 || c.ExportsAtOnce > maxOpen {
		return config.Invalid("EXPORTS_AT_ONCE", c.ExportsAtOnce, fmt.Sprintf("a number from 1 to %d", maxOpen))
	}
	if c.TransactionBytes < 64<<10 || c.TransactionBytes > 64<<20 {
		return config.Invalid("TRANSACTION_BYTES", c.TransactionBytes, "a number from 65536 to 67108864")
	}
	return nil
}

// pinpointOff is said instead of a prefix, since a variable that is empty counts as not set.
const pinpointOff = "off"

// pinpointPrefix is empty if there is none.
func (c Config) pinpointPrefix() string {
	if c.PinpointPrefix == pinpointOff {
		return ""
	}
	return c.PinpointPrefix
}

// listWithQueue is how often prefixes are listed beside a queue: for what appeared
// before the queue or the spec was set up, and for what a notification got lost of.
const listWithQueue = time.Minute

func (c Config) listInterval() time.Duration {
	if c.ListInterval == 0 && c.Announce.QueueURL != "" {
		return listWithQueue
	}
	return c.ListInterval
}

// Validate refuses addresses that are none, and an open door.
func (c AnnounceConfig) Validate() error {
	if u, err := url.Parse(c.QueueURL); c.QueueURL != "" && (err != nil || u.Host == "") {
		return config.Invalid("SQS_QUEUE_URL", c.QueueURL, "a URL such as https://sqs.eu-central-1.amazonaws.com/123456789012/hikyaku")
	}
	if u, err := url.Parse(c.Endpoint); c.Endpoint != "" && (err != nil || u.Host == "") {
		return config.Invalid("AWS_ENDPOINT_URL_SQS", c.Endpoint, "a URL such as http://127.0.0.1:4566")
	}
	if c.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return config.Invalid("ANNOUNCE_LISTEN", c.Listen, "host:port")
	}
	if c.Token == "" && !config.Loopback(host) {
		return config.Invalid("ANNOUNCE_LISTEN", c.Listen, "an address on loopback, since ANNOUNCE_TOKEN is not set")
	}
	return nil
}

// Validate refuses an address that is none.
func (c S3Config) Validate() error {
	if u, err := url.Parse(c.Endpoint); err != nil || u.Host == "" {
		return config.Invalid("AWS_ENDPOINT_URL_S3", c.Endpoint, "a URL such as http://127.0.0.1:7070")
	}
	if c.Bucket == "" {
		return config.Invalid("S3_BUCKET", "", "the name of a bucket")
	}
	return nil
}

// client opens no connection.
func (c S3Config) client() (*s3.Client, error) {
	// A server that accepts and then says nothing is away; the body of a large
	// object has its own deadline, between two reads.
	loaded, err := c.load(10 * time.Second)
	if err != nil {
		return nil, fmt.Errorf("building the S3 client: %w", err)
	}
	return s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.BaseEndpoint = aws.String(c.Endpoint)
		o.UsePathStyle = true
	}), nil
}

// queue is SQS with the same account as S3; nil if there is none.
func (c Config) queue(receive time.Duration) (*sqs.Client, error) {
	if c.Announce.QueueURL == "" {
		return nil, nil
	}
	loaded, err := c.S3.load(receive + 10*time.Second)
	if err != nil {
		return nil, fmt.Errorf("building the SQS client: %w", err)
	}
	return sqs.NewFromConfig(loaded, func(o *sqs.Options) {
		if c.Announce.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Announce.Endpoint)
		}
	}), nil
}

// load makes what the clients have in common. The header of an answer is waited for
// no longer than the patience.
func (c S3Config) load(patience time.Duration) (aws.Config, error) {
	doer := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.ResponseHeaderTimeout = patience
	})
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(c.Region),
		awsconfig.WithHTTPClient(doer),
		// It writes to stderr in a format of its own, about what is retried.
		awsconfig.WithLogger(logging.Nop{}),
		// Lists, heads, reads and writes of whole objects, and what is done with
		// messages: doing one twice changes nothing. Longer troubles are waited for by us, and said.
		awsconfig.WithRetryMaxAttempts(3),
		// Some S3 servers refuse the checksums that the SDK adds by default,
		// and a part of an object has none to check.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if c.AccessKeyID != "" {
		options = append(options, awsconfig.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(c.AccessKeyID, string(c.SecretAccessKey), "")))
	}
	return awsconfig.LoadDefaultConfig(context.Background(), options...)
}
