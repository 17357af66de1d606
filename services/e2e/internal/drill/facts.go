package drill

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

// sheet is what hikyaku balance --json says.
type sheet struct {
	State      string           `json:"state"`
	Note       string           `json:"note"`
	Audience   int64            `json:"audience"`
	Repeats    int64            `json:"repeats"`
	Excluded   map[string]int64 `json:"excluded"`
	Requested  int64            `json:"requested"`
	Rejected   int64            `json:"rejected"`
	Accepted   int64            `json:"accepted"`
	Failed     int64            `json:"failed"`
	Uncertain  int64            `json:"uncertain"`
	Expired    int64            `json:"expired"`
	Cancelled  int64            `json:"cancelled"`
	Parked     int64            `json:"parked"`
	Waiting    int64            `json:"waiting"`
	Difference map[string]int64 `json:"difference"`
	Balanced   bool             `json:"balanced"`
}

// status is what hikyaku status --json says.
type status struct {
	State     string `json:"state"`
	Note      string `json:"note"`
	Expected  int64  `json:"expected"`
	Audience  int64  `json:"audience"`
	Excluded  int64  `json:"excluded"`
	Requested int64  `json:"requested"`
	Waiting   int64  `json:"waiting"`
}

func (s status) ended() bool {
	switch s.State {
	case "finished", "cancelled", "failed", "refused":
		return true
	}
	return false
}

// hikyaku runs the command as a person would.
func (d *drill) hikyaku(args ...string) (process.Ended, error) {
	return d.procs.Run(d.ctx, process.Tool{Path: d.bin("hikyaku"), Args: args, Env: d.env, Dir: d.dir})
}

// ask runs the command with --json and reads its answer, also that of one that exits with 1.
func (d *drill) ask(into any, args ...string) error {
	e, err := d.hikyaku(append(args, "--json")...)
	if err != nil {
		return err
	}
	if e.Code > command.Broken || e.Code == command.Broken && e.Stdout == "" {
		return command.Exit(e.Code, fmt.Errorf("hikyaku %s: %s", args[0], strings.TrimPrefix(e.LastLine(), "hikyaku: ")))
	}
	if err := json.Unmarshal([]byte(e.Stdout), into); err != nil {
		return command.Brokenf("hikyaku %s --json did not answer with JSON: %w", args[0], err)
	}
	return nil
}

// rows asks ClickHouse through hikyaku sql and calls fn for each row.
func rows[T any](d *drill, query string, fn func(T)) error {
	var e process.Ended
	// ClickHouse may have been killed a moment ago.
	for end := time.Now().Add(30 * time.Second); ; {
		var err error
		if e, err = d.hikyaku("sql", "--json", query); err != nil {
			return err
		}
		if e.Code == command.Done {
			break
		}
		if time.Now().After(end) || e.Code == command.Usage {
			return command.Exit(e.Code, fmt.Errorf("hikyaku sql: %s", e.LastLine()))
		}
		if !command.Wait(d.ctx, 500*time.Millisecond) {
			return command.ErrStopped
		}
	}
	lines := bufio.NewScanner(strings.NewReader(e.Stdout))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var row T
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return command.Brokenf("hikyaku sql did not answer with JSON: %w", err)
		}
		fn(row)
	}
	return lines.Err()
}

// facts are what is known before anybody is asked: how the drill is to be judged.
func (o options) facts() *facts {
	return &facts{
		Policy: o.policy, Within: o.back, Instances: o.instances,
		Audience: map[string]bool{}, Class: map[string]string{}, Mails: map[string]int{}, Unresolved: map[string]int{}, LeftAt: map[string]bool{},
	}
}

// gather asks everybody who knows: the books, ClickHouse, the mail server's index.
func (d *drill) gather() (*facts, error) {
	f := d.facts()
	if err := d.ask(&d.sheet, "balance", d.runID.String()); err != nil {
		return nil, err
	}
	f.State, f.Balanced, f.Differences = d.sheet.State, d.sheet.Balanced, d.sheet.Difference
	for id := range d.list.Audience {
		f.Audience[id] = true
	}
	run := "toUUID('" + d.runID.UUID() + "')"
	if err := rows(d, "SELECT user_id, class, reason FROM messages WHERE run_id = "+run, func(r struct {
		UserID string `json:"user_id"`
		Class  string
		Reason string
	}) {
		f.Audience[r.UserID] = true
		f.Class[r.UserID] = r.Class
		if r.Class == "excluded" && r.Reason == "" {
			f.Class[r.UserID] = "" // not accounted for: nobody says why
		}
	}); err != nil {
		return nil, err
	}
	if err := rows(d, "SELECT user_id, outcome, reason, toUnixTimestamp64Micro(occurred_at) AS at, source_topic, source_partition, source_offset FROM outcomes WHERE run_id = "+run+
		" AND (outcome = 'uncertain' OR reason IN ('sender_lost', 'no_answer'))", func(r struct {
		UserID    string `json:"user_id"`
		Outcome   string
		Reason    string
		At        int64
		Topic     string `json:"source_topic"`
		Partition int32  `json:"source_partition"`
		Offset    int64  `json:"source_offset"`
	}) {
		if r.Reason != "sender_lost" && r.Reason != "no_answer" {
			// Not asked again after a call without an answer.
			f.LeftAt[r.UserID] = true
			return
		}
		f.Unresolved[r.UserID]++
		if r.Outcome == "uncertain" {
			f.Uncertain = append(f.Uncertain, uncertain{r.UserID, time.UnixMicro(r.At).Sub(d.began), place{r.Topic, r.Partition, r.Offset}})
		}
	}); err != nil {
		return nil, err
	}
	if err := d.countClaimed(run); err != nil {
		return nil, err
	}
	if err := d.witness(f); err != nil {
		return nil, err
	}
	if err := d.presence(f); err != nil {
		return nil, err
	}
	d.mu.Lock()
	f.Incidents = d.incidents
	d.mu.Unlock()
	f.Files, f.FilesDone = d.files, d.filesDone
	f.Crowd = d.crowd.failed
	return f, nil
}

