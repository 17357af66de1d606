package quickstart

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

// hikyaku is the command, used as a person uses it.
type hikyaku struct {
	procs *process.Starter
	bin   string
	env   []string
}

func (h *hikyaku) run(ctx context.Context, args ...string) (process.Ended, error) {
	e, err := h.procs.Run(ctx, process.Tool{Path: filepath.Join(h.bin, "hikyaku"), Args: args, Env: h.env})
	if err != nil {
		return e, fmt.Errorf("running hikyaku %s: %w", args[0], err)
	}
	return e, nil
}

// ask runs the command with --json and reads its answer. A code of 1 or more is a failure with the command's own words.
func (h *hikyaku) ask(ctx context.Context, into any, args ...string) error {
	e, err := h.run(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if e.Code != command.Done {
		return command.Exit(e.Code, fmt.Errorf("hikyaku %s: %s", strings.Join(args, " "), strings.TrimPrefix(e.LastLine(), "hikyaku: ")))
	}
	if err := json.Unmarshal([]byte(e.Stdout), into); err != nil {
		return command.Brokenf("hikyaku %s --json did not answer with JSON: %w", args[0], err)
	}
	return nil
}

// runStatus is what status --json says.
type runStatus struct {
	State     string `json:"state"`
	Note      string `json:"note"`
	Expected  int64  `json:"expected"`
	Audience  int64  `json:"audience"`
	Excluded  int64  `json:"excluded"`
	Requested int64  `json:"requested"`
	Waiting   int64  `json:"waiting"`
}

func (s runStatus) ended() bool {
	switch s.State {
	case "finished", "cancelled", "failed", "refused":
		return true
	}
	return false
}

// total is how many people the run is about, as far as it is known.
func (s runStatus) total() int64 { return max(s.Audience, s.Expected) }

// settled is the number of people about whom nothing is open.
func (s runStatus) settled() int64 { return s.Excluded + s.Requested - s.Waiting }

func (s runStatus) line() string {
	t := fmt.Sprintf("%s %s of %s people, %s waiting, %s", bar(s.settled(), s.total()), thousands(s.settled()), thousands(s.total()), thousands(s.Waiting), s.State)
	if s.Note != "" {
		t += ": " + s.Note
	}
	return t
}

// dashed writes a run id as ClickHouse does.
func dashed(id string) string {
	if len(id) != 32 {
		return id
	}
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}
