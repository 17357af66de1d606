package renderer

import (
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is everything the renderer can be told.
type Config struct {
	Kafka     kafka.Config
	Tracking  render.Config
	Telemetry telemetry.Config
	Lifecycle lifecycle.Config
}
