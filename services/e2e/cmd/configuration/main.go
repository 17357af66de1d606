// Command configuration writes docs/configuration.md from the settings of all
// services, so that the page cannot lie about the code. Run it in the root of
// the checkout.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"github.com/hikyaku/hikyaku/schemas/topic"
	resolver "github.com/hikyaku/hikyaku/services/audience-resolver"
	"github.com/hikyaku/hikyaku/services/console"
	collector "github.com/hikyaku/hikyaku/services/event-collector"
	"github.com/hikyaku/hikyaku/services/importer"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
	"github.com/hikyaku/hikyaku/services/renderer"
	"github.com/hikyaku/hikyaku/services/sender"
)

//go:generate go run . -o ../../../../docs/configuration.md

// page is the whole file.
func page() []byte {
	var b bytes.Buffer
	config.Markdown(&b, []config.Documented{
		{Service: topic.Importer, Config: importer.Config{}},
		{Service: topic.Resolver, Config: resolver.Config{}},
		{Service: topic.Renderer, Config: renderer.Config{}},
		{Service: topic.Sender, Config: sender.Config{}},
		{Service: topic.Collector, Config: collector.Config{}},
		{Service: topic.Console, Config: console.Config{}},
		// As the command provision has them.
		{Service: "provision", Config: struct {
			Telemetry  telemetry.Config
			Kafka      kafka.Config
			ClickHouse clickhouse.Config
			Provision  provision.Config
		}{}},
	})
	return b.Bytes()
}

func main() {
	to := flag.String("o", "docs/configuration.md", "file to write")
	flag.Parse()
	if err := os.WriteFile(*to, page(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "configuration:", err)
		os.Exit(1)
	}
}
