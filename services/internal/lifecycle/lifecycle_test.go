package lifecycle_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// The test binary is also the service under test: a child process is the only
// honest way to see signals and exit codes.
func TestMain(m *testing.M) {
	if os.Getenv("LIFECYCLE_CHILD") != "" {
		os.Args = append(os.Args[:1], strings.Fields(os.Getenv("CHILD_ARGS"))...)
		lifecycle.Main("child", build)
	}
	os.Exit(m.Run())
}

type settings struct {
	telemetry.Config
	Lifecycle lifecycle.Config
	Do        string        `env:"LIFECYCLE_CHILD" help:"what the child does"`
	Password  config.Secret `env:"CHILD_PASSWORD, default=hunter2"`
}

func build(c settings, tel *telemetry.Telemetry) (lifecycle.Service, error) {
	if c.Do == "refuse" {
		return nil, config.Invalid("LIFECYCLE_CHILD", c.Do, "something else")
	}
	return child{c.Do, tel}, nil
}

type child struct {
	do  string
	tel *telemetry.Telemetry
}

// Run prints "running" when it runs, so that the parent knows when to signal.
func (c child) Run(ctx context.Context) error {
	fmt.Println("running", c.tel.Addr())
	switch c.do {
	case "end":
		return nil
	case "fatal":
		return errors.New("it broke")
	case "away":
		return fault.Transient(errors.New("the broker stayed away"))
	case "panic":
		panic("oh")
	}
	work, stop := lifecycle.Drain(ctx)
	defer stop()
	<-ctx.Done()
	fmt.Println("draining", work.Err())
	switch c.do {
	case "drain":
		return nil
	case "hand up":
		return fmt.Errorf("polling: %w", ctx.Err())
	case "overdue":
		<-work.Done()
		fmt.Println("overdue", errors.Is(context.Cause(work), lifecycle.ErrDrainTimeout))
		return context.Cause(work)
	case "watched":
		io.Copy(io.Discard, os.Stdin) // until the parent has looked
		return nil
	}
	select {} // "hang"
}

type process struct {
	*exec.Cmd
	lines  *bufio.Scanner
	stderr *bytes.Buffer
	stdin  io.WriteCloser
}

func start(t *testing.T, do string, env ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0]), stderr: &bytes.Buffer{}}
	p.Env = append(os.Environ(), append([]string{"LIFECYCLE_CHILD=" + do, "TELEMETRY_ADDR="}, env...)...)
	p.Stderr = p.stderr
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	// A child that hangs although it should not must fail the test, not hold it up.
	timer := time.AfterFunc(30*time.Second, func() { p.Process.Kill() })
	t.Cleanup(func() { timer.Stop(); p.Process.Kill() })
	return p
}

// await reads lines until one starts with word, and returns the rest of it.
func (p *process) await(t *testing.T, word string) string {
	t.Helper()
	for p.lines.Scan() {
		if rest, ok := strings.CutPrefix(p.lines.Text(), word); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("the child ended before it said %q; stderr:\n%s", word, p.stderr)
	return ""
}

// code waits for the end.
func (p *process) code(t *testing.T) int {
	t.Helper()
	for p.lines.Scan() {
	}
	p.Wait()
	return p.ProcessState.ExitCode()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	for _, c := range []struct {
		name, do string
		env      []string
		want     int
		says     string
	}{
		{"a service that is done", "end", nil, 0, "stopped"},
		{"an unknown error", "fatal", nil, 1, "it broke"},
		{"a panic", "panic", nil, 1, "panic"},
		{"something stayed away", "away", nil, 3, "the broker stayed away"},
		{"a setting that build refuses", "refuse", nil, 2, "LIFECYCLE_CHILD"},
		{"a setting that does not parse", "end", []string{"DRAIN_TIMEOUT=soon"}, 2, "DRAIN_TIMEOUT"},
		{"an unknown flag", "end", []string{"CHILD_ARGS=-chekc"}, 2, "chekc"},
		{"an argument", "end", []string{"CHILD_ARGS=now"}, 2, "now"},
		{"-check stops before Run", "fatal", []string{"CHILD_ARGS=-check"}, 0, ""},
		{"-check finds what build refuses", "refuse", []string{"CHILD_ARGS=-check"}, 2, "LIFECYCLE_CHILD"},
		{"a taken port", "end", []string{"TELEMETRY_ADDR=" + taken.Addr().String()}, 3, "TELEMETRY_ADDR " + taken.Addr().String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, c.do, c.env...)
			if got := p.code(t); got != c.want || !strings.Contains(p.stderr.String(), c.says) {
				t.Errorf("exit code %d, want %d with %q; stderr:\n%s", got, c.want, c.says, p.stderr)
			}
		})
	}
}

