// Command importer runs the importer; its card is README.md.
package main

import (
	_ "time/tzdata" // zones of import specs, also where the system has none

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/importer"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func main() {
	lifecycle.Main(topic.Importer, func(cfg importer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
		return importer.New(cfg, tel)
	})
}
