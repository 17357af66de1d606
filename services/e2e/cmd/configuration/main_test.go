package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheCommittedPageIsCurrent(t *testing.T) {
	t.Parallel()
	committed, err := os.ReadFile("../../../../docs/configuration.md")
	require.NoError(t, err)
	require.Equal(t, string(page()), string(committed), "go generate ./services/e2e/cmd/configuration writes it anew")
}

func TestThePageNamesEveryService(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"KAFKA_BROKERS", "SMTP_ADDR", "WINDOW", "SINK_LINGER", "TRACKING_SECRET", "S3_BUCKET", "PARTITIONS", "POLL_INTERVAL"} {
		require.Contains(t, string(page()), "| `"+variable+"` |")
	}
	require.NotContains(t, string(page()), "insecure-development-secret")
}
