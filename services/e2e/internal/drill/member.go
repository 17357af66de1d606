package drill

import (
	"bufio"
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

// member is one process of the drill that is started again when it dies.
type member struct {
	d         *drill
	service   string // or "embedded", "outbox"
	instance  int
	path      string
	args      []string
	env       []string
	logPath   string
	telemetry string
	groups    []string // stages whose records tell that it works; Kafka group names without the namespace

	arms []string // points to die at, one after the other; CRASH_AT of the next start

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}
	started int64     // bytes of the log before the present start
	doing   *incident // what is being done to it, until it is back
	pausing bool
	armedAt string // CRASH_AT of the running process
	stop    bool
	stopped chan struct{}
	spells  []spell
}

// spell is a time of one process in one condition, for the timeline.
type spell struct {
	what byte // see draw.go
	from time.Duration
}

func (m *member) note(what byte) { // m.mu is held
	m.spells = append(m.spells, spell{what, m.d.since()})
}

// name is its name in groups, logs and the timeline.
func (m *member) name() string { return m.service + "-" + strconv.Itoa(m.instance) }

// supervise keeps it running until halt.
func (m *member) supervise() error {
	m.stopped = make(chan struct{})
	if err := m.start(); err != nil {
		return err
	}
	go m.keep()
	return nil
}

func (m *member) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cmd := exec.Command(m.path, m.args...)
	cmd.Env, cmd.Dir = m.env, m.d.dir
	m.armedAt = ""
	if len(m.arms) > 0 && !m.stop {
		m.armedAt, m.arms = m.arms[0], m.arms[1:]
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "CRASH_AT="+m.armedAt)
	}
	exited, from, err := m.d.procs.StartLogged(cmd, m.logPath)
	if err != nil {
		return command.Missingf("starting %s: %w", m.service, err)
	}
	m.cmd, m.started, m.exited = cmd, from, exited
	m.note('-')
	return nil
}

func (m *member) keep() {
	defer close(m.stopped)
	for {
		m.mu.Lock()
		exited := m.exited
		m.mu.Unlock()
		<-exited
		m.mu.Lock()
		if m.stop {
			m.mu.Unlock()
			return
		}
		m.note('x')
		i, state := m.doing, m.cmd.ProcessState
		asked := i != nil && i.Restart == 0
		if !asked {
			// It died of itself: at its point, or for a reason of its own.
			next := &incident{Kind: ended, Service: m.service, Instance: m.instance, At: m.d.since(), Share: m.d.share()}
			if status, ok := state.Sys().(syscall.WaitStatus); m.armedAt != "" && ok && status.Signal() == syscall.SIGKILL {
				next.Kind, next.Point = crashed, m.armedAt
			} else {
				next.Why = state.String() + ": " + process.LastLines(m.said(), 1)
			}
			if i != nil && next.Kind == crashed {
				i.Again = m.d.since()-i.Restart < m.d.back
				i = nil
			}
			m.d.record(next)
			if i == nil {
				i = next
				m.doing = i
			}
		}
		m.mu.Unlock()
		if m.service == "sender" {
			m.d.claimed(m, i, 100*time.Millisecond) // before somebody goes on with it
		}
		if i.Kind == ended {
			time.Sleep(200 * time.Millisecond) // as a supervisor does
		}
		if err := m.start(); err != nil {
			m.d.fail(err)
			return
		}
		m.mu.Lock()
		fresh := i.Restart == 0
		if fresh {
			i.Restart = m.d.since()
		}
		m.mu.Unlock()
		if fresh {
			go m.watch(i, nil)
		}
	}
}

// kill ends it as a power cut would. It is started again at once.
func (m *member) kill(i *incident) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doing = i
	i.At = m.d.since()
	_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
}

// freeze stops it for a while, and lets it go on.
func (m *member) freeze(i *incident, long time.Duration) {
	before := m.records()
	m.mu.Lock()
	pid := m.cmd.Process.Pid
	m.pausing, i.At = true, m.d.since()
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	m.note('p')
	m.mu.Unlock()
	if m.service == "sender" {
		m.d.claimed(m, i, 2*time.Second)
	}
	select {
	case <-time.After(long - (m.d.since() - i.At)):
	case <-m.d.ctx.Done():
	}
	m.mu.Lock()
	m.pausing, m.doing = false, i
	i.Restart = m.d.since()
	_ = syscall.Kill(pid, syscall.SIGCONT)
	m.note('-')
	m.mu.Unlock()
	m.watch(i, before)
}

