// Command hikyaku writes definitions, starts and follows runs, and answers
// questions about them.
package main

import (
	"os"

	"github.com/sethvargo/go-envconfig"

	"github.com/hikyaku/hikyaku/services/console"
)

func main() {
	os.Exit(console.Main(os.Args[1:], envconfig.OsLookuper(), os.Stdin, os.Stdout, os.Stderr))
}
