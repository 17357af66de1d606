package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

const (
	// A run that does not move for so long, with everything up, will not end.
	stallPatience = 2 * time.Minute
	// Beyond the session timeout, so that the group goes on without whoever is paused.
	pauseMargin = 4 * time.Second
	// When nothing moves for so long, and everybody is up, the next event comes all the same;
	// before the first mail later, for who is killed then has nothing in hand.
	stalled  = 3 * time.Second
	notBegun = 30 * time.Second
)

// run does the drill. What it started is left running.
func (d *drill) run() error {
	s := plan(d.options)
	d.say("drill of %s people, seed %d: %s, %d of each service, policy %s", thousands(int64(d.people)), d.seed, d.plans(s), d.instances, d.policy)
	if d.sabotage != "" {
		d.say("SABOTAGE: the sender's claim is switched off, and each sender also dies %d times with a mail's answer in hand; this drill must fail", deathsInHand)
	}
	if err := d.build(); err != nil {
		return err
	}
	d.result.Commit = command.Commit(d.root)
	if err := d.prepare(); err != nil {
		return err
	}
	d.say("everything is up")
	from := d.since()
	if err := d.load(s); err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	if err := d.send(s); err != nil {
		return err
	}
	f, err := d.gather()
	if err != nil {
		return err
	}
	v := judge(f, d.limit())
	d.timeline(d.out, from, d.since())
	d.ledger(d.out, v)
	d.conclude(f, v)
	return d.writeLists(v)
}

func (d *drill) limit() int {
	var connections int
	if _, err := fmt.Sscan(d.getenv("SMTP_CONNECTIONS"), &connections); err == nil && connections > 0 {
		return 2 * connections
	}
	return uncertainPerKill
}

func (d *drill) plans(s schedule) string {
	switch {
	case d.points:
		return fmt.Sprintf("%d deaths at named points", d.kills)
	case d.stackKill:
		return fmt.Sprintf("%d kills, and one of the stack", d.kills)
	}
	return fmt.Sprintf("%d kills", d.kills)
}

// load imports the list, while the first services die.
func (d *drill) load(s schedule) error {
	key, err := d.put("people.csv", func(w io.Writer) (err error) {
		d.list, err = writePeople(w, d.seed, d.people)
		return err
	})
	if err != nil {
		return err
	}
	d.files++
	d.say("the list is dropped: %s people, %s of them in the audience", thousands(int64(d.list.Rows)), thousands(int64(len(d.list.Audience))))
	dropped, done := time.Now(), false
	events := phase(s, loading)
	for !done {
		if len(events) > 0 && time.Since(dropped) > time.Duration(events[0].At*float64(time.Second)) {
			d.do(events[0])
			events = events[1:]
		}
		if done, err = d.imported(key); err != nil {
			return err
		}
		if time.Since(dropped) > stallPatience {
			return command.Brokenf("the import is not done after %s", stallPatience)
		}
		if !command.Wait(d.ctx, 50*time.Millisecond) {
			return context.Cause(d.ctx)
		}
	}
	d.filesDone++
	d.say("imported to the end, %.1f s after it was dropped", time.Since(dropped).Seconds())
	for _, e := range events { // it was faster than these
		d.do(e)
	}
	return nil
}

func phase(s schedule, name string) (out []planned) {
	for _, e := range s.Events {
		if e.Phase == name {
			out = append(out, e)
		}
	}
	return out
}

// start starts the campaign and lets the crowd loose.
func (d *drill) start() error {
	var run struct {
		ID string `json:"run_id"`
	}
	if err := d.ask(&run, "start", campaignID); err != nil {
		return err
	}
	id, err := identity.Parse(run.ID)
	if err != nil {
		return command.Brokenf("hikyaku start: %w", err)
	}
	d.crowded(id)
	d.say("run %s is started", id)
	return nil
}

