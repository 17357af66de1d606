package sender_test

import (
	"testing"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/sender"
)

func TestSettingsThatCannotWorkAreRefusedByName(t *testing.T) {
	t.Parallel()
	load := func(env map[string]string) error {
		_, err := config.Load[sender.Config](t.Context(), envconfig.MapLookuper(env))
		return err
	}
	require.NoError(t, load(nil))
	require.NoError(t, load(map[string]string{"SMTP_USERNAME": "u", "SMTP_PASSWORD": "p"}), "on this machine")
	require.NoError(t, load(map[string]string{"SMTP_ADDR": "mail.example:587", "SMTP_USERNAME": "u", "SMTP_TLS": "required"}))
	for name, env := range map[string]map[string]string{
		"SMTP_ADDR":         {"SMTP_ADDR": "mail.example"},
		"SMTP_TLS":          {"SMTP_TLS": "yes"},
		"SMTP_CONNECTIONS":  {"SMTP_CONNECTIONS": "0"},
		"SMTP_CALL_TIMEOUT": {"SMTP_CALL_TIMEOUT": "1m"},
		"RETRY_BACKOFF":     {"RETRY_BACKOFF": "0s"},
		"RETRY_ATTEMPTS":    {"RETRY_ATTEMPTS": "0"},
	} {
		require.ErrorContains(t, load(env), name)
	}
	require.ErrorContains(t, load(map[string]string{"SMTP_ADDR": "mail.example:587", "SMTP_USERNAME": "u"}), "SMTP_TLS", "a password in the clear")
}
