package console

import (
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func call(t *testing.T, env map[string]string, args ...string) answer {
	var out, errs locked
	if args == nil {
		args = []string{} // nil would be the test's own
	}
	code := run(t.Context(), args, envconfig.MapLookuper(env), strings.NewReader(""), &out, &errs)
	return answer{code, out.String(), errs.String()}
}

func TestEveryCommandTeaches(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		n++
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		a := call(t, nil, args...)
		require.Equal(t, exitDone, a.code, args)
		if c.Name() == "settings" {
			require.Contains(t, a.out, "CLICKHOUSE_URL")
			return
		}
		require.Contains(t, a.out, "--json", args)
		if c.Runnable() {
			require.Greater(t, len(c.Long)+len(c.Example), 60, "%s says too little", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	require.Greater(t, n, 15)
}

func TestWhatIsAwayIsExitThreeWithinTheTimeout(t *testing.T) {
	t.Parallel()
	env := map[string]string{"KAFKA_BROKERS": "127.0.0.1:1", "SCHEMA_REGISTRY_URL": "http://127.0.0.1:1", "CLICKHOUSE_URL": "http://127.0.0.1:1"}
	for _, c := range []struct {
		says string
		args []string
	}{
		{"KAFKA_BROKERS and SCHEMA_REGISTRY_URL name others", []string{"get", "campaign"}},
		{"127.0.0.1:1", []string{"topic", "read", "events"}},
		{"connection refused", []string{"dead-letters"}},
		{"scripts/quickstart", []string{"apply", "-f", "../../examples/online-retail"}},
		{"CLICKHOUSE_URL names another", []string{"funnel", "x"}},
		{"CLICKHOUSE_URL names another", []string{"sql", "SELECT 1"}},
	} {
		begun := time.Now()
		a := call(t, env, append(c.args, "--timeout", "1s")...)
		require.Equal(t, exitMissing, a.code, c.args)
		require.Contains(t, a.err, c.says)
		require.Less(t, time.Since(begun), 10*time.Second, "%v waits as long as without --timeout", c.args)
		require.Empty(t, a.out)
	}
}

func TestANamespaceThatNobodyProvisionedIsSaidToBeOne(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	env := map[string]string{"KAFKA_BROKERS": strings.Join(k.Config().Brokers, ","), "SCHEMA_REGISTRY_URL": k.Config().RegistryURL,
		"CLICKHOUSE_URL": clickhousetest.Config(t).URL, "NAMESPACE": "nowhere"}
	var a answer
	kafkatest.Eventually(t, func() bool {
		a = call(t, env, "get", "campaign", "--timeout", "1s") // in which a busy machine may not even have asked
		return strings.Contains(a.err, "provision makes them")
	}, "it is not said")
	require.Equal(t, exitMissing, a.code)
	a = call(t, env, "funnel", "x")
	require.Equal(t, exitMissing, a.code)
	require.Contains(t, a.err, "has provision run")
}

func TestWrongSettingsAreUsage(t *testing.T) {
	t.Parallel()
	a := call(t, map[string]string{"CLICKHOUSE_URL": "ftp://x"}, "funnel", "x")
	require.Equal(t, exitUsage, a.code)
	require.Contains(t, a.err, "CLICKHOUSE_URL")
	require.Equal(t, exitUsage, call(t, nil, "funnel", "x", "--nonsense").code)
	require.Equal(t, exitUsage, call(t, nil, "funnel").code)
	require.Equal(t, exitUsage, call(t, nil, "dead-letters", "nonsense").code)
	require.Equal(t, exitUsage, call(t, nil, "topic", "nonsense").code)
	require.Equal(t, exitDone, call(t, nil).code)
}

func TestNearest(t *testing.T) {
	t.Parallel()
	words := []string{"events", "engagements", "outcomes"}
	for written, want := range map[string]string{"evnts": "events", "outcome": "outcomes", "EVENTS": "events", "xyz": "", "engagment": "engagements"} {
		require.Equal(t, want, nearest(written, words), written)
	}
}

func TestNumbersForPeople(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		require.Equal(t, want, thousands(n))
	}
	require.Equal(t, "a b c [31m", printable("a\nb\tc\x1b[31m"))
}
