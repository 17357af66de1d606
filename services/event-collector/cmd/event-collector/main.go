// Command event-collector takes in what people do, and fills ClickHouse.
package main

import (
	collector "github.com/hikyaku/hikyaku/services/event-collector"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func main() {
	lifecycle.Main(topic.Collector, func(cfg collector.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
		return collector.New(cfg, tel)
	})
}
