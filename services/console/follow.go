package console

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// follow hands on what was in a topic at the moment of the call, then runs do, and goes on
// handing on until it returns. apply is called from another goroutine than do.
func follow[E any, P interface {
	*E
	event.Record
}](ctx context.Context, a *app, name topic.Name, apply func(P), do func(context.Context, *kafka.Table) error) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	table := c.Table([]topic.Name{name}, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		e := P(new(E))
		if err := c.Decode(r, e); err != nil {
			// The services, too, go by the record before.
			fmt.Fprintf(a.err, "record %d of the topic %s cannot be read and is passed over: %v\n", r.Offset, name, err)
			return nil
		}
		apply(e)
		return nil
	})
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- table.Run(running)
		stop()
	}()
	patient, cancel := context.WithTimeout(running, a.patience)
	defer cancel()
	if err = table.CaughtUpStable(patient); err == nil {
		err = do(running, table)
	} else if patient.Err() == context.DeadlineExceeded && ctx.Err() == nil {
		err = missing("the %s could not be read within %s", name, a.patience)
	}
	stop()
	if failed := <-ended; failed != nil {
		return failed
	}
	return err
}