// countClaimed takes, from what each sender had claimed when it died, what had an
// outcome by then.
func (d *drill) countClaimed(run string) error {
	if len(d.snapshots) == 0 {
		return nil
	}
	answered := map[place]int64{} // when, in ms; in 2200 if it was only found unresolved
	if err := rows(d, "SELECT source_topic, source_partition, source_offset, toUnixTimestamp64Milli(min(if(reason = 'sender_lost', toDateTime64('2200-01-01 00:00:00', 3, 'UTC'), ingested_at))) AS at FROM outcomes WHERE run_id = "+run+
		" AND source_topic != '' GROUP BY source_topic, source_partition, source_offset", func(r struct {
		Topic     string `json:"source_topic"`
		Partition int32  `json:"source_partition"`
		Offset    int64  `json:"source_offset"`
		At        int64
	}) {
		answered[place{r.Topic, r.Partition, r.Offset}] = r.At
	}); err != nil {
		return err
	}
	for _, s := range d.snapshots {
		s.i.claims = map[place]bool{}
		for _, c := range s.claims {
			for o := c.From; o <= c.To; o++ {
				lay := place{c.Topic, c.Partition, o}
				// What never had any outcome is a transaction's marker.
				if at, ok := answered[lay]; ok && !c.Open[o] && at > s.at.UnixMilli() {
					s.i.claims[lay] = true
				}
			}
		}
		s.i.Claimed = len(s.i.claims)
	}
	return nil
}

// witness has the copies counted, by a program that shares no code with what is judged.
func (d *drill) witness(f *facts) error {
	if d.index == "" {
		return nil
	}
	f.Witnessed = true
	e, err := d.procs.Run(d.ctx, process.Tool{Path: d.bin("copies"), Args: []string{"--from", fmt.Sprint(d.indexFrom), d.index}, Env: d.env, Dir: d.dir})
	if err != nil {
		return err
	}
	if e.Code != command.Done {
		return command.Missingf("counting copies: %s", e.LastLine())
	}
	var counted struct {
		Mails, Recipients int
		CopiesMax         int `json:"copies_max"`
		Twice             []struct {
			Recipient string
			Copies    int
		}
	}
	if err := json.Unmarshal([]byte(e.Stdout), &counted); err != nil {
		return command.Brokenf("copies did not answer with JSON: %w", err)
	}
	file, err := os.Open(d.index)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(d.indexFrom, 0); err != nil {
		return err
	}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		recipient := lines.Text()
		if fields := strings.Split(recipient, "\t"); len(fields) >= 4 {
			recipient = fields[2]
		}
		if recipient != "" {
			f.Mails[personOf(recipient)] = 1
		}
	}
	for _, t := range counted.Twice {
		f.Mails[personOf(t.Recipient)] = t.Copies
	}
	d.mails = counted.Mails
	if len(f.Mails) != counted.Recipients {
		return command.Brokenf("the index names %d people, the witness counted %d", len(f.Mails), counted.Recipients)
	}
	return lines.Err()
}

// presence looks whether everybody who was acknowledged meanwhile is there, and
// whoever unsubscribed is left alone. What was acknowledged is in Kafka; ClickHouse
// has it a moment later.
func (d *drill) presence(f *facts) error {
	joined := append([]string(nil), d.crowd.joined...)
	for file := range d.files {
		if file > 0 { // the first is the list itself
			for i := range d.joinersPerFile() {
				joined = append(joined, joinerID(file, i))
			}
		}
	}
	for i := range d.people {
		joined = append(joined, userID(i))
	}
	f.Joined, f.Unsubscribed = len(joined), len(d.crowd.unsubscribed)
	for end := time.Now().Add(30 * time.Second); ; {
		consent := map[string]string{}
		if err := rows(d, "SELECT user_id, consents['email'] AS consent FROM profiles", func(r struct {
			UserID  string `json:"user_id"`
			Consent string
		}) {
			consent[r.UserID] = r.Consent
		}); err != nil {
			return err
		}
		f.Lost, f.Forgotten = nil, 0
		for _, id := range joined {
			if _, ok := consent[id]; !ok {
				f.Lost = append(f.Lost, id)
			}
		}
		for _, id := range d.crowd.unsubscribed {
			if consent[id] != "unsubscribed" {
				f.Forgotten++
			}
		}
		f.JoinedKnown = len(joined) - len(f.Lost)
		if len(f.Lost) == 0 && f.Forgotten == 0 || time.Now().After(end) {
			return nil
		}
		if !command.Wait(d.ctx, time.Second) {
			return command.ErrStopped
		}
	}
}

// writeLists keeps the names of those for whom a promise did not hold.
func (d *drill) writeLists(v *verdict) error {
	var errs []error
	for name, list := range map[string][]string{"twice": v.Twice, "missing": v.Missing, "strangers": v.Strangers} {
		if len(list) > 0 {
			errs = append(errs, os.WriteFile(filepath.Join(d.dir, name+".txt"), []byte(strings.Join(list, "\n")+"\n"), 0o644))
		}
	}
	return errors.Join(errs...)
}