// back tells whether nothing is being done to it.
func (m *member) back() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doing == nil && !m.pausing
}

// disarm keeps it from dying at points from now on, those of the running process excepted.
func (m *member) disarm() (left []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left, m.arms = m.arms, nil
	if m.armedAt != "" {
		left = append(left, m.armedAt)
	}
	return left
}

// halt asks it to end and waits; a paused one goes on first.
func (m *member) halt() {
	m.mu.Lock()
	m.stop = true
	pid, exited := m.cmd.Process.Pid, m.exited
	m.mu.Unlock()
	_ = syscall.Kill(pid, syscall.SIGCONT)
	process.StopGroup(pid, exited, 15*time.Second)
	<-m.stopped
}

// said is what it has printed since its last start.
func (m *member) said() string {
	b, err := os.ReadFile(m.logPath)
	if err != nil || int64(len(b)) < m.started {
		return ""
	}
	return string(b[m.started:])
}

// patience is how long a restarted process is watched.
const patience = 60 * time.Second

// watch notes when the process is at work again: it answers /readyz, which it
// does once it has its partitions, and each of its loops has dealt with a record
// since, or there is none for it. before are the counts of records of a process that was
// paused; nil for one that was started.
func (m *member) watch(i *incident, before map[string]float64) {
	m.mu.Lock()
	cmd := m.cmd
	m.mu.Unlock()
	var ready time.Time
	worked := map[string]bool{}
	for end := time.Now().Add(patience); time.Now().Before(end) && m.d.ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		m.mu.Lock()
		superseded := m.doing != i || m.stop
		if m.cmd != cmd {
			cmd, before = m.cmd, nil // it ended of itself and was started again: the clock runs on
			ready, worked = time.Time{}, map[string]bool{}
		}
		m.mu.Unlock()
		if superseded {
			return
		}
		if !m.up(m.d.ctx) {
			i.Awaited = "it does not say that it is ready"
			continue
		}
		if ready.IsZero() {
			ready = time.Now()
			i.Ready = m.d.since()
		}
		records := m.records()
		all := m.service != topic.Importer || m.importing()
		for _, g := range m.groups {
			if worked[g] {
				continue
			}
			if worked[g] = records[g] > before[g]; !worked[g] && time.Since(ready) > 200*time.Millisecond {
				worked[g], i.Awaited = m.d.idle(g, m)
			}
			all = all && worked[g]
		}
		if all {
			m.mu.Lock()
			if m.doing == i {
				i.Back = m.d.since()
				m.doing = nil
			}
			m.mu.Unlock()
			m.d.returned(i)
			return
		}
	}
	m.mu.Lock()
	if m.doing == i {
		m.doing = nil
	}
	m.mu.Unlock()
}

// importing tells whether an importer has committed rows, or knows that none are left.
func (m *member) importing() bool {
	_, body := m.d.get(m.d.ctx, "http://"+m.telemetry+"/metrics")
	known, waiting := 0.0, 0.0
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case name == "importer_rows_total" && n > 0:
			return true
		case name == `importer_imports{state="announced"}`, name == `importer_imports{state="reading"}`:
			waiting += n
			known += n
		case strings.HasPrefix(name, "importer_imports{"):
			known += n
		}
	}
	return known > 0 && waiting == 0
}

// up tells whether it serves.
func (m *member) up(ctx context.Context) bool {
	if m.telemetry == "" {
		m.mu.Lock()
		defer m.mu.Unlock()
		said := m.said()
		return strings.HasPrefix(said, "ready\n") || strings.Contains(said, "\nready\n")
	}
	code, _ := m.d.get(ctx, "http://"+m.telemetry+"/readyz")
	return code == http.StatusOK
}

// records are the records that each stage of the process has dealt with.
func (m *member) records() map[string]float64 {
	out := map[string]float64{}
	if m.telemetry == "" {
		return out
	}
	_, body := m.d.get(m.d.ctx, "http://"+m.telemetry+"/metrics")
	for lines := bufio.NewScanner(bytes.NewReader(body)); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), `stage_records_total{result="ok",stage="`)
		if !ok {
			continue
		}
		stage, value, ok := strings.Cut(rest, `"} `)
		if n, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[stage] = n
		}
	}
	return out
}
