// Command quickstart tries Hikyaku out; start it with scripts/quickstart.
package main

import (
	"os"

	"github.com/hikyaku/hikyaku/services/e2e/internal/quickstart"
)

func main() { os.Exit(quickstart.Main(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }
