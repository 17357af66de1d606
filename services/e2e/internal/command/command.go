// Package command is what the programs of this module share that are started from the
// checkout, end with one of five exit codes and say in one line of JSON what came out.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The exit codes.
const (
	Done    = 0
	Broken  = 1 // a promise did not hold
	Usage   = 2
	Missing = 3   // something needed is missing, away, or its port is taken
	Stopped = 130 // Ctrl-C before there was a result
)

// Failure is an error with the exit code it ends the program with.
type Failure struct {
	Code int
	Err  error
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the error itself.
func (f *Failure) Unwrap() error { return f.Err }

// Exit is an error that ends the program with a code of its own.
func Exit(code int, err error) error { return &Failure{code, err} }

// Usagef is an error that ends the program with the code Usage.
func Usagef(format string, a ...any) error { return &Failure{Usage, fmt.Errorf(format, a...)} }

// Missingf is an error that ends the program with the code Missing.
func Missingf(format string, a ...any) error { return &Failure{Missing, fmt.Errorf(format, a...)} }

// Brokenf is an error that ends the program with the code Broken.
func Brokenf(format string, a ...any) error { return &Failure{Broken, fmt.Errorf(format, a...)} }

// ErrStopped is the cause of a context that Ctrl-C ended.
var ErrStopped = errors.New("stopped by a signal")

// ExitCode is the code that an error ends the program with: Done for none, Broken where
// nothing else is said.
func ExitCode(err error) int {
	var f *Failure
	switch {
	case err == nil:
		return Done
	case errors.Is(err, ErrStopped):
		return Stopped
	case errors.As(err, &f):
		return f.Code
	}
	return Broken
}

// Stoppable returns a context that the first signal to end cancels, with ErrStopped as
// its cause.
func Stoppable() (context.Context, context.CancelCauseFunc) {
	ctx, stop := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() { <-signals; stop(ErrStopped) }()
	return ctx, stop
}

// Wait waits; it is false when the context has ended.
func Wait(ctx context.Context, long time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(long):
		return true
	}
}

// WriteLine writes a result as one line of JSON.
func WriteLine(w io.Writer, result any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(result)
}

// AboveBin is the checkout of a program that a script has built into its bin/.
func AboveBin(script string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(filepath.Dir(exe))
	if _, err := os.Stat(filepath.Join(root, "go.work")); err != nil {
		return "", Usagef("this program must be in bin/ of the checkout; start it with %s", script)
	}
	return root, nil
}

// AboveHere is the checkout that the current directory lies in.
func AboveHere() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", Missingf("no go.work here or above: run it in the checkout")
		}
		dir = up
	}
}

// Commit is the commit of a checkout, with a plus if the tree differs from it; empty if
// that is not known.
func Commit(root string) string {
	out, err := exec.Command("git", "-C", root, "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return ""
	}
	id := strings.TrimSpace(string(out))
	if changed, err := exec.Command("git", "-C", root, "status", "--porcelain", "-uno").Output(); err == nil && len(changed) > 0 {
		id += "+"
	}
	return id
}
