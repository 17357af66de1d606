// Command sender hands rendered messages to a mail server, and says what came of
// each.
package main

import (
	"github.com/hikyaku/hikyaku/services/sender"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func main() {
	lifecycle.Main(topic.Sender, func(cfg sender.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
		return sender.New(cfg, tel)
	})
}
