// Command renderer turns message requests into finished messages.
package main

import (
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
	"github.com/hikyaku/hikyaku/services/renderer"
)

func main() {
	lifecycle.Main(topic.Renderer, func(cfg renderer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
		return renderer.New(cfg, tel)
	})
}
