module github.com/hikyaku/hikyaku/deploy/embedded

go 1.26.0
