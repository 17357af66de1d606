package schedule

import (
	"context"
	"sync"
	"time"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// jobs are the driver's work that takes longer than a batch of the person loop
// may: waiting for the barrier and asking ClickHouse. A job only finds things
// out; what follows from it is decided and written while handling a tick, in
// the transaction that commits the tick's offset, so that a driver that has
// lost the partition is refused. A job that is lost with its process is simply
// done again by the next driver.
type jobs struct {
	ctx  context.Context
	mu   sync.Mutex
	jobs map[identity.ID]*job
	wg   sync.WaitGroup
}

type job struct {
	kind    string
	cancel  context.CancelFunc
	started time.Time
	note    string
	done    bool
	result  any
	err     error
}

// progress is what the tick handler sees of a job.
type progress struct {
	since  time.Time
	note   string
	done   bool
	result any
	err    error
}

func newJobs(ctx context.Context) *jobs { return &jobs{ctx: ctx, jobs: map[identity.ID]*job{}} }

// run starts a job of this kind for a run unless there is one, and returns how
// far it is. A job of another kind is given up.
func (j *jobs) run(id identity.ID, kind string, now time.Time, work func(ctx context.Context, report func(string)) (any, error)) progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.jobs[id]
	if b == nil || b.kind != kind {
		if b != nil {
			b.cancel()
		}
		ctx, cancel := context.WithCancel(j.ctx)
		b = &job{kind: kind, cancel: cancel, started: now}
		j.jobs[id] = b
		j.wg.Go(func() { j.work(ctx, b, work) })
	}
	return progress{since: b.started, note: b.note, done: b.done, result: b.result, err: b.err}
}

func (j *jobs) work(ctx context.Context, b *job, work func(context.Context, func(string)) (any, error)) {
	report := func(note string) {
		j.mu.Lock()
		defer j.mu.Unlock()
		b.note = note
	}
	for {
		result, err := work(ctx, report)
		if err != nil && ctx.Err() == nil && fault.ClassOf(err) == fault.ClassTransient {
			report(err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		b.done, b.result, b.err = true, result, err
		return
	}
}

// drop forgets a job, so that the next call of run starts anew.
func (j *jobs) drop(id identity.ID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b := j.jobs[id]; b != nil {
		b.cancel()
		delete(j.jobs, id)
	}
}

// keep gives up the jobs of runs that are not driven from here any more.
func (j *jobs) keep(driven func(identity.ID) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, b := range j.jobs {
		if !driven(id) {
			b.cancel()
			delete(j.jobs, id)
		}
	}
}

func (j *jobs) wait() { j.wg.Wait() }
