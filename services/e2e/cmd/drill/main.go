// Command drill kills parts of a running pipeline and says who got their mail, or which events were lost; start it with scripts/drill.
package main

import (
	"os"

	"github.com/hikyaku/hikyaku/services/e2e/internal/drill"
	"github.com/hikyaku/hikyaku/services/e2e/internal/intakedrill"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "intake" {
		os.Exit(intakedrill.Main(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(drill.Main(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}
