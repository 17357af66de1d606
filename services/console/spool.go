package console

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/drain"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/spool"
)

func (a *app) spoolCommand() *cobra.Command {
	const about = `An event-collector that Kafka does not answer in time keeps what it takes in in a spool on its disk, and drains it when Kafka is back. DIR is
that directory: SPOOL_DIR, or HIKYAKU_DATA/event-collector-INSTANCE/spool. These commands are for the spool of a collector that does not
come back.

A run does not wait for what lies in spools; it says how much that was, as far as collectors have told Kafka: hikyaku topic read spools.`
	root := &cobra.Command{Use: "spool", Short: "What collectors have taken in and Kafka does not have", Long: about}
	show := &cobra.Command{Use: "show DIR", Short: "How much is in a spool, and since when", Args: cobra.ExactArgs(1),
		Long: about + "\n\nshow may be asked at any time, also while a collector uses the spool.",
		RunE: func(_ *cobra.Command, args []string) error { return a.spoolShown(args[0]) }}
	var salvage bool
	drained := &cobra.Command{Use: "drain DIR", Short: "Bring it to Kafka, in order", Args: cobra.ExactArgs(1),
		Long: about + `

drain brings what is in the spool to Kafka, in order, and remembers how far it has come: stopped or killed it is simply called again, and
what it may produce twice has the same ids. It is refused (exit code 3) while a collector uses the spool, and for a spool of another
NAMESPACE. If Kafka takes nothing for --timeout, it gives up; nothing is lost.

Damage is not passed over: exit code 1, and the file is named. Such a spool also keeps its collector from starting, or from draining: move the directory aside, start the collector,
and drain what can be read with --salvage, which says how many bytes could not (and exits with 1 if there are any).`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.spoolDrained(cmd.Context(), args[0], salvage) }}
	drained.Flags().BoolVar(&salvage, "salvage", false, "pass over what is damaged")
	forget := &cobra.Command{Use: "forget NAME", Short: "A spool is lost: let runs no longer count what was in it", Args: cobra.ExactArgs(1),
		Long: `forget is for a spool whose disk is gone for good: what its collector had told Kafka of it stays, so that every run would go on saying
that these events were not counted. hikyaku topic read spools has the names. Nothing else changes; a collector that has the spool after all
tells Kafka again what is in it.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.spoolForgotten(cmd.Context(), args[0]) }}
	root.AddCommand(show, drained, forget)
	return root
}

// shownSpool is what a spool holds.
type shownSpool struct {
	Dir       string     `json:"dir"`
	Namespace string     `json:"namespace"`
	Records   int64      `json:"records"` // that Kafka does not have
	Bytes     int64      `json:"bytes"`
	Oldest    *time.Time `json:"oldest"` // when the first of them was taken in; null if there is none
}

func look(dir string) (shownSpool, error) {
	namespace, st, err := spool.Look(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return shownSpool{}, usage("%s is no spool: %v", dir, err)
	case err != nil:
		return shownSpool{}, broken("looking into the spool: %w", err)
	}
	s := shownSpool{Dir: dir, Namespace: namespace, Records: st.Records, Bytes: st.Bytes}
	if !st.Oldest.IsZero() {
		s.Oldest = &st.Oldest
	}
	return s, nil
}

func (a *app) spoolShown(dir string) error {
	s, err := look(dir)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(s)
	}
	oldest := "–"
	if s.Oldest != nil {
		oldest = moment(*s.Oldest)
	}
	a.table([]string{"NAMESPACE", "RECORDS", "BYTES", "OLDEST (UTC)"}, [][]string{{s.Namespace, thousands(s.Records), thousands(s.Bytes), oldest}})
	return nil
}

// drainedSpool is what came of draining one.
type drainedSpool struct {
	Dir     string  `json:"dir"`
	Drained int64   `json:"drained"` // records that Kafka has acknowledged
	Left    int64   `json:"left"`
	Damaged int64   `json:"damaged_bytes"` // passed over
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

func (a *app) spoolDrained(ctx context.Context, dir string, salvage bool) error {
	cfg, err := a.config(ctx)
	if err != nil {
		return err
	}
	// A directory that is no spool must not become one.
	if _, err := os.Stat(filepath.Join(dir, "label")); err != nil {
		return usage("%s is no spool: %v", dir, err)
	}
	s, err := spool.Open(spool.Options{Dir: dir, Label: cfg.Kafka.Namespace, Salvage: salvage})
	switch {
	case errors.Is(err, spool.ErrLocked):
		return missing("%w: stop the collector, or leave it to it", err)
	case errors.Is(err, spool.ErrLabel):
		return usage("%v; NAMESPACE says which", err)
	case err != nil:
		return broken("%w", err)
	}
	defer s.Close()
	began := time.Now()
	out := drainedSpool{Dir: dir, Damaged: s.Damage()}
	err = a.drainInto(ctx, s, s.Stats().Records, &out)
	out.Left, out.Seconds = s.Stats().Records, time.Since(began).Seconds()
	if err != nil {
		out.Error = err.Error()
	}
	if a.asJSON {
		err = errors.Join(a.printJSON(out), err)
	} else if err == nil {
		fmt.Fprintf(a.out, "Kafka has %s records of %s; nothing is left in it.\n", thousands(out.Drained), dir)
	}
	var corrupt *spool.CorruptError
	switch {
	case err == nil && out.Damaged > 0:
		return broken("%s bytes could not be read and were passed over", thousands(out.Damaged))
	case err == nil || ctx.Err() != nil:
		return err
	case errors.As(err, &corrupt):
		return broken("%w (%s records are left)", err, thousands(out.Left))
	}
	return missing("%w (%s records are left; call again)", err, thousands(out.Left))
}

// drainInto brings a spool to Kafka and tells how far it is; in the end it tells Kafka too, unless the spool
// has no name: then nobody ever did.
func (a *app) drainInto(ctx context.Context, s *spool.Spool, of int64, out *drainedSpool) error {
	tell := s.Name() != "" && s.Used()
	if s.Empty() && !tell {
		return nil
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	producer, err := c.Producer(kgo.MaxBufferedRecords(drain.BufferedRecords))
	if err != nil {
		return err
	}
	defer producer.Close()
	// Whoever waits wants to know when nothing moves; a client waits for ever.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(a.patience, func() { cancel(missing("Kafka has taken nothing for %s", a.patience)) })
	defer silence.Stop()
	_, watched := a.terminal()
	said := time.Now()
	for err == nil && !s.Empty() {
		err = drain.Run(ctx, s, c, producer, func(n int) {
			silence.Reset(a.patience)
			out.Drained += int64(n)
			if every := time.Second; watched && time.Since(said) > every {
				fmt.Fprintf(a.err, "\r%s of %s records", thousands(out.Drained), thousands(of))
				said = time.Now()
			}
		})
	}
	if err == nil && tell {
		err = tellOfSpool(ctx, c, s.Name(), s.Stats())
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// tellOfSpool says in Kafka what a spool holds.
func tellOfSpool(ctx context.Context, c *kafka.Cluster, name string, st spool.Stats) error {
	if err := say(ctx, c, topic.Spools, name, drain.Told(name, st)); err != nil {
		return fmt.Errorf("telling Kafka what the spool %s holds: %w", name, err)
	}
	return nil
}

// spoolForgotten says in Kafka that nothing is in a spool any more.
func (a *app) spoolForgotten(ctx context.Context, name string) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	var told event.Spool
	err = a.read(ctx, []topic.Name{topic.Spools}, false, func(r *kgo.Record) error {
		if string(r.Key) != name || r.Value == nil {
			return nil
		}
		return c.Decode(r, &told)
	})
	switch {
	case err != nil:
		return missing("reading the topic spools: %w", err)
	case told.Spool == "":
		return usage("nobody has told Kafka of a spool %s; hikyaku topic read spools has the names", name)
	case told.Records == 0:
		fmt.Fprintf(a.err, "nothing was left in the spool %s\n", name)
		return nil
	}
	if err := tellOfSpool(ctx, c, name, spool.Stats{}); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "runs no longer count the %s records of the spool %s\n", thousands(told.Records), name)
	return nil
}
