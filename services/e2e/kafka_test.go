package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/e2e/internal/realkafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// apacheKafka is a broker of Apache Kafka of the test's own, which may be killed. Where
// it cannot be had the test is skipped, with the reason: it needs Java, and must have
// been fetched (scripts/kafka --fetch), since go test asks nobody outside this machine.
//
//	HIKYAKU_KAFKA  fetch: fetch it with Maven if it is not there; off: skip these tests
func apacheKafka(t *testing.T) *realkafka.Broker {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: a broker of Apache Kafka takes seconds")
	}
	wanted := os.Getenv("HIKYAKU_KAFKA")
	if wanted == "off" {
		t.Skip("HIKYAKU_KAFKA=off: tests that kill a broker of Apache Kafka are left out")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	libraries, err := realkafka.Libraries(root)
	if err != nil && wanted == "fetch" {
		libraries, err = realkafka.Fetch(t.Context(), root, testLog{t})
	}
	var missing *realkafka.MissingError
	if errors.As(err, &missing) {
		t.Skip(err)
	}
	require.NoError(t, err)
	b, err := realkafka.Start(t.Context(), realkafka.Options{Libraries: libraries, Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = b.Resume() // a paused one could not end
		b.Kill()
		if t.Failed() {
			if said, err := os.ReadFile(b.Log()); err == nil {
				t.Logf("the broker says:\n%s", tail(string(said)))
			}
		}
	})
	return b
}

const (
	// brokerConnections are the sender's: twice as many are its window.
	brokerConnections = 4
	brokerSession     = 6 * time.Second // the least that a broker allows by default
	// brokerDeadline is for what waits until everybody has found a broker again that
	// was away, and loaded what it had.
	brokerDeadline = 3 * deadline
)

// campaign is one that runs on a broker of the test's own, which may be killed, with
// one instance of everything as programs of their own.
type campaign struct {
	*stack
	broker  *realkafka.Broker
	running map[string]*process
	people  population
	run     string
	ended   int // senders that ended by themselves
}

// onApacheKafka returns a campaign that has begun to send.
func onApacheKafka(t *testing.T) *campaign {
	t.Helper()
	b := apacheKafka(t)
	c := &campaign{stack: startStackOn(t, b.Addr()), broker: b, running: map[string]*process{}, people: makePopulation(4000)}
	c.env["SMTP_CONNECTIONS"], c.env["KAFKA_SESSION_TIMEOUT"] = fmt.Sprint(brokerConnections), brokerSession.String()
	c.provision()
	for _, service := range serviceNames {
		c.running[service] = c.start(service, 0)
	}
	c.define("")
	c.drop(c.people)
	c.run = c.begin("greeting")()
	c.goesOn()
	return c
}

// goesOn waits until more mails have gone out.
func (c *campaign) goesOn() {
	c.t.Helper()
	before, began := c.mails(), time.Now()
	c.within(brokerDeadline, "the run goes on", func() bool { return c.mails() > before+100 })
	c.t.Logf("%d mails; the next hundred after %s", before, time.Since(began).Round(100*time.Millisecond))
}

func (c *campaign) within(limit time.Duration, what string, done func() bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(lookEvery) {
		c.supervise()
		if time.Now().After(end) {
			require.FailNow(c.t, "timed out waiting until "+what)
		}
	}
}

// killBroker ends the broker as a power cut would, does what is to be done while it
// is away, and starts it again on its data.
func (c *campaign) killBroker(meanwhile func()) {
	c.t.Helper()
	c.broker.Kill()
	meanwhile()
	require.NoError(c.t, c.broker.Restart(c.t.Context()))
}

// requireEnd waits for the end of the run and checks the books; at most so many people
// may be uncertain, and a window for each sender that ended by itself.
func (c *campaign) requireEnd(uncertain int64) {
	c.t.Helper()
	began := time.Now()
	var b balance
	c.within(brokerDeadline, "the run has ended", func() bool {
		b = c.balance(c.run)
		return over(b.State)
	})
	c.t.Logf("ended %s later, with %d uncertain", time.Since(began).Round(100*time.Millisecond), b.Uncertain)
	p := c.people
	require.True(c.t, b.Balanced, "%+v", b)
	require.Equal(c.t, "finished", b.State)
	require.Equal(c.t, p.audience, b.Audience)
	require.Equal(c.t, p.rejected, b.Rejected)
	require.LessOrEqual(c.t, b.Uncertain, uncertain+int64(c.ended*2*brokerConnections))
	// Whoever is uncertain would have been accepted or refused.
	require.LessOrEqual(c.t, b.Accepted, p.accepted())
	require.LessOrEqual(c.t, b.Failed, p.failed)
	require.Equal(c.t, p.accepted()+p.failed, b.Accepted+b.Failed+b.Uncertain)
	c.requireNobodyTwice(b.Accepted, b.Accepted+b.Uncertain)
	c.requireAllCommitted()
}

// A broker that is killed in the middle of a run and started again on its data has
// forgotten nothing that it acknowledged: nobody is lost and nobody gets two mails.
// Nobody is uncertain either, since whoever called is still there to say what came of
// it, and whom it had claimed and not called.
func TestAKilledBrokerLosesNobody(t *testing.T) {
	c := onApacheKafka(t)
	for range 3 {
		c.killBroker(func() {})
		c.goesOn()
	}
	c.requireEnd(0)
}

// A broker and the sender that are killed together leave at most one window of the
// sender's uncertain: what it had claimed.
func TestBrokerAndSenderKilledTogether(t *testing.T) {
	c := onApacheKafka(t)
	for range 2 {
		c.killBroker(c.running[topic.Sender].kill)
		c.goesOn()
	}
	c.requireEnd(2 * 2 * brokerConnections)
}

// A broker that stands still for longer than every session and transaction, and then
// goes on where it was, with all that has been sent to it meanwhile: nobody is lost
// and nobody gets two mails. Nobody is uncertain: a claim that was sent and not answered
// may have been heard, but it is its own sender that is assigned it again.
func TestABrokerThatStandsStillBeyondTheSession(t *testing.T) {
	c := onApacheKafka(t)
	for range 2 {
		require.NoError(c.t, c.broker.Pause())
		c.whileAway(outage(t, max(brokerSession, kafka.TransactionTimeout)+3*time.Second), c.supervise)
		require.NoError(c.t, c.broker.Resume())
		c.goesOn()
	}
	c.requireEnd(0)
}

// supervise starts a service again that was fenced by the name of its own former self.
// A coordinator that changes between a member's joining and its first assignment
// forgets the joining (docs/decisions/20261121-kfake-and-kafka.md); nothing else is a
// reason to end.
func (c *campaign) supervise() {
	c.t.Helper()
	for _, p := range c.running {
		select {
		case err := <-p.ended:
			if p.cmd.ProcessState.ExitCode() != 1 || strings.Count(p.log.String(), "FENCED_INSTANCE_ID") == 0 {
				p.ended <- err // for whoever stops it
				require.FailNow(c.t, fmt.Sprintf("%s has ended by itself: %v", p.service, err), tail(p.log.String()))
			}
			c.t.Logf("%s was fenced, and is started again", p.service)
			if p.service == topic.Sender {
				c.ended++
			}
			p.log.Reset()
			p.run(p.cmd.Path)
		default:
		}
	}
}
