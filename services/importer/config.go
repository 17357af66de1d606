package importer

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is the importer's settings.
type Config struct {
	Telemetry telemetry.Config
	Lifecycle lifecycle.Config
	Kafka     kafka.Config
	S3        S3Config

	PollInterval     time.Duration `env:"POLL_INTERVAL, default=2s" help:"how often the prefixes of the import specs are listed"`
	ImportsAtOnce    int           `env:"IMPORTS_AT_ONCE, default=2" unit:"imports" help:"objects read at the same time; each needs about four times TRANSACTION_BYTES of memory"`
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

// Validate refuses what could not work.
func (c Config) Validate() error {
	if c.PollInterval < 10*time.Millisecond {
		return config.Invalid("POLL_INTERVAL", c.PollInterval, "a duration of at least 10ms")
	}
	if c.ImportsAtOnce < 1 || c.ImportsAtOnce > maxOpen {
		return config.Invalid("IMPORTS_AT_ONCE", c.ImportsAtOnce, fmt.Sprintf("a number from 1 to %d", maxOpen))
	}
	if c.TransactionBytes < 64<<10 || c.TransactionBytes > 64<<20 {
		return config.Invalid("TRANSACTION_BYTES", c.TransactionBytes, "a number from 65536 to 67108864")
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
	doer := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.ResponseHeaderTimeout = 10 * time.Second
	})
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(c.Region),
		awsconfig.WithHTTPClient(doer),
		// It writes to stderr in a format of its own, about what is retried.
		awsconfig.WithLogger(logging.Nop{}),
		// Lists, heads, reads and writes of whole objects: doing one twice
		// changes nothing. Longer troubles are waited for by us, and said.
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
	loaded, err := awsconfig.LoadDefaultConfig(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("building the S3 client: %w", err)
	}
	return s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.BaseEndpoint = aws.String(c.Endpoint)
		o.UsePathStyle = true
	}), nil
}
