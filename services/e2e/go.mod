module github.com/hikyaku/hikyaku/services/e2e

go 1.26.0

require (
	github.com/hikyaku/hikyaku/deploy/embedded v0.0.0
	github.com/hikyaku/hikyaku/schemas v0.0.0
	github.com/hikyaku/hikyaku/services/audience-resolver v0.0.0
	github.com/hikyaku/hikyaku/services/console v0.0.0
	github.com/hikyaku/hikyaku/services/event-collector v0.0.0
	github.com/hikyaku/hikyaku/services/importer v0.0.0
	github.com/hikyaku/hikyaku/services/internal v0.0.0
	github.com/hikyaku/hikyaku/services/renderer v0.0.0
	github.com/hikyaku/hikyaku/services/sender v0.0.0
)

require (
	github.com/compose-spec/compose-go/v2 v2.16.2 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/pierrec/lz4/v4 v4.1.33 // indirect
	github.com/sethvargo/go-envconfig v1.4.3 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	github.com/twmb/franz-go v1.22.2 // indirect
	github.com/twmb/franz-go/pkg/kadm v1.19.0 // indirect
	github.com/twmb/franz-go/pkg/kmsg v1.15.0 // indirect
)

replace github.com/hikyaku/hikyaku/schemas => ../../schemas

replace github.com/hikyaku/hikyaku/services/internal => ../../services/internal

replace github.com/hikyaku/hikyaku/deploy/embedded => ../../deploy/embedded

replace github.com/hikyaku/hikyaku/services/importer => ../../services/importer

replace github.com/hikyaku/hikyaku/services/audience-resolver => ../../services/audience-resolver

replace github.com/hikyaku/hikyaku/services/renderer => ../../services/renderer

replace github.com/hikyaku/hikyaku/services/sender => ../../services/sender

replace github.com/hikyaku/hikyaku/services/event-collector => ../../services/event-collector

replace github.com/hikyaku/hikyaku/services/console => ../../services/console
