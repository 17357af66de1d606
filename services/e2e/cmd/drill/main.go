// Command drill kills parts of a running pipeline and says who got their mail; start it with scripts/drill.
package main

import (
	"os"

	"github.com/hikyaku/hikyaku/services/e2e/internal/drill"
)

func main() { os.Exit(drill.Main(os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }
