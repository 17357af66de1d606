package console

import (
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

// Config is everything the command can be told by the environment.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Tracking   Tracking

	TelemetryAddrs []string `env:"STATUS_ADDRS, default=127.0.0.1:9101,127.0.0.1:9102,127.0.0.1:9103,127.0.0.1:9104,127.0.0.1:9105" unit:"host:port, comma-separated" help:"TELEMETRY_ADDR of every instance, for hikyaku status"`

	// The sender's settings, for send-test.
	SMTPAddr     string        `env:"SMTP_ADDR, default=127.0.0.1:1025" unit:"host:port" help:"mail server that takes the messages"`
	SMTPHello    string        `env:"SMTP_HELLO, default=localhost" unit:"host name" help:"name given with EHLO"`
	SMTPTLS      string        `env:"SMTP_TLS, default=opportunistic" unit:"off, opportunistic or required" help:"opportunistic encrypts when the server offers STARTTLS, whatever its certificate; required sends nothing without a verified one"`
	SMTPUsername string        `env:"SMTP_USERNAME" help:"user for AUTH PLAIN; no authentication when unset"`
	SMTPPassword config.Secret `env:"SMTP_PASSWORD" help:"password for AUTH PLAIN"`
}

// Tracking is the renderer's settings, so that a preview is the message, without
// its insistence on a secret of your own: the command serves nothing. The type
// has the fields and not the methods.
type Tracking render.Config
