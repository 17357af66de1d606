// Command bench measures. Each benchmark prints a table on stderr and closes
// with one JSON line on stdout; the ceiling it is compared with is measured in
// the same run, because machines differ.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// result is the closing line.
type result struct {
	Bench      string   `json:"bench"`
	Rate       float64  `json:"rate"`
	Unit       string   `json:"unit"`
	Ceiling    *float64 `json:"ceiling"` // null where what measures it is not installed
	CeilingOf  string   `json:"ceiling_of"`
	Ratio      *float64 `json:"ratio"`
	PeakRSSMiB float64  `json:"peak_rss_mib"` // of all processes together; for import, export, intake and sink of the one that is measured

	// Of intake only.
	Singles    float64 `json:"singles,omitempty"`      // requests/s with one event each
	Clicks     float64 `json:"clicks,omitempty"`       // requests/s
	P99Ms      float64 `json:"p99_ms,omitempty"`       // of single events at half of the highest rate
	BatchP99Ms float64 `json:"batch_p99_ms,omitempty"` // of batches at half of the highest rate

	// Of funnel only, milliseconds: at rest, straight after loading, and windowFunnel over the raw tables.
	OneMS       float64 `json:"one_ms,omitempty"`
	AllMS       float64 `json:"all_ms,omitempty"`
	LoadedOneMS float64 `json:"loaded_one_ms,omitempty"`
	LoadedAllMS float64 `json:"loaded_all_ms,omitempty"`
	RawMS       float64 `json:"raw_ms,omitempty"`

	Commit string `json:"commit,omitempty"`

	// Also is what else was measured in the same run, each with its own ceiling.
	Also []*result `json:"also,omitempty"`
}

func (r *result) against(ceiling float64, of string) {
	r.CeilingOf = of
	if ceiling > 0 {
		ratio := r.Rate / ceiling
		r.Ceiling, r.Ratio = &ceiling, &ratio
	}
}

var benchmarks = map[string]struct {
	about string
	run   func(ctx context.Context, root string, args []string) (*result, error)
}{
	"codec":    {"encode and decode a message request of 12 attributes", codec},
	"campaign": {"a campaign end to end, every process counted", campaign},
	"export":   {"profiles in ClickHouse to files on S3", exportsBench},
	"funnel":   {"funnels of ten campaigns of a million messages", funnelBench},
	"intake":   {"events and clicks over HTTP to acknowledged records", intakeBench},
	"import":   {"a file on S3 to committed records, one import and several at once", imports},
	"sink":     {"full topics to rows in ClickHouse: events, then outcomes with messages kept", sinkBench},
}

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	names := make([]string, 0, len(benchmarks))
	for name := range benchmarks {
		names = append(names, name)
	}
	sort.Strings(names)
	help := func() int {
		fmt.Fprintln(os.Stderr, "usage: scripts/bench NAME [flags]")
		for _, name := range names {
			fmt.Fprintf(os.Stderr, "  %-10s %s\n", name, benchmarks[name].about)
		}
		return 2
	}
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		return help()
	}
	b, ok := benchmarks[os.Args[1]]
	if !ok {
		return help()
	}
	root, err := command.AboveHere()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 3
	}
	r, err := b.run(ctx, root, os.Args[2:])
	switch {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	r.Bench, r.Commit = os.Args[1], command.Commit(root)
	line, err := json.Marshal(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	fmt.Println(string(line))
	return 0
}
