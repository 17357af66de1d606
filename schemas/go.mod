module github.com/hikyaku/hikyaku/schemas

go 1.26.0