func (d *drill) crowded(id identity.ID) {
	d.runID = id
	d.result.RunID = id.String()
	random := rand.New(rand.NewPCG(d.seed, 0x6c65_6176_65))
	var leavers []string
	for range min(d.people/100, 300) {
		if person := userID(random.IntN(d.people)); d.list.Audience[person] && !slices.Contains(leavers, person) {
			leavers = append(leavers, person)
		}
	}
	d.crowd.begin(id, leavers)
}

// joinersPerFile is how many people come with each file that is dropped meanwhile.
func (d *drill) joinersPerFile() int { return max(20, d.people/100) }

// drop drops another file of people and, beside everything else, waits for its report.
func (d *drill) drop() {
	n := d.files
	d.files++
	key, err := d.put(fmt.Sprintf("joiners-%02d.csv", n), func(w io.Writer) error { return writeJoiners(w, n, d.joinersPerFile()) })
	if err != nil {
		d.say("dropping a file: %v", err)
		return
	}
	d.tail.Go(func() {
		began := time.Now()
		for time.Since(began) < stallPatience && command.Wait(d.ctx, 100*time.Millisecond) {
			done, err := d.imported(key)
			if err != nil {
				d.say("%v", err)
				return
			}
			if done {
				d.mu.Lock()
				d.filesDone++
				d.slowest = max(d.slowest, time.Since(began))
				d.mu.Unlock()
				return
			}
		}
	})
}

// send follows the run to its end and does what was planned on the way.
func (d *drill) send(s schedule) error {
	ctx, stop := context.WithCancel(d.ctx)
	defer stop()
	progress := make(chan status, 1)
	go d.follow(ctx, progress)
	events := phase(s, sending)
	drops := []float64{0.1, 0.4, 0.7}
	var now status
	share, moved, changed := 0.0, time.Now(), time.Now()
	for !now.ended() {
		select {
		case st := <-progress:
			if st != now {
				changed = time.Now()
			}
			now = st
		case <-time.After(20 * time.Millisecond):
		}
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		if at := d.share(); at > share {
			share, moved = at, time.Now()
		}
		if len(drops) > 0 && share >= drops[0] {
			drops = drops[1:]
			d.drop()
		}
		still := stalled
		if share == 0 {
			still = notBegun
		}
		quiet := time.Since(moved) > still && d.allBack()
		if len(events) > 0 && (share >= events[0].At || quiet) {
			d.do(events[0])
			events = events[1:]
			moved = time.Now()
		}
		if time.Since(changed) > stallPatience && time.Since(moved) > stallPatience {
			d.say("the run has not moved for %s: %s %s", stallPatience, now.State, now.Note)
			break
		}
	}
	if len(events) > 0 && now.ended() {
		d.say("the run ended before the last %d of the plan; they come now", len(events))
		for _, e := range events {
			d.do(e)
		}
	}
	for _, m := range d.members {
		m.disarm()
	}
	if now.ended() {
		d.say("the run is %s", now.State)
	}
	d.crowd.end()
	d.tail.Wait()
	// Who was killed last has yet to come back.
	for end := time.Now().Add(patience); !d.allBack() && time.Now().Before(end); {
		if !command.Wait(d.ctx, 50*time.Millisecond) {
			return context.Cause(d.ctx)
		}
	}
	return nil
}

func (d *drill) allBack() bool {
	for _, m := range d.members {
		if !m.back() {
			return false
		}
	}
	return d.stack == nil || d.stack.back()
}

// follow keeps the share of the audience that is settled: mails are seen at
// once, the books a moment later, and not while ClickHouse is away.
func (d *drill) follow(ctx context.Context, progress chan<- status) {
	var asked time.Time
	var at int64 = d.indexFrom
	mails := 0
	pace := time.Second
	if d.index == "" {
		pace = 300 * time.Millisecond
	}
	for command.Wait(ctx, 30*time.Millisecond) {
		if d.index != "" {
			if f, err := os.Open(d.index); err == nil {
				if _, err := f.Seek(at, io.SeekStart); err == nil {
					more, _ := io.ReadAll(f)
					at += int64(len(more))
					mails += bytes.Count(more, []byte{'\n'})
				}
				f.Close()
			}
			d.progressed(0.99 * float64(mails) / float64(max(1, d.list.Mailable)))
		}
		if time.Since(asked) < pace {
			continue
		}
		asked = time.Now()
		var s status
		if err := d.ask(&s, "status", d.runID.String()); err != nil {
			continue
		}
		if total := max(s.Audience, s.Expected); total > 0 {
			d.progressed(float64(s.Excluded+s.Requested-s.Waiting) / float64(total))
		}
		select {
		case progress <- s:
		case <-ctx.Done():
		}
	}
}

