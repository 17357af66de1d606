package quickstart

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
	exitMissing = 3   // something needed is missing, away, or its port is taken
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

// Result is the one line on stdout. Counts are of people of this run.
type Result struct {
	Audience  int64            `json:"audience"`
	Excluded  map[string]int64 `json:"excluded"` // by reason
	Requested int64            `json:"requested"`
	Rejected  int64            `json:"rejected"`
	Accepted  int64            `json:"accepted"`
	Failed    int64            `json:"failed"`
	Uncertain int64            `json:"uncertain"`
	Expired   int64            `json:"expired"`
	Cancelled int64            `json:"cancelled"`
	Parked    int64            `json:"parked"`
	Waiting   int64            `json:"waiting"`
	Balanced  bool             `json:"balanced"`

	DeliveredUnique *int64 `json:"delivered_unique"` // distinct recipients in the outbox's index; null if mail goes elsewhere
	Opened          int64  `json:"opened"`
	Clicked         int64  `json:"clicked"`
	Unsubscribed    int64  `json:"unsubscribed"`

	Restarts int64   `json:"restarts"`
	Seconds  float64 `json:"seconds"` // from the command to the result

	RunID    string       `json:"run_id"`
	Campaign string       `json:"campaign"`
	Import   importReport `json:"import"`
	Seed     uint64       `json:"seed"`
	Error    string       `json:"error,omitempty"` // why the exit code is not 0
}

// importReport is what the quickstart wants to know of <object>.report.json.
type importReport struct {
	Object         string  `json:"object"`
	State          string  `json:"state"`
	Error          string  `json:"error,omitempty"`
	Rows           int64   `json:"rows"`
	Rejected       int64   `json:"rejected"`
	ProfileUpdates int64   `json:"profile_updates"`
	SegmentMembers int64   `json:"segment_members"`
	Events         int64   `json:"events"`
	Seconds        float64 `json:"seconds"`
}

func (r *Result) write(w io.Writer) error {
	if r.Excluded == nil {
		r.Excluded = map[string]int64{}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}
