package quickstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

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
	procs    *process.Starter
	screen   *screen
	restarts *atomic.Int64
	fatal    func(error) // it cannot run

	stop    chan struct{}
	hurry   chan struct{} // closed by a second Ctrl-C
	stopped chan struct{}

	mu     sync.Mutex
	stdout bytes.Buffer
	wasUp  bool
	exit   *process.Ended // how it last ended, while it does not run
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
	var stderr process.Tail
	cmd := exec.Command(s.path)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, io.MultiWriter(log, s), io.MultiWriter(log, &stderr)
	if err := s.procs.Start(cmd); err != nil {
		s.fatal(command.Missingf("starting %s: %w", s.name, err))
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
			process.StopGroup(cmd.Process.Pid, exited, s.grace)
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
	e := process.Ended{Code: cmd.ProcessState.ExitCode(), Stderr: stderr.String()}
	s.mu.Lock()
	wasUp := s.wasUp
	s.exit = &e
	s.mu.Unlock()
	// Settings do not mend themselves, nor does a port get free because we wait.
	if !wasUp && (e.Code == command.Usage || e.Code == command.Missing) {
		s.fatal(command.Exit(e.Code, errors.New(strings.TrimSpace(process.LastLines(e.Stderr, 3)))))
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
			why = fmt.Errorf("it ended with code %d: %s", exit.Code, process.LastLines(exit.Stderr, 1))
		} else if why = s.up(ctx, stdout); why == nil {
			s.mu.Lock()
			s.wasUp = true
			s.mu.Unlock()
			return nil
		}
		if time.Now().After(deadline) {
			return command.Missingf("%s is not ready after %s: %w; its log: %s", s.name, patience, why, s.log)
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
