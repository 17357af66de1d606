module github.com/hikyaku/hikyaku/services/sender

go 1.26.0

require (
	github.com/hikyaku/hikyaku/deploy/embedded v0.0.0
	github.com/hikyaku/hikyaku/schemas v0.0.0
	github.com/hikyaku/hikyaku/services/internal v0.0.0
)

require github.com/stretchr/testify v1.12.1 // indirect

replace github.com/hikyaku/hikyaku/schemas => ../../schemas

replace github.com/hikyaku/hikyaku/services/internal => ../../services/internal

replace github.com/hikyaku/hikyaku/deploy/embedded => ../../deploy/embedded