func TestHelpPrintsEveryVariableAndNoSecret(t *testing.T) {
	t.Parallel()
	p := start(t, "fatal", "CHILD_ARGS=-help")
	var out strings.Builder
	for p.lines.Scan() {
		out.WriteString(p.lines.Text() + "\n")
	}
	if code := p.code(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"DRAIN_TIMEOUT", "10s", "TELEMETRY_ADDR", "LOG_LEVEL", "CHILD_PASSWORD", "what the child does"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("the secret's default is shown:\n%s", &out)
	}
}

func TestASignalDrainsTheWorkInHand(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		for _, do := range []string{"drain", "hand up"} {
			p := start(t, do)
			p.await(t, "running")
			p.Process.Signal(s)
			if got := p.await(t, "draining"); got != "<nil>" {
				t.Errorf("%v: the signal interrupted the work: %s", s, got)
			}
			if code := p.code(t); code != 0 {
				t.Errorf("%v, %s: exit code %d; stderr:\n%s", s, do, code, p.stderr)
			}
		}
	}
}

func TestASecondSignalEndsItHard(t *testing.T) {
	t.Parallel()
	p := start(t, "hang", "DRAIN_TIMEOUT=1h")
	p.await(t, "running")
	p.Process.Signal(syscall.SIGTERM)
	p.await(t, "draining")
	p.Process.Signal(syscall.SIGTERM)
	if code := p.code(t); code != 1 || !strings.Contains(p.stderr.String(), "second signal") {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

func TestTheDrainDeadlineEndsTheWorkThenTheProcess(t *testing.T) {
	t.Parallel()
	p := start(t, "overdue", "DRAIN_TIMEOUT=10ms")
	p.await(t, "running")
	p.Process.Signal(syscall.SIGTERM)
	if got := p.await(t, "overdue"); got != "true" {
		t.Errorf("the cause of the end is not the drain time: %s", got)
	}
	if code := p.code(t); code != 1 {
		t.Errorf("unfinished work ended with exit code %d", code)
	}

	p = start(t, "hang", "DRAIN_TIMEOUT=10ms")
	p.await(t, "running")
	p.Process.Signal(syscall.SIGTERM)
	if code := p.code(t); code != 1 || !strings.Contains(p.stderr.String(), "still busy") {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

func TestReadinessTurnsRedFirstAndTelemetryEndsLast(t *testing.T) {
	t.Parallel()
	p := start(t, "watched", "TELEMETRY_ADDR=127.0.0.1:0")
	addr := p.await(t, "running")
	ready := func() int {
		r, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if got := ready(); got != 200 {
		t.Errorf("ready: %d", got)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.await(t, "draining")
	if got := ready(); got != 503 {
		t.Errorf("while draining: %d", got)
	}
	p.stdin.Close()
	if code := p.code(t); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

func TestDrainOutlivesTheSignalByTheDrainTimeHoweverLateItIsAsked(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(context.Context) context.Context{
		"carried":     func(ctx context.Context) context.Context { return lifecycle.WithDrain(ctx, lifecycle.DefaultDrain) },
		"not carried": func(ctx context.Context) context.Context { return ctx },
	} {
		synctest.Test(t, func(t *testing.T) {
			base, signal := context.WithCancel(t.Context())
			ctx := with(base)
			early, stopEarly := lifecycle.Drain(ctx)
			defer stopEarly()
			signal()
			time.Sleep(lifecycle.DefaultDrain - time.Second)
			late, stopLate := lifecycle.Drain(ctx)
			defer stopLate()
			synctest.Wait()
			if early.Err() != nil || late.Err() != nil {
				t.Fatalf("%s: interrupted early: %v, %v", name, early.Err(), late.Err())
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if !errors.Is(context.Cause(early), lifecycle.ErrDrainTimeout) {
				t.Errorf("%s: early: %v", name, context.Cause(early))
			}
			if name == "carried" && !errors.Is(context.Cause(late), lifecycle.ErrDrainTimeout) {
				t.Errorf("a batch begun late got more than what was left: %v", late.Err())
			}
			time.Sleep(lifecycle.DefaultDrain)
		})
	}
}
