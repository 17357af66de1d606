package intakedrill

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// facts is what was sent, and what was found of it.
type facts struct {
	sent         int
	acknowledged map[string]bool
	rows         []string            // event ids in ClickHouse, each as often as it is there
	records      map[string][]string // event ids in Kafka, by person, in order
}

// verdict is what follows from the facts.
type verdict struct {
	missing, twice, strangers, outOfOrder, copies int
	broken                                        []string
}

func judge(f facts) verdict {
	var v verdict
	found := map[string]int{}
	for _, id := range f.rows {
		found[id]++
	}
	for id := range f.acknowledged {
		if found[id] == 0 {
			v.missing++
		}
	}
	for id, n := range found {
		if n > 1 {
			v.twice++
		}
		if !f.acknowledged[id] {
			v.strangers++
		}
	}
	for _, ids := range f.records {
		seen, last := map[string]bool{}, ""
		for _, id := range ids {
			if seen[id] {
				v.copies++
				continue
			}
			seen[id] = true
			if id < last {
				v.outOfOrder++
			}
			last = max(last, id)
		}
	}
	bar := func(n int, format string) {
		if n != 0 {
			v.broken = append(v.broken, fmt.Sprintf(format, n))
		}
	}
	bar(f.sent-len(f.acknowledged), "%d events were never acknowledged")
	bar(v.missing, "%d acknowledged events are missing in ClickHouse")
	bar(v.twice, "%d events are in ClickHouse more than once")
	bar(v.strangers, "%d events are in ClickHouse that nobody was told of")
	bar(v.outOfOrder, "%d events were overtaken by a later one of the same person")
	return v
}

func (d *drill) judge(c *client) error {
	f := facts{sent: d.events, acknowledged: c.acknowledged, records: map[string][]string{}}
	if err := d.read(&f); err != nil {
		return err
	}
	// The sink may still be at it; when it has read all there is nothing more will come.
	inKafka := 0
	seen := map[string]bool{}
	for _, ids := range f.records {
		for _, id := range ids {
			seen[id] = true
		}
	}
	inKafka = len(seen)
	arrived := d.until(time.Minute, func() bool {
		n, err := d.query("SELECT uniqExact(event_id) FROM events WHERE startsWith(event_id, {prefix:String})")
		return err == nil && len(n) == 1 && n[0] == fmt.Sprint(inKafka)
	})
	if !arrived && d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	var err error
	if f.rows, err = d.query("SELECT event_id FROM events WHERE startsWith(event_id, {prefix:String})"); err != nil {
		return err
	}
	v := judge(f)
	d.result.Acknowledged = len(f.acknowledged)
	d.result.Missing, d.result.Twice, d.result.Strangers, d.result.OutOfOrder, d.result.Copies = &v.missing, &v.twice, &v.strangers, &v.outOfOrder, &v.copies
	d.result.Broken = append(d.result.Broken, v.broken...)
	d.say("%d acknowledged, %d rows in ClickHouse: %d missing, %d twice; in Kafka %d copies, %d out of order", len(f.acknowledged), len(f.rows), v.missing, v.twice, v.copies, v.outOfOrder)
	return nil
}

// query asks ClickHouse and returns the lines of the answer.
func (d *drill) query(text string) ([]string, error) {
	q := url.Values{"database": {d.namespace}, "param_prefix": {d.namespace + "-"}, "default_format": {"TabSeparated"}}
	req, err := http.NewRequestWithContext(d.ctx, http.MethodPost, d.engine+"/?"+q.Encode(), strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking ClickHouse: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("asking ClickHouse: %s: %s", resp.Status, text)
	}
	var lines []string
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines, nil
}

// read reads the topic of events. An id stands in its record as it was sent, whatever is around it.
func (d *drill) read(f *facts) error {
	id := regexp.MustCompile(regexp.QuoteMeta(d.namespace) + `-\d{8}`)
	name := d.namespace + ".events"
	cl, err := kgo.NewClient(kgo.SeedBrokers(d.kafka), kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, name)
	if err != nil {
		return fmt.Errorf("looking at the topic of events: %w", err)
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading the topic of events: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			f.records[string(r.Key)] = append(f.records[string(r.Key)], string(id.Find(r.Value)))
		})
	}
	return nil
}
