package drill

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// The exit codes.
const (
	exitDone    = 0
	exitBroken  = 1 // a promise did not hold
	exitUsage   = 2
	exitMissing = 3   // something needed is missing or away
	exitStopped = 130 // Ctrl-C before there was a result
)

// failure is an error with the exit code it ends the program with.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usage(format string, a ...any) error   { return &failure{exitUsage, fmt.Errorf(format, a...)} }
func missing(format string, a ...any) error { return &failure{exitMissing, fmt.Errorf(format, a...)} }
func broken(format string, a ...any) error  { return &failure{exitBroken, fmt.Errorf(format, a...)} }

// errStopped is the cause of a context that Ctrl-C ended.
var errStopped = errors.New("stopped by a signal")

func exitCode(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errStopped):
		return exitStopped
	case errors.As(err, &f):
		return f.code
	}
	return exitBroken
}

// Result is the one line on stdout. Counts are of people of the run; what could
// not be found out is null.
type Result struct {
	Kills      int     `json:"kills"` // of services, at points included; the stack's are not among them
	CopiesMax  *int    `json:"copies_max"`
	Missing    *int    `json:"missing"`
	Uncertain  *int    `json:"uncertain"`
	Balanced   bool    `json:"balanced"`
	Seed       uint64  `json:"seed"`
	Seconds    float64 `json:"seconds"`
	Policy     string  `json:"policy"`
	Instances  int     `json:"instances"`
	People     int     `json:"people"`
	Pauses     int     `json:"pauses"`
	StackKills int     `json:"stack_kills"`
	ByItself   int     `json:"ended_by_itself"` // processes that ended though nobody killed them, and were started again

	Twice          int      `json:"twice"`           // people with more than one copy
	Repeats        int      `json:"repeats"`         // copies beyond the first
	RepeatsAllowed int      `json:"repeats_allowed"` // messages claimed and without an outcome when senders died
	LeftMax        int      `json:"uncertain_per_kill_max"`
	BackMax        *float64 `json:"back_seconds_max"`   // from a restart to being at work again
	ResumeMax      *float64 `json:"resume_seconds_max"` // the same from SIGCONT
	Joined         int      `json:"joined"`
	Unsubscribed   int      `json:"unsubscribed"`
	Clicked        int      `json:"clicked"`

	Audience int64            `json:"audience"`
	Excluded map[string]int64 `json:"excluded"`
	Accepted int64            `json:"accepted"`
	RunID    string           `json:"run_id,omitempty"`
	Broken   []string         `json:"broken"`          // the bars that broke, in words
	Error    string           `json:"error,omitempty"` // why there is no result
	Commit   string           `json:"commit"`
}

func (r *Result) write(w io.Writer) error {
	if r.Excluded == nil {
		r.Excluded = map[string]int64{}
	}
	if r.Broken == nil {
		r.Broken = []string{}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}
