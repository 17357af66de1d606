// Command embedded runs Kafka, a Schema Registry, ClickHouse, S3 and a mail
// outbox in one process; see package embedded.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}
