package quickstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// processes starts children. The kernel's "die with the parent" means the
// thread that forked: one goroutine keeps one thread for it, as long as we live.
type processes struct{ jobs chan func() }

func newProcesses() *processes {
	p := &processes{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range p.jobs {
			job()
		}
	}()
	return p
}

func (p *processes) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = attributes()
	started := make(chan error, 1)
	p.jobs <- func() { started <- cmd.Start() }
	return <-started
}

// tool is a program that runs to its end.
type tool struct {
	path string
	args []string
	dir  string
	env  []string
	log  io.Writer // gets stderr too; nil for none
}

// ended says how a tool ended.
type ended struct {
	code           int
	stdout, stderr string
}

// lastLine is what the tool said last on stderr: the error, for programs that say one.
func (e ended) lastLine() string { return lastLines(e.stderr, 1) }

// run waits for the tool. The error is about starting it, or the context's.
func (p *processes) run(ctx context.Context, t tool) (ended, error) {
	cmd := exec.Command(t.path, t.args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = t.dir, t.env, &stdout, &stderr
	if t.log != nil {
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, t.log), io.MultiWriter(&stderr, t.log)
	}
	if err := p.start(cmd); err != nil {
		return ended{}, err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the code below is read from ProcessState
		close(exited)
	}()
	select {
	case <-exited:
	case <-ctx.Done():
		stopGroup(cmd.Process.Pid, exited, 5*time.Second)
		return ended{}, context.Cause(ctx)
	}
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, nil
}

// stopGroup asks a process and what it started to end, and ends them after the grace.
func stopGroup(pid int, exited <-chan struct{}, grace time.Duration) {
	_ = syscall.Kill(-pid, syscall.SIGTERM) // it may be gone
	select {
	case <-exited:
	case <-time.After(grace):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-exited
}

// program is one that runs until it is told to stop.
type program struct {
	name  string
	path  string
	env   []string
	log   string        // file
	grace time.Duration // from SIGTERM to SIGKILL
	// up reports whether it serves, or why not. It is given what the program has printed on stdout since it was started.
	up func(ctx context.Context, stdout string) error
}

// supervised keeps a program running: when it ends it is started again, after a
// pause that grows while it does not stay up.
type supervised struct {
	program
	procs    *processes
	screen   *screen
	restarts *atomic.Int64
	fatal    func(error) // it cannot run

	stop    chan struct{}
	hurry   chan struct{} // closed by a second Ctrl-C
	stopped chan struct{}

	mu     sync.Mutex
	stdout bytes.Buffer
	wasUp  bool
	exit   *ended // how it last ended, while it does not run
}

const (
	firstPause = 200 * time.Millisecond
	longPause  = 10 * time.Second
	stayedUp   = 30 * time.Second
)

// supervise starts the program and returns at once.
func (s *supervised) supervise() {
	s.stop, s.stopped = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(s.stopped)
		pause := firstPause
		for {
			began := time.Now()
			if !s.once() {
				return
			}
			s.restarts.Add(1)
			if time.Since(began) > stayedUp {
				pause = firstPause
			}
			select {
			case <-s.stop:
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, longPause)
		}
	}()
}

// once runs the program until it ends; false means that it must not be started again.
func (s *supervised) once() bool {
	log, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		s.fatal(err)
		return false
	}
	defer log.Close()
	s.mu.Lock()
	s.stdout.Reset()
	s.exit = nil
	s.mu.Unlock()
	var stderr tail
	cmd := exec.Command(s.path)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, io.MultiWriter(log, s), io.MultiWriter(log, &stderr)
	if err := s.procs.start(cmd); err != nil {
		s.fatal(missing("starting %s: %w", s.name, err))
		return false
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says how it ended
		close(exited)
	}()
	select {
	case <-s.stop:
		grace := make(chan struct{})
		go func() {
			defer close(grace)
			stopGroup(cmd.Process.Pid, exited, s.grace)
		}()
		select {
		case <-grace:
		case <-s.hurry:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-exited
		}
		return false
	case <-exited:
	}
	e := ended{code: cmd.ProcessState.ExitCode(), stderr: stderr.String()}
	s.mu.Lock()
	wasUp := s.wasUp
	s.exit = &e
	s.mu.Unlock()
	// Settings do not mend themselves, nor does a port get free because we wait.
	if !wasUp && (e.code == exitUsage || e.code == exitMissing) {
		s.fatal(&failure{e.code, errors.New(strings.TrimSpace(lastLines(e.stderr, 3)))})
		return false
	}
	s.screen.line("%s ended (%s) and is started again; its log: %s", s.name, cmd.ProcessState, s.log)
	return true
}

// Write takes the program's stdout.
func (s *supervised) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdout.Len() < 64<<10 { // it says everything worth reading when it starts
		s.stdout.Write(p)
	}
	return len(p), nil
}

// awaitUp waits until the program serves.
func (s *supervised) awaitUp(ctx context.Context, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		s.mu.Lock()
		stdout, exit := s.stdout.String(), s.exit
		s.mu.Unlock()
		why := error(nil)
		if exit != nil {
			why = fmt.Errorf("it ended with code %d: %s", exit.code, lastLines(exit.stderr, 1))
		} else if why = s.up(ctx, stdout); why == nil {
			s.mu.Lock()
			s.wasUp = true
			s.mu.Unlock()
			return nil
		}
		if time.Now().After(deadline) {
			return missing("%s is not ready after %s: %w; its log: %s", s.name, patience, why, s.log)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// halt asks the program to end and waits until it has.
func (s *supervised) halt() {
	close(s.stop)
	<-s.stopped
}

// pause waits, unless the context ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

const tailBytes = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*tailBytes {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.kept) }

// lastLines returns the last n lines that say anything.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
