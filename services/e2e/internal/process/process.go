// Package process starts programs that do not outlive whoever started them, and
// ends them together with what they started themselves.
package process

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Starter starts children. The kernel's "die with the parent" means the
// thread that forked: one goroutine keeps one thread for it, as long as we live.
type Starter struct{ jobs chan func() }

// NewStarter returns a Starter that lives as long as this process.
func NewStarter() *Starter {
	p := &Starter{jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range p.jobs {
			job()
		}
	}()
	return p
}

// Start starts a command in a process group of its own.
func (p *Starter) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = attributes()
	started := make(chan error, 1)
	p.jobs <- func() { started <- cmd.Start() }
	return <-started
}

// StartLogged is Start with stdout and stderr appended to a file. exited is closed when
// the process has ended: its ProcessState says how. from is where in the file it begins.
func (p *Starter) StartLogged(cmd *exec.Cmd, path string) (exited chan struct{}, from int64, err error) {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, 0, err
	}
	defer log.Close() // the child has its own
	info, err := log.Stat()
	if err != nil {
		return nil, 0, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.Start(cmd); err != nil {
		return nil, 0, err
	}
	exited = make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState is asked
		close(exited)
	}()
	return exited, info.Size(), nil
}

// Tool is a program that runs to its end.
type Tool struct {
	Path string
	Args []string
	Dir  string
	Env  []string
	Log  io.Writer // gets stdout and stderr too; nil for none
}

// Ended says how a tool ended.
type Ended struct {
	Code           int
	Stdout, Stderr string
}

// LastLine is what the tool said last on stderr: the error, for programs that say one.
func (e Ended) LastLine() string { return LastLines(e.Stderr, 1) }

// Run waits for the tool. The error is about starting it, or the context's.
func (p *Starter) Run(ctx context.Context, t Tool) (Ended, error) {
	cmd := exec.Command(t.Path, t.Args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = t.Dir, t.Env, &stdout, &stderr
	if t.Log != nil {
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, t.Log), io.MultiWriter(&stderr, t.Log)
	}
	if err := p.Start(cmd); err != nil {
		return Ended{}, err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the code below is read from ProcessState
		close(exited)
	}()
	select {
	case <-exited:
	case <-ctx.Done():
		StopGroup(cmd.Process.Pid, exited, 5*time.Second)
		return Ended{}, context.Cause(ctx)
	}
	return Ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, nil
}

// StopGroup asks a process and what it started to end, and ends them after the grace.
func StopGroup(pid int, exited <-chan struct{}, grace time.Duration) {
	_ = syscall.Kill(-pid, syscall.SIGTERM) // it may be gone
	select {
	case <-exited:
	case <-time.After(grace):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-exited
}

// Tail keeps the end of what is written to it.
type Tail struct{ kept []byte }

const tailBytes = 8 << 10

// Write implements io.Writer.
func (t *Tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*tailBytes {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *Tail) String() string { return string(t.kept) }

// LastLines returns the last n lines that say anything.
func LastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
