package quickstart

import (
	"io"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

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
	return command.WriteLine(w, r)
}
