package drill

import (
	"io"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

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
	return command.WriteLine(w, r)
}
