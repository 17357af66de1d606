package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// programs builds the services' binaries once for all tests.
var programs = sync.OnceValues(func() (string, error) { return build() })

// build builds the services' binaries, with what else go build is told, into a
// directory that TestMain removes.
func build(more ...string) (string, error) {
	dir, err := os.MkdirTemp("", "hikyaku-e2e-")
	if err != nil {
		return "", err
	}
	building.Lock()
	built = append(built, dir)
	building.Unlock()
	args := append([]string{"build", "-o", dir}, more...)
	for _, name := range serviceNames {
		args = append(args, fmt.Sprintf("github.com/hikyaku/hikyaku/services/%s/cmd/%s", name, name))
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the services: %w\n%s", err, out)
	}
	return dir, nil
}

var serviceNames = []string{topic.Importer, topic.Resolver, topic.Renderer, topic.Sender, topic.Collector}

func TestMain(m *testing.M) {
	if options := os.Getenv(embeddedOptions); options != "" {
		os.Exit(runEmbedded(options))
	}
	code := m.Run()
	for _, dir := range built {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// built is where build has built.
var (
	building sync.Mutex
	built    []string
)

// process is one instance of a service as a program of its own.
type process struct {
	s        *stack
	service  string
	instance int
	cmd      *exec.Cmd
	log      bytes.Buffer
	ended    chan error
}

func (s *stack) start(service string, instance int) *process {
	s.t.Helper()
	dir, err := programs()
	require.NoError(s.t, err)
	p := &process{s: s, service: service, instance: instance}
	p.run(filepath.Join(dir, service))
	s.t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		err := <-p.ended
		if err != nil || s.t.Failed() {
			s.t.Logf("%s-%d: %v\n%s", service, instance, err, tail(p.log.String()))
		}
		require.NoError(s.t, err, "%s-%d ends cleanly when it is told to", service, instance)
	})
	return p
}

func (p *process) run(binary string) {
	p.s.t.Helper()
	p.cmd = exec.Command(binary)
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for k, v := range p.s.env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	p.cmd.Env = append(p.cmd.Env, fmt.Sprintf("INSTANCE=%d", p.instance))
	if p.instance > 0 { // links lead to the first
		p.cmd.Env = append(p.cmd.Env, "COLLECTOR_ADDR="+free)
	}
	require.NoError(p.s.t, p.cmd.Start())
	p.ended = make(chan error, 1)
	cmd, ended := p.cmd, p.ended
	go func() { ended <- cmd.Wait() }()
}

// kill ends the process as a power cut would, and starts it again.
func (p *process) kill() {
	p.s.t.Helper()
	require.NoError(p.s.t, p.cmd.Process.Kill())
	<-p.ended
	p.run(p.cmd.Path)
}

func tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// Three instances of every service share the work, and everybody is accounted
// for: once in the books, once in the mail server.
func TestThreeInstancesOfEverythingBalance(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.provision()
	for _, service := range serviceNames {
		for i := range 3 {
			s.start(service, i)
		}
	}
	s.define("")
	people := makePopulation(1000)
	s.drop(people)

	b := s.run("greeting")
	s.requireBalance(people, b)
	s.requireOneMailEach(people.accepted())
	s.requireAllCommitted()
}

// Every service is killed once in the middle of a run and comes back. Only the
// kill of the sender may leave people uncertain, no more than two windows of its
// connections; nobody is lost and nobody gets two mails.
func TestKilledServicesComeBackAndTheRunBalances(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	s.env["SMTP_CONNECTIONS"] = "4"
	s.provision()
	running := map[string]*process{}
	for _, service := range serviceNames {
		running[service] = s.start(service, 0)
	}
	s.define("")
	people := makePopulation(4000)
	s.drop(people)

	var started struct {
		RunID string `json:"run_id"`
	}
	s.hikyaku(&started, "start", "greeting")
	for _, service := range []string{topic.Resolver, topic.Renderer, topic.Sender, topic.Collector} {
		before := s.mails()
		s.eventually("the run goes on", func() bool { return s.mails() > before+50 || s.balance(started.RunID).Waiting == 0 && before > 0 })
		running[service].kill()
	}
	b := s.ended(started.RunID)
	require.True(t, b.Balanced, "%+v", b)
	require.Equal(t, people.audience, b.Audience)
	require.LessOrEqual(t, b.Uncertain, int64(2*4))
	// Whoever is uncertain would have been accepted or refused.
	require.LessOrEqual(t, b.Accepted, people.accepted())
	require.LessOrEqual(t, b.Failed, people.failed)
	require.Equal(t, people.accepted()+people.failed, b.Accepted+b.Failed+b.Uncertain)
	require.Equal(t, people.rejected, b.Rejected)
	s.requireNobodyTwice(b.Accepted, b.Accepted+b.Uncertain)
	s.requireAllCommitted()
}

func (s *stack) balance(run string) balance {
	s.t.Helper()
	var b balance
	s.hikyaku(&b, "balance", run)
	return b
}

// mails is the number of mails the server has taken so far.
func (s *stack) mails() int {
	s.t.Helper()
	index, err := os.ReadFile(filepath.Join(s.outbox, "index.tsv"))
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(s.t, err)
	return bytes.Count(index, []byte("\n"))
}