func (d *drill) progressed(share float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled = max(d.settled, min(share, 1))
}

// do does one thing of the plan.
func (d *drill) do(e planned) {
	if e.Kind == stackDown {
		if d.stack == nil {
			return
		}
		d.patiently(d.allBack)
		i := &incident{Kind: stackDown, Service: d.stack.service, Share: d.share()}
		d.say("at %2.0f %%: the stack is killed", 100*i.Share)
		d.stack.kill(i)
		d.record(i)
		d.patiently(d.stack.back)
		command.Wait(d.ctx, time.Second) // who is killed next shall find it
		return
	}
	m := d.find(e.Service, e.Instance)
	if e.Service == topic.Importer && e.Phase == sending {
		d.drop() // so that it has something in hand
		command.Wait(d.ctx, 2*e.Delay)
	}
	d.patiently(m.back)
	command.Wait(d.ctx, e.Delay)
	i := &incident{Kind: e.Kind, Service: e.Service, Instance: e.Instance, Share: d.share()}
	d.record(i)
	if e.Kind == paused {
		d.say("at %2.0f %%: %s is paused", 100*i.Share, m.name())
		d.tail.Go(func() { m.freeze(i, d.session()+pauseMargin) })
		command.Wait(d.ctx, 100*time.Millisecond) // until it is
		return
	}
	d.say("at %2.0f %%: %s is killed", 100*i.Share, m.name())
	m.kill(i)
}

// session is the session timeout of the services.
func (d *drill) session() time.Duration {
	if s, err := time.ParseDuration(d.getenv("KAFKA_SESSION_TIMEOUT")); err == nil {
		return s
	}
	return 15 * time.Second
}

// patiently waits for a condition, for a while.
func (d *drill) patiently(done func() bool) {
	for end := time.Now().Add(30 * time.Second); !done() && time.Now().Before(end) && command.Wait(d.ctx, 20*time.Millisecond); {
	}
}

// conclude fills the line on stdout.
func (d *drill) conclude(f *facts, v *verdict) {
	r := &d.result
	n := len(v.Missing)
	r.Missing, r.Uncertain, r.Balanced, r.Broken = &n, &v.Uncertain, f.Balanced, v.Broken
	if f.Witnessed {
		r.CopiesMax = &v.CopiesMax
	}
	r.Twice, r.Repeats, r.RepeatsAllowed = len(v.Twice), v.Repeats, v.RepeatsAllowed
	for _, i := range f.Incidents {
		away := i.away(f.Incidents).Seconds()
		longest := func(m **float64) {
			if i.Back > 0 && (*m == nil || away > **m) {
				*m = &away
			}
		}
		switch i.Kind {
		case killed, crashed:
			r.Kills++
			longest(&r.BackMax)
		case paused:
			r.Pauses++
			longest(&r.ResumeMax)
		case stackDown:
			r.StackKills++
		case ended:
			r.ByItself++
		}
		r.LeftMax = max(r.LeftMax, i.Left)
	}
	r.Joined, r.Unsubscribed, r.Clicked = len(d.crowd.joined), len(d.crowd.unsubscribed), int(d.crowd.clicked.Load())
	r.Audience, r.Excluded, r.Accepted = d.sheet.Audience, d.sheet.Excluded, d.sheet.Accepted
	if !f.Witnessed && !errors.Is(d.ctx.Err(), context.Canceled) {
		fmt.Fprintln(d.out, "Copies were not counted: the mail server is not ours and --index was not given.")
	}
}
