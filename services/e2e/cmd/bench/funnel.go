package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A benchmark of funnels: campaigns with their requests, outcomes, hits and labels, made
// inside ClickHouse in the tables that the sink fills, with their materialized views. The
// same funnel is asked of the raw tables by windowFunnel in the same run. Nothing is
// optimized by hand: at rest is when the database has ended what it does by itself.
func funnelBench(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("funnel", flag.ContinueOnError)
	campaigns := flags.Int("campaigns", 10, "campaigns of one run each")
	messages := flags.Int64("messages", 1_000_000, "messages of a campaign")
	chunk := flags.Int64("chunk", 250_000, "messages made by one statement")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	if *campaigns < 1 || *campaigns > 100 || *messages < 1000 || *chunk < 1000 || *messages%100 != 0 || *chunk%100 != 0 {
		return nil, fmt.Errorf("1 to 100 campaigns of hundreds of messages, from 1000, in chunks of hundreds")
	}
	b := &funnelBenchmark{ctx: ctx, campaigns: *campaigns, messages: *messages, chunk: *chunk}
	p, err := newPlace(ctx, root, nil)
	if err != nil {
		return nil, err
	}
	defer p.leave(false)
	c := p.children
	addr, err := c.startStack(ctx, p.bin, filepath.Join(p.dir, "data"), map[string]string{"SMTP_ADDR": "127.0.0.1:1"})
	if err != nil {
		return nil, err
	}
	b.clickhouse = "http://" + addr["clickhouse"]
	c.env = map[string]string{"KAFKA_BROKERS": addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + addr["registry"], "CLICKHOUSE_URL": b.clickhouse, "ALLOW_INSECURE_DEFAULTS": "true", "NAMESPACE": "bench"}
	if out, err := c.run(ctx, filepath.Join(p.bin, "provision")); err != nil {
		return nil, fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	return b.measure(c.list[0].cmd.Process.Pid)
}

type funnelBenchmark struct {
	ctx        context.Context
	clickhouse string
	campaigns  int
	messages   int64
	chunk      int64
}

func (b *funnelBenchmark) measure(stack int) (*result, error) {
	if _, err := b.ask("INSERT INTO classifier_rows (version, put_at) VALUES (1, '2026-01-01 00:00:00')"); err != nil {
		return nil, err
	}
	began := time.Now()
	for c := range b.campaigns {
		if err := b.load(c); err != nil {
			return nil, fmt.Errorf("loading campaign %d: %w", c+1, err)
		}
		fmt.Fprintf(os.Stderr, "%d campaigns loaded in %.0f s\n", c+1, time.Since(began).Seconds())
	}
	loadedOne, err := b.timed(1, b.one(b.campaigns-1), b.campaigns-1)
	if err != nil {
		return nil, err
	}
	loadedAll, err := b.timed(1, "SELECT "+funnelColumns+" FROM funnel ORDER BY campaign_id, variant", -1)
	if err != nil {
		return nil, err
	}
	resting, err := b.rest()
	if err != nil {
		return nil, err
	}
	one, err := b.timed(7, b.one(0), 0)
	if err != nil {
		return nil, err
	}
	all, err := b.timed(5, "SELECT "+funnelColumns+" FROM funnel ORDER BY campaign_id, variant", -1)
	if err != nil {
		return nil, err
	}
	raw, err := b.timed(3, fmt.Sprintf(rawFunnel, runOfBench(0)), 0)
	if err != nil {
		return nil, err
	}
	r := &result{Rate: 1000 / one, Unit: "funnels/s", PeakRSSMiB: peakMiB(stack), OneMS: one, AllMS: all, LoadedOneMS: loadedOne, LoadedAllMS: loadedAll, RawMS: raw}
	r.against(1000/raw, "windowFunnel over the raw tables, the same campaign: not a ceiling but what the view is to be faster than")
	fmt.Fprintf(os.Stderr, "\n%d campaigns of %d messages, %.0f s until at rest\n\n%-40s %12s %12s\n%-40s %9.0f ms %9.0f ms\n%-40s %9.0f ms %9.0f ms\n%-40s %9.0f ms\n",
		b.campaigns, b.messages, resting.Seconds(), "", "one", "all", "straight after loading", loadedOne, loadedAll, "at rest (median)", one, all, "windowFunnel over the raw tables", raw)
	return r, nil
}

// Of each hundred messages 98 are accepted, 95 delivered; people open 21 and click 8, machines open 7.
const (
	benchOutcomes = `INSERT INTO outcome_rows (outcome_id, message_id, run_id, campaign_id, variant, user_id, channel, outcome, attempt, occurred_at, provider, provider_id, ingested_at, kafka_topic, kafka_offset)
SELECT reinterpretAsUUID(sipHash128(number, step.1)), ` + benchMessage + `, step.1, 1, ` + benchTime + ` + toIntervalSecond(step.2), 'smtp', toString(number), ` + benchTime + `, 'outcomes', number
FROM numbers(%[3]d, %[4]d) ARRAY JOIN arrayFilter(s -> number %% 100 < s.3, [('rendered', 1, 100), ('accepted', 2, 98), ('delivered', 3, 95)]) AS step ` + benchSettings
	benchInputs = `INSERT INTO message_input_rows (message_id, run_id, campaign_id, variant, user_id, channel, requested_at, expires_at, attributes, segments, record, ingested_at, kafka_topic, kafka_offset)
SELECT ` + benchMessage + `, ` + benchTime + `, ` + benchTime + ` + toIntervalDay(3), '{}', '{}', repeat('r', 100), ` + benchTime + `, 'message-requests', number FROM numbers(%[3]d, %[4]d) ` + benchSettings
	benchHits = `INSERT INTO engagement_rows (engagement_id, message_id, run_id, campaign_id, variant, user_id, channel, kind, url, occurred_at, user_agent, ingested_at, kafka_topic, kafka_offset)
SELECT reinterpretAsUUID(sipHash128(number, hit.1)), message_id, run_id, campaign_id, variant, user_id, channel, hit.1, 'https://example.test/', at + toIntervalSecond(hit.3), 'Mozilla/5.0', at, 'engagements', number
FROM (SELECT number, ` + benchMessage + `, ` + benchTime + ` AS at FROM numbers(%[3]d, %[4]d)) ` + benchHitsOf + benchSettings
	benchLabels = `INSERT INTO engagement_label_rows (classifier_version, run_id, message_id, engagement_id, kind, label, occurred_at, ingested_at, kafka_offset)
SELECT 1, run_id, message_id, reinterpretAsUUID(sipHash128(number, hit.1)), hit.1, hit.2, at + toIntervalSecond(hit.3), at, number
FROM (SELECT number, ` + benchMessage + `, ` + benchTime + ` AS at FROM numbers(%[3]d, %[4]d)) ` + benchHitsOf + benchSettings
	benchHitsOf = `ARRAY JOIN arrayFilter(h -> h.4, [('opened', 'human', 600, number %% 100 < 21), ('clicked', 'human', 900, number %% 100 < 8), ('opened', 'machine', 4, number %% 100 BETWEEN 21 AND 27)]) AS hit `
	// Identities lie as hashes do.
	benchMessage = `reinterpretAsUUID(sipHash128(number)) AS message_id, toUUID('%[2]s') AS run_id, 'campaign-%[1]d' AS campaign_id, if(number %% 2 = 0, 'a', 'b') AS variant,
concat('user-', toString(number)) AS user_id, 'email' AS channel`
	benchTime = `(now64(6, 'UTC') - toIntervalHour(2))`
	// Parts as large as the sink makes them, one at a time: a whole chunk, its views and the merges do not fit into the embedded engine's 1 GiB.
	benchSettings = `SETTINGS max_threads = 1, max_insert_threads = 1, max_block_size = 65536, min_insert_block_size_rows = 131072, min_insert_block_size_bytes = 0`

	funnelColumns = "campaign_id, variant, requested, accepted, delivered, opened, clicked, opened_machine"
	// The same counts of one campaign; variants apart. Copies are told by windowFunnel itself: it asks for order, not for numbers.
	rawFunnel = `SELECT any(c) AS campaign_id, v AS variant, countIf(level >= 1) AS requested, countIf(level >= 2) AS accepted, countIf(level >= 3) AS delivered, countIf(opened) AS opened, countIf(clicked) AS clicked, countIf(machine) AS opened_machine
FROM
(
    SELECT message_id, max(variant) AS v, max(campaign_id) AS c, windowFunnel(604800)(at, what = 'requested', what = 'accepted', what = 'delivered') AS level,
        max(what = 'opened human') AS opened, max(what = 'clicked human') AS clicked, max(what = 'opened machine') AS machine
    FROM
    (
        SELECT message_id, CAST(variant AS String) AS variant, CAST(campaign_id AS String) AS campaign_id, toDateTime(requested_at) AS at, 'requested' AS what FROM message_input_rows WHERE run_id = toUUID('%[1]s')
        UNION ALL
        SELECT message_id, CAST(variant AS String), CAST(campaign_id AS String), toDateTime(occurred_at), CAST(outcome AS String) FROM outcome_rows WHERE run_id = toUUID('%[1]s')
        UNION ALL
        SELECT message_id, '', '', toDateTime(occurred_at), concat(kind, ' ', label) FROM engagement_label_rows WHERE classifier_version = 1 AND run_id = toUUID('%[1]s')
    )
    GROUP BY message_id
)
GROUP BY v
ORDER BY v`
)

func runOfBench(campaign int) string {
	return fmt.Sprintf("%08x-0000-4000-8000-000000000000", campaign*0x1234567+1)
}

func (b *funnelBenchmark) load(campaign int) error {
	for from := int64(0); from < b.messages; from += b.chunk {
		n := min(b.chunk, b.messages-from)
		for _, statement := range []string{benchInputs, benchOutcomes, benchHits, benchLabels} {
			if err := b.insert(fmt.Sprintf(statement, campaign, runOfBench(campaign), int64(campaign)*b.messages+from, n)); err != nil {
				return err
			}
		}
	}
	_, err := b.ask(fmt.Sprintf("INSERT INTO run_rows (run_id, campaign_id, state, ingested_at) SELECT toUUID('%s'), 'campaign-%d', 'finished', %s", runOfBench(campaign), campaign, benchTime))
	return err
}

// insert tries again where merges hold the memory, as the sink does: rows may come twice.
func (b *funnelBenchmark) insert(statement string) error {
	for try := 1; ; try++ {
		_, err := b.ask(statement)
		if err == nil || try == 10 || !strings.Contains(err.Error(), "MEMORY_LIMIT_EXCEEDED") {
			return err
		}
		fmt.Fprintln(os.Stderr, "the engine's memory is full; once more in 3 s")
		select {
		case <-time.After(3 * time.Second):
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
}

func (b *funnelBenchmark) one(campaign int) string {
	return fmt.Sprintf("SELECT %s FROM funnel WHERE run_id = toUUID('%s') ORDER BY campaign_id, variant", funnelColumns, runOfBench(campaign))
}

// timed is the median of so many answers, in milliseconds, each checked to the last
// number: of one campaign, or of all.
func (b *funnelBenchmark) timed(times int, query string, campaign int) (float64, error) {
	var want strings.Builder
	names := make([]string, 0, b.campaigns)
	for c := range b.campaigns {
		if campaign < 0 || c == campaign {
			names = append(names, "campaign-"+strconv.Itoa(c))
		}
	}
	slices.Sort(names)
	h := b.messages / 100
	for _, name := range names {
		fmt.Fprintf(&want, "%s\ta\t%d\t%d\t%d\t%d\t%d\t%d\n", name, 50*h, 49*h, 48*h, 11*h, 4*h, 3*h)
		fmt.Fprintf(&want, "%s\tb\t%d\t%d\t%d\t%d\t%d\t%d\n", name, 50*h, 49*h, 47*h, 10*h, 4*h, 4*h)
	}
	took := make([]float64, 0, times)
	for range times {
		began := time.Now()
		got, err := b.ask(query)
		if err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
		if got != want.String() {
			return 0, fmt.Errorf("the funnel is wrong: got\n%swant\n%s%s", got, want.String(), query)
		}
	}
	slices.Sort(took)
	return took[times/2], nil
}

// rest says, as the sink would, that all is stored, and waits until no run is to be
// counted and nothing is merged.
func (b *funnelBenchmark) rest() (time.Duration, error) {
	began := time.Now()
	if _, err := b.ask("INSERT INTO sink_progress_rows (topic, partition, complete_until, looked_at) SELECT 'outcomes', 0, now64(3, 'UTC'), now64(3, 'UTC')"); err != nil {
		return 0, err
	}
	for quiet := 0; quiet < 3; {
		if time.Since(began) > 5*time.Minute {
			return 0, fmt.Errorf("the database is not at rest after %s", time.Since(began))
		}
		select {
		case <-time.After(time.Second):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
		busy, err := b.ask("SELECT (SELECT count() FROM system.merges) + (SELECT count() FROM funnel_stale)")
		if err != nil {
			return 0, err
		}
		if quiet++; strings.TrimSpace(busy) != "0" {
			quiet = 0
		}
	}
	return time.Since(began), nil
}

func (b *funnelBenchmark) ask(sql string) (string, error) {
	req, err := http.NewRequestWithContext(b.ctx, http.MethodPost, b.clickhouse+"/?"+url.Values{"database": {"bench"}}.Encode(), strings.NewReader(sql))
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ClickHouse: %s", text)
	}
	return string(text), nil
}
