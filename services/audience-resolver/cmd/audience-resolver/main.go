// Command audience-resolver decides who gets a campaign, and when it is done.
package main

import (
	resolver "github.com/hikyaku/hikyaku/services/audience-resolver"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func main() {
	lifecycle.Main(topic.Resolver, func(cfg resolver.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
		return resolver.New(cfg, tel)
	})
}
