package console

import (
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Config is everything the command can be told by the environment.
type Config struct {
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Tracking   Tracking
	SMTPAddr   string `env:"SMTP_ADDR, default=127.0.0.1:1025" unit:"host:port" help:"mail server for send-test"`
}

// Tracking is what preview and send-test sign links with: the renderer's
// settings, so that a preview is the message. The command serves nothing, so
// it does not insist on a secret of your own.
type Tracking struct {
	URL    string        `env:"TRACKING_URL, default=http://127.0.0.1:8080" unit:"URL" help:"public address of the event-collector"`
	Secret config.Secret `env:"TRACKING_SECRET, default=insecure-development-secret" help:"signs the links; as for the renderer"`
	KeyID  string        `env:"TRACKING_KEY_ID, default=1" help:"id of the key that signs new links"`
}
