package sender

import (
	"net"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/sender/internal/smtp"
)

// Config is everything the sender can be told.
type Config struct {
	Kafka     kafka.Config
	Telemetry telemetry.Config
	Lifecycle lifecycle.Config

	SMTPAddr        string `env:"SMTP_ADDR, default=127.0.0.1:1025" unit:"host:port" help:"mail server that takes the messages"`
	SMTPConnections int    `env:"SMTP_CONNECTIONS, default=32" unit:"connections" help:"open at the same time; twice as many messages are claimed at most, which is how many people one kill can leave uncertain"`
	// Servers' own limits are often 100; meeting one costs a round trip, no
	// message. Behind a load balancer a connection must end some time.
	SMTPMessages int           `env:"SMTP_MESSAGES_PER_CONNECTION, default=1000" unit:"messages" help:"a connection is closed after so many; a server that closes earlier costs nothing"`
	SMTPIdle     time.Duration `env:"SMTP_IDLE_LIMIT, default=60s" help:"a connection unused for longer is closed"`
	SMTPHello    string        `env:"SMTP_HELLO, default=localhost" unit:"host name" help:"name given with EHLO"`

	SMTPTLS      string        `env:"SMTP_TLS, default=opportunistic" unit:"off, opportunistic or required" help:"opportunistic encrypts when the server offers STARTTLS, whatever its certificate; required sends nothing without a verified one"`
	SMTPUsername string        `env:"SMTP_USERNAME" help:"user for AUTH PLAIN; no authentication when unset"`
	SMTPPassword config.Secret `env:"SMTP_PASSWORD" help:"password for AUTH PLAIN"`

	ConnectTimeout time.Duration `env:"SMTP_CONNECT_TIMEOUT, default=10s" help:"connecting, greeting, EHLO, STARTTLS and AUTH together"`
	ReplyTimeout   time.Duration `env:"SMTP_REPLY_TIMEOUT, default=15s" help:"each reply before the message itself"`
	DataTimeout    time.Duration `env:"SMTP_DATA_TIMEOUT, default=30s" help:"writing the message and the reply to it; when it passes, the message is uncertain"`
	CallTimeout    time.Duration `env:"SMTP_CALL_TIMEOUT, default=45s" help:"handing over one message, all of the above together; at most 50s, to stay below the group's rebalance timeout"`

	RetryBackoff  time.Duration `env:"RETRY_BACKOFF, default=30s" help:"pause after the first temporary refusal; it doubles with each, give or take a quarter, up to an hour"`
	RetryAttempts int           `env:"RETRY_ATTEMPTS, default=5" unit:"attempts" help:"attempts in all before a temporary refusal is a failure"`
}

// Validate refuses settings that cannot work.
func (c Config) Validate() error {
	host, _, err := net.SplitHostPort(c.SMTPAddr)
	if err != nil {
		return config.Invalid("SMTP_ADDR", c.SMTPAddr, "host:port")
	}
	switch smtp.TLS(c.SMTPTLS) {
	case smtp.TLSOff, smtp.TLSOpportunistic:
		// Anybody between here and the server could take STARTTLS out of its
		// announcement and read the password.
		if c.SMTPUsername != "" && !config.Loopback(host) {
			return config.Invalid("SMTP_TLS", c.SMTPTLS, "required, because SMTP_USERNAME is set and the server is not on this machine")
		}
	case smtp.TLSRequired:
	default:
		return config.Invalid("SMTP_TLS", c.SMTPTLS, "off, opportunistic or required")
	}
	if c.SMTPConnections < 1 || c.SMTPConnections > 1000 {
		return config.Invalid("SMTP_CONNECTIONS", c.SMTPConnections, "a number from 1 to 1000")
	}
	if c.SMTPMessages < 1 {
		return config.Invalid("SMTP_MESSAGES_PER_CONNECTION", c.SMTPMessages, "a number above 0")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"SMTP_IDLE_LIMIT", c.SMTPIdle}, {"SMTP_CONNECT_TIMEOUT", c.ConnectTimeout}, {"SMTP_REPLY_TIMEOUT", c.ReplyTimeout},
		{"SMTP_DATA_TIMEOUT", c.DataTimeout}, {"RETRY_BACKOFF", c.RetryBackoff},
	} {
		if d.value <= 0 {
			return config.Invalid(d.name, d.value, "a duration above 0")
		}
	}
	if c.CallTimeout <= 0 || c.CallTimeout > kafka.MaxCallTimeout {
		return config.Invalid("SMTP_CALL_TIMEOUT", c.CallTimeout, "a duration above 0 and at most "+kafka.MaxCallTimeout.String())
	}
	if c.RetryAttempts < 1 {
		return config.Invalid("RETRY_ATTEMPTS", c.RetryAttempts, "a number above 0")
	}
	return nil
}

func (c Config) server() smtp.Config {
	return smtp.Config{Addr: c.SMTPAddr, Hello: c.SMTPHello, TLS: smtp.TLS(c.SMTPTLS), Username: c.SMTPUsername, Password: string(c.SMTPPassword),
		ConnectTimeout: c.ConnectTimeout, ReplyTimeout: c.ReplyTimeout, DataTimeout: c.DataTimeout}
}
