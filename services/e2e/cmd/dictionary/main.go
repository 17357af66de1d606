// Command dictionary writes docs/data-dictionary.md from the migrations, so that
// the page cannot lie about the tables. It reads their text and needs no database;
// a test of services/internal/clickhouse compares it with one. Run it in the root
// of the checkout.
package main

import (
	"flag"
	"fmt"
	"os"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
)

//go:generate go run . -o ../../../../docs/data-dictionary.md

func main() {
	to := flag.String("o", "docs/data-dictionary.md", "file to write")
	flag.Parse()
	page, err := migrations.Dictionary()
	if err == nil {
		err = os.WriteFile(*to, page, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "dictionary:", err)
		os.Exit(1)
	}
}
