module github.com/hikyaku/hikyaku/schemas

go 1.26.0

require (
	github.com/stretchr/testify v1.12.1 // indirect
	github.com/twmb/franz-go v1.22.2 // indirect
)
