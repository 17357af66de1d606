package quickstart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
	"github.com/hikyaku/hikyaku/services/e2e/internal/quickstart/reader"
)

func TestMain(m *testing.M) {
	if os.Getenv("QUICKSTART_TEST_PARENT") != "" {
		parent()
		return
	}
	os.Exit(m.Run())
}

func TestTheLineHasEveryCountEvenWithoutAResult(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := (&Result{}).write(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Count(b.String(), "\n") != 1 || !strings.HasSuffix(b.String(), "\n") {
		t.Errorf("not one line: %q", b.String())
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"audience", "excluded", "requested", "rejected", "accepted", "failed", "uncertain", "expired", "cancelled", "parked", "waiting",
		"balanced", "delivered_unique", "opened", "clicked", "unsubscribed", "restarts", "seconds", "run_id", "campaign", "import"} {
		if _, ok := got[key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	if _, ok := got["excluded"].(map[string]any); !ok {
		t.Errorf("excluded is %v, want an object", got["excluded"])
	}
	if got["delivered_unique"] != nil {
		t.Errorf("delivered_unique is %v where no outbox was read", got["delivered_unique"])
	}
}

func TestTheBalanceOfTheCommandFitsIntoTheLine(t *testing.T) {
	t.Parallel()
	r := Result{Seconds: 1, RunID: "r"}
	const sheet = `{"run_id":"r","campaign_id":"c","state":"finished","note":"","audience":4,"repeats":0,"excluded":{"no_address":1},"requested":3,"rejected":0,"accepted":2,
		"failed":0,"uncertain":1,"expired":0,"cancelled":0,"parked":0,"waiting":0,"stored":{"accepted":2},"difference":{},"balanced":true}`
	if err := json.Unmarshal([]byte(sheet), &r); err != nil {
		t.Fatal(err)
	}
	if r.Audience != 4 || r.Excluded["no_address"] != 1 || r.Requested != 3 || r.Accepted != 2 || r.Uncertain != 1 || !r.Balanced || r.Seconds != 1 {
		t.Errorf("got %+v", r)
	}
}

func TestTheOutboxBearsWitness(t *testing.T) {
	t.Parallel()
	said := map[string]string{"1": "accepted", "2": "accepted", "3": "uncertain", "4": "failed"}
	mails := func(ids ...string) (all []reader.Delivery) {
		for _, id := range ids {
			all = append(all, reader.Delivery{MessageID: "<" + id + "@example.test>", Recipient: "p" + id + "@example.test"})
		}
		return all
	}
	for _, c := range []struct {
		what       string
		outbox     []reader.Delivery
		atMostOnce bool
		people     int64
		holds      bool
	}{
		{"all accepted are there", mails("1", "2"), true, 2, true},
		{"the uncertain one arrived", mails("1", "2", "3"), true, 3, true},
		{"another run's is among them", mails("1", "9", "2"), true, 2, true},
		{"an accepted one is not there", mails("1", "3"), true, 2, false},
		{"a failed one is there", mails("1", "2", "4"), true, 3, false},
		{"a copy", mails("1", "2", "1"), true, 2, false},
		{"a copy where that is allowed", mails("1", "2", "1"), false, 2, true},
	} {
		got, people, err := witness(c.outbox, said, c.atMostOnce)
		if (err == nil) != c.holds || people != c.people || int64(len(got)) != c.people {
			t.Errorf("%s: %d mails of %d people, %v", c.what, len(got), people, err)
		}
	}
}

func TestTwoMailsToOneAddressAreOnePerson(t *testing.T) {
	t.Parallel()
	mails, people, err := witness([]reader.Delivery{{Recipient: "a@x", MessageID: "<1@x>"}, {Recipient: "A@x", MessageID: "<2@x>"}}, map[string]string{"1": "accepted", "2": "accepted"}, true)
	if len(mails) != 2 || people != 1 || err != nil {
		t.Errorf("%d mails, %d people, %v", len(mails), people, err)
	}
}

func TestWhatIsAskedForIsChecked(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f.csv")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	none := func(string) string { return "" }
	for _, args := range [][]string{{"x"}, {"--people", "3"}, {"--input", file}, {"--spec", file}, {"--input", file + "x", "--spec", file}, {"--unknown"}} {
		if _, err := parse(args, none, "/root", io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	o, err := parse([]string{"--once", "--input", file, "--spec", file}, func(v string) string { return map[string]string{"HIKYAKU_DATA": "/data"}[v] }, "/root", io.Discard)
	if err != nil || !o.once || o.data != "/data" || o.people != 5000 {
		t.Errorf("got %+v, %v", o, err)
	}
	if o, _ := parse(nil, none, "/root", io.Discard); o.data != "/root/.hikyaku" {
		t.Errorf("data is kept in %s", o.data)
	}
}

func TestOnlyADataDirectoryIsWiped(t *testing.T) {
	t.Parallel()
	somebodys := t.TempDir()
	if err := os.WriteFile(filepath.Join(somebodys, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := wipe(somebodys); command.ExitCode(err) != command.Usage {
		t.Errorf("wiping somebody's files: %v", err)
	}
	ours := filepath.Join(t.TempDir(), "data")
	if err := wipe(ours); err != nil {
		t.Errorf("wiping what is not there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(ours, "kafka"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(ours, "embedded.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := wipe(ours); command.ExitCode(err) != command.Missing {
		t.Errorf("wiping what is in use: %v", err)
	}
	// Not by closing alone: a child that another test is just starting has the
	// file open too, until it is its own program.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := wipe(ours); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(ours); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// script writes an executable shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	// No child may begin meanwhile, of another test: until it is its own program it has
	// the file open for writing too, and such a file does not run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func keep(t *testing.T, text string) (*supervised, chan error) {
	t.Helper()
	fatal := make(chan error, 1)
	s := &supervised{
		program: program{name: "program", path: script(t, text), log: filepath.Join(t.TempDir(), "log"), grace: 5 * time.Second,
			up: func(_ context.Context, stdout string) error {
				if strings.Contains(stdout, "up") {
					return nil
				}
				return errors.New("not up")
			}},
		procs: process.NewStarter(), screen: newScreen(io.Discard, 1), restarts: new(atomic.Int64), hurry: make(chan struct{}),
		fatal: func(err error) { fatal <- err },
	}
	s.supervise()
	return s, fatal
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestAProgramThatEndsIsStartedAgainAndCounted(t *testing.T) {
	t.Parallel()
	s, _ := keep(t, "echo up $$\nexec sleep 600\n")
	pid := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		var n int
		_, _ = fmt.Sscanf(s.stdout.String(), "up %d", &n)
		return n
	}
	if err := s.awaitUp(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	first := pid()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another one runs", func() bool { return pid() != 0 && pid() != first })
	if n := s.restarts.Load(); n != 1 {
		t.Errorf("%d restarts counted, want 1", n)
	}
	s.halt()
	if err := syscall.Kill(pid(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it runs on after halt: %v", err)
	}
	if n := s.restarts.Load(); n != 1 {
		t.Errorf("%d restarts counted after halt, want 1", n)
	}
}

func TestAProgramWithBadSettingsIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	s, fatal := keep(t, "echo 'port 8081 is taken' >&2\nexit 3\n")
	select {
	case err := <-fatal:
		if command.ExitCode(err) != command.Missing || !strings.Contains(err.Error(), "port 8081 is taken") {
			t.Errorf("got %v, code %d", err, command.ExitCode(err))
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is said")
	}
	s.halt()
	if n := s.restarts.Load(); n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// parent is this test's program playing a quickstart that is killed.
func parent() {
	cmd := exec.Command("sleep", "600")
	if err := process.NewStarter().Start(cmd); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(cmd.Process.Pid)
	select {}
}

func TestKillingTheQuickstartKillsItsChildren(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "QUICKSTART_TEST_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the child is gone", func() bool {
		// Dead is enough: whoever adopts it may be slow to bury it.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}
