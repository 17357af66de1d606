package main

import (
	"bytes"
	"testing"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
)

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	require.Equal(t, lifecycle.ExitDone, run(t.Context(), []string{"--help"}, envconfig.MapLookuper(nil), &out, &errs))
	for _, want := range []string{"doing it twice changes", "PARTITIONS", "16", "REPLICATION_FACTOR", "BOUNDED_RETENTION_BYTES", "CLICKHOUSE_URL", "KAFKA_BROKERS"} {
		require.Contains(t, out.String(), want)
	}
	require.Empty(t, errs.String())
}

func TestWrongSettingsAreRefusedBeforeAnythingIsOpened(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"PARTITIONS":         {"PARTITIONS": "0"},
		"NAMESPACE":          {"NAMESPACE": "With Spaces"},
		"REPLICATION_FACTOR": {"REPLICATION_FACTOR": "many"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, lifecycle.ExitUsage, run(t.Context(), nil, envconfig.MapLookuper(env), &out, &errs))
		require.Contains(t, errs.String(), name)
	}
	var out, errs bytes.Buffer
	require.Equal(t, lifecycle.ExitDone, run(t.Context(), []string{"-check"}, envconfig.MapLookuper(nil), &out, &errs), errs.String())
	require.Equal(t, lifecycle.ExitUsage, run(t.Context(), []string{"extra"}, envconfig.MapLookuper(nil), &out, &errs))
}

func TestWhatIsAwayIsExitThree(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	env := envconfig.MapLookuper(map[string]string{"KAFKA_BROKERS": "127.0.0.1:1", "PROVISION_PATIENCE": "1s"})
	require.Equal(t, lifecycle.ExitMissing, run(t.Context(), nil, env, &out, &errs))
	require.Contains(t, errs.String(), "looking at the topics of namespace hikyaku")
	require.Contains(t, errs.String(), "connection refused")
}
