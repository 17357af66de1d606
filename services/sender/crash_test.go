package sender_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/sender"
	"github.com/hikyaku/hikyaku/services/sender/internal/smtp/fake"
)

// The test binary is the sender too, so that it can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_BE_THE_SENDER") != "" {
		lifecycle.Main(topic.Sender, func(cfg sender.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return sender.New(cfg, tel)
		})
	}
	os.Exit(m.Run())
}

// child starts the sender as a process of its own.
func (s *stage) child(instance string, session time.Duration) *os.Process {
	s.t.Helper()
	cfg := s.k.Config()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_BE_THE_SENDER=1", "INSTANCE="+instance, "SMTP_ADDR="+s.server.Addr, "SMTP_CONNECTIONS=4", "RETRY_BACKOFF=50ms",
		"KAFKA_BROKERS="+strings.Join(cfg.Brokers, ","), "SCHEMA_REGISTRY_URL="+cfg.RegistryURL, "NAMESPACE="+cfg.Namespace, "KAFKA_SESSION_TIMEOUT="+session.String())
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process
}

// ledger checks what was recorded against what the server has seen, and returns how
// many are uncertain.
func (s *stage) ledger(who []string, policy string) (uncertain int) {
	s.t.Helper()
	s.atRest()
	copies := map[string]int{}
	for _, m := range s.server.Mails() {
		copies[strings.TrimSuffix(m.To, "@example.test")]++
	}
	classes := map[string][]string{}
	for _, r := range s.k.All(s.t, topic.Outcomes) {
		var o event.Outcome
		s.k.Decode(s.t, r, &o)
		classes[o.UserID] = append(classes[o.UserID], o.Outcome)
	}
	for _, w := range who {
		require.NotEmpty(s.t, classes[w], "%s is forgotten", w)
		accepted := slices.Contains(classes[w], "accepted")
		if accepted {
			require.GreaterOrEqual(s.t, copies[w], 1, "%s: accepted, and the server knows nothing", w)
		}
		if policy == "at_least_once" {
			require.True(s.t, accepted, "%s: %v", w, classes[w])
			continue
		}
		require.LessOrEqual(s.t, copies[w], 1, "%s has two copies: %v", w, classes[w])
		if !accepted {
			require.Equal(s.t, "uncertain", classes[w][0], w)
			uncertain++
		}
	}
	return uncertain
}

// slow is a mail server that takes its time and, having taken as many messages as it
// may, lets the others wait: whoever watches it is never too late to find somebody at work.
type slow struct {
	may chan struct{} // one each
	n   int           // put into it so far
}

func newSlow(most int) *slow { return &slow{may: make(chan struct{}, most)} }

func (s *slow) end(string, int) string {
	<-s.may
	time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
	return fake.Accept
}

// upTo allows n messages in all.
func (s *slow) upTo(n int) {
	for ; s.n < n; s.n++ {
		s.may <- struct{}{}
	}
}

// all allows whatever comes.
func (s *slow) all() { close(s.may) }

// kill -9 at any instant: under at_most_once nobody gets two copies, nobody is
// forgotten, and only who may have been asked is uncertain.
func TestKilledAtAnyInstant(t *testing.T) {
	for _, policy := range []string{"at_most_once", "at_least_once"} {
		t.Run(policy, func(t *testing.T) {
			slow := newSlow(1500)
			s := newStage(t, fake.Script{End: slow.end})
			var who []string
			for i := range 1500 {
				who = append(who, fmt.Sprintf("p%04d", i))
			}
			s.write(func(m *event.Message) { m.Policy = policy }, who...)
			const kills = 8
			for range kills {
				p := s.child("0", 15*time.Second)
				enough := s.server.Accepted() + 2 + rand.IntN(100)
				slow.upTo(enough + 60) // in all at most 8 × 162: some are left for each child
				kafkatest.Eventually(t, func() bool { return s.server.Accepted() >= enough }, "the sender does not come back")
				require.NoError(t, p.Kill())
				_, err := p.Wait()
				require.NoError(t, err)
			}
			slow.all()
			s.child("0", 15*time.Second)
			uncertain := s.ledger(who, policy)
			require.LessOrEqual(t, uncertain, kills*2*4, "more than the window for each kill")
			t.Logf("%d kills, %d uncertain", kills, uncertain)
		})
	}
}

// A sender that is stopped past its session and wakes up again finds that others
// have its partitions, and calls nobody.
func TestPausedPastItsSession(t *testing.T) {
	slow := newSlow(1500)
	slow.upTo(400)
	s := newStage(t, fake.Script{End: slow.end})
	var who []string
	for i := range 1500 {
		who = append(who, fmt.Sprintf("p%04d", i))
	}
	s.write(nil, who...)
	const session = 3 * time.Second
	a := s.child("a", session)
	kafkatest.Eventually(t, func() bool { return s.server.Accepted() > 100 }, "no calls")
	require.NoError(t, a.Signal(syscall.SIGSTOP))
	paused := s.server.Accepted()
	slow.all()
	s.child("b", session)
	kafkatest.Eventually(t, func() bool { return s.server.Accepted() > paused+300 }, "nobody takes over")
	require.NoError(t, a.Signal(syscall.SIGCONT))
	uncertain := s.ledger(who, "at_most_once")
	require.LessOrEqual(t, uncertain, 2*4)
	t.Logf("%d uncertain", uncertain)
}
