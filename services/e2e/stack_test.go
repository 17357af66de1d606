package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	gomail "github.com/emersion/go-message/mail"
	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/deploy/embedded"
	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/console"
	processes "github.com/hikyaku/hikyaku/services/e2e/internal/process"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// deadline is how long a test waits for anything; it is long because the
// machine may be busy, and nothing waits for it when things work.
const deadline = 2 * time.Minute

// stack is the embedded stack of one test, with the environment that finds it.
type stack struct {
	t         *testing.T
	env       map[string]string
	namespace string
	folder    string // of the bucket: dropping a file is uploading it
	outbox    string
	brokers   []string
}

// startStack starts what a test needs. Where KAFKA_BROKERS is set the broker is
// somebody else's, such as the one of scripts/kafka, and the test takes a namespace
// of its own there, whose topics and groups it removes at its end.
func startStack(t *testing.T) *stack {
	t.Helper()
	return startStackOn(t, os.Getenv("KAFKA_BROKERS"))
}

// startStackOn starts what a test needs with the brokers given, comma-separated;
// empty means the embedded one.
func startStackOn(t *testing.T, brokers string) *stack {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: the whole pipeline takes seconds")
	}
	parts := embedded.Parts()
	if brokers != "" {
		parts = slices.DeleteFunc(parts, func(p embedded.Part) bool { return p == embedded.Kafka })
	}
	e := startEmbedded(t, embedded.Options{DataDir: t.TempDir(), Parts: parts, KafkaAddr: free, RegistryAddr: free, ClickHouseAddr: free, S3Addr: free, SMTPAddr: free, OutboxAddr: free})
	collector := freeAddr(t)
	s := &stack{t: t, env: e.Env, namespace: newNamespace(), folder: e.S3Folder, outbox: e.OutboxDir}
	if brokers != "" {
		s.env["KAFKA_BROKERS"] = brokers
		t.Cleanup(func() { kafkatest.Remove(t, s.brokers, s.namespace) })
	}
	s.brokers = strings.Split(s.env["KAFKA_BROKERS"], ",")
	maps.Copy(s.env, map[string]string{
		"NAMESPACE": s.namespace, "HIKYAKU_DATA": t.TempDir(), "ALLOW_INSECURE_DEFAULTS": "true", "COLLECTOR_ADDR": collector, "TRACKING_URL": "http://" + collector, "TELEMETRY_ADDR": "",
		"PARTITIONS": "4", "RETRY_BACKOFF": "200ms", "POLL_INTERVAL": "200ms", "LOG_LEVEL": "warn",
	})
	return s
}

// newNamespace is a name that no other test has, in this process or another.
func newNamespace() string {
	return "e2e-" + strings.ToLower(rand.Text()[:10])
}

const free = "127.0.0.1:0"

// freeAddr is an address that must be known before anybody listens on it, or while nobody
// does: the one that is written into mails, or that of who is away for a while.
func freeAddr(t *testing.T) string {
	t.Helper()
	addrs, err := processes.FreeAddrs(1)
	require.NoError(t, err)
	return addrs[0]
}

// request asks for a link as a mail client would and returns the status; it
// follows no redirect.
func request(t *testing.T, method, link, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, link, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

// upload drops a file under a prefix and waits until its import is done.
func (s *stack) upload(prefix, name, text string) {
	s.t.Helper()
	dir := filepath.Join(s.folder, "imports", prefix)
	require.NoError(s.t, os.MkdirAll(dir, 0o755))
	require.NoError(s.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	var report struct {
		State string `json:"state"`
	}
	s.eventually("the import of "+name+" is done", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, name+".report.json"))
		return err == nil && json.Unmarshal(text, &report) == nil
	})
	require.Equal(s.t, "done", report.State)
}

// mailTexts returns every mail in the outbox, decoded, in order of arrival.
func (s *stack) mailTexts() []string {
	s.t.Helper()
	var out []string
	require.NoError(s.t, outbox.ReadIndex(s.outbox, func(e outbox.Entry) error {
		raw, err := outbox.ReadMail(s.outbox, e)
		if err != nil {
			return err
		}
		r, err := gomail.CreateReader(bytes.NewReader(raw))
		if err != nil {
			return err
		}
		text := r.Header.Get("Subject") + "\n" + r.Header.Get("List-Unsubscribe") + "\n"
		for {
			part, err := r.NextPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			body, err := io.ReadAll(part.Body)
			if err != nil {
				return err
			}
			text += string(body)
		}
		out = append(out, text)
		return nil
	}))
	return out
}

func (s *stack) subjects() []string {
	s.t.Helper()
	var out []string
	for _, text := range s.mailTexts() {
		subject, _, _ := strings.Cut(text, "\n")
		out = append(out, subject)
	}
	return out
}

// printed runs the command, which must succeed, and returns what it prints with --json.
func (s *stack) printed(args ...string) *bytes.Buffer {
	s.t.Helper()
	var out, errs bytes.Buffer
	code := console.Main(append([]string{"--timeout", deadline.String(), "--json"}, args...), envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &errs)
	require.Zero(s.t, code, "hikyaku %s: %s", strings.Join(args, " "), errs.String())
	return &out
}

// hikyaku runs the command and decodes what it prints.
func (s *stack) hikyaku(into any, args ...string) {
	s.t.Helper()
	out := s.printed(args...)
	if into != nil {
		require.NoError(s.t, json.Unmarshal(out.Bytes(), into), out.String())
	}
}

// define writes definitions for the people of this file and applies them.
func (s *stack) define(extra string) {
	s.t.Helper()
	dir := s.t.TempDir()
	require.NoError(s.t, os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(definitionsYAML+extra), 0o644))
	s.hikyaku(nil, "apply", "-f", dir)
}

const definitionsYAML = `
kind: ImportSpec
id: people
source: {prefix: imports/people/, format: csv}
user_id: {column: id}
profile:
  addresses: {email: {column: email}}
  consents: {email: {column: consent}}
  attributes: {name: {column: name}, age: {column: age, type: int}}
---
kind: Audience
id: adults
filter:
  attribute: {name: age, gte: 18}
---
kind: Template
id: hello
channel: email
subject: Hello {{ name }}
html: <html><body><p>Hello {{ name }}, <a href="https://example.test/offer">an offer</a></p></body></html>
text: "Hello {{ name }}: https://example.test/offer"
strict: true
---
kind: Campaign
id: greeting
audience: adults
template: hello
from: {name: Hikyaku, address: hello@example.test}
`

// population is a list whose outcome is known in advance.
type population struct {
	rows                                                       [][]string
	audience, noAddress, unsubscribed, rejected, failed, again int64
}

func makePopulation(n int) population {
	var p population
	for i := range n {
		row := []string{fmt.Sprintf("u%04d", i), fmt.Sprintf("u%04d@example.test", i), "", fmt.Sprintf("Name %d", i), "30"}
		p.audience++
		switch {
		case i%50 == 3:
			row[1] = ""
			p.noAddress++
		case i%50 == 7:
			row[2] = "unsubscribed"
			p.unsubscribed++
		case i%50 == 11:
			row[3] = ""
			p.rejected++
		case i%50 == 13:
			row[1] = fmt.Sprintf("u%04d+550@example.test", i)
			p.failed++
		case i%50 == 17:
			row[1] = fmt.Sprintf("u%04d+451@example.test", i)
			p.again++
		case i%10 == 9:
			row[4] = "17"
			p.audience--
		}
		p.rows = append(p.rows, row)
	}
	return p
}

func (p population) accepted() int64 {
	return p.audience - p.noAddress - p.unsubscribed - p.rejected - p.failed
}

// drop uploads the list and waits until its report says that it is done.
func (s *stack) drop(p population) {
	s.t.Helper()
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	require.NoError(s.t, w.Write([]string{"id", "email", "consent", "name", "age"}))
	require.NoError(s.t, w.WriteAll(p.rows))
	dir := filepath.Join(s.folder, "imports", "people")
	require.NoError(s.t, os.MkdirAll(dir, 0o755))
	require.NoError(s.t, os.WriteFile(filepath.Join(dir, "list.csv"), b.Bytes(), 0o644))
	var report struct {
		State string `json:"state"`
		Rows  int64  `json:"rows"`
	}
	s.eventually("the import is done", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "list.csv.report.json"))
		return err == nil && json.Unmarshal(text, &report) == nil
	})
	require.Equal(s.t, "done", report.State)
	require.EqualValues(s.t, len(p.rows), report.Rows)
}

// run starts the campaign and returns its balance once it has ended.
func (s *stack) run(campaign string, flags ...string) balance {
	s.t.Helper()
	var started struct {
		RunID string `json:"run_id"`
	}
	s.hikyaku(&started, append([]string{"start", campaign}, flags...)...)
	return s.ended(started.RunID)
}

type balance struct {
	RunID                                                                      string `json:"run_id"`
	State, Note                                                                string
	Audience, Repeats, Requested                                               int64
	Rejected, Accepted, Failed, Uncertain, Expired, Cancelled, Parked, Waiting int64
	Excluded, Difference                                                       map[string]int64
	Balanced                                                                   bool
}

// ended waits for the end of a run for as long as it goes on.
func (s *stack) ended(run string) balance {
	s.t.Helper()
	var last balance
	for changed := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var b balance
		s.hikyaku(&b, "balance", run)
		switch {
		case b.State == "finished", b.State == "cancelled", b.State == "failed":
			return b
		case !reflect.DeepEqual(b, last):
			last, changed = b, time.Now()
		case time.Since(changed) > deadline:
			require.FailNow(s.t, "the run stands still", "%+v\n%s", b, s.overview())
		}
	}
}

func (s *stack) eventually(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(deadline); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			require.FailNow(s.t, "timed out waiting until "+what, s.overview())
		}
	}
}

// overview is what hikyaku status says, for whoever wonders why a test waits.
func (s *stack) overview() string {
	var out bytes.Buffer
	console.Main([]string{"status", "--timeout", "3s"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &out)
	return out.String()
}

// requireBalance checks the books against what was known in advance.
func (s *stack) requireBalance(p population, b balance) {
	s.t.Helper()
	require.True(s.t, b.Balanced, "%+v", b)
	require.Equal(s.t, "finished", b.State)
	require.Equal(s.t, balance{RunID: b.RunID, State: "finished", Audience: p.audience, Requested: p.audience - p.noAddress - p.unsubscribed,
		Rejected: p.rejected, Accepted: p.accepted(), Failed: p.failed,
		Excluded: map[string]int64{"no_address": p.noAddress, "unsubscribed": p.unsubscribed}, Difference: map[string]int64{}, Balanced: true}, b)
}

// requireOneMailEach checks the provider's own record: it shares no code with
// the services.
func (s *stack) requireOneMailEach(accepted int64) {
	s.t.Helper()
	s.requireNobodyTwice(accepted, accepted)
}

// requireNobodyTwice checks that between least and most people got a mail, and
// nobody got two.
func (s *stack) requireNobodyTwice(least, most int64) {
	s.t.Helper()
	index, err := os.ReadFile(filepath.Join(s.outbox, "index.tsv"))
	require.NoError(s.t, err)
	times := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(index)), "\n") {
		times[strings.Split(line, "\t")[2]]++
	}
	require.GreaterOrEqual(s.t, int64(len(times)), least)
	require.LessOrEqual(s.t, int64(len(times)), most)
	for recipient, n := range times {
		require.Equal(s.t, 1, n, recipient)
	}
}

// requireAllCommitted checks that every group has passed everything it reads.
func (s *stack) requireAllCommitted() {
	s.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...))
	require.NoError(s.t, err)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	// Ticks never end, and what they cause is written a moment later.
	moving := map[topic.Name]bool{topic.Ticks: true, topic.Runs: true}
	// The last record of a transactional topic is its marker, which a group that does
	// not keep control records cannot pass.
	left := map[topic.Group]int64{topic.GroupShardLoop: 1, topic.GroupRenderer: 1}
	for _, g := range []topic.Group{topic.GroupPersonLoop, topic.GroupShardLoop, topic.GroupRenderer, topic.GroupSender, topic.GroupSink} {
		var behind string
		s.eventually(fmt.Sprintf("group %s has passed everything", g), func() bool {
			behind = ""
			committed, err := adm.FetchOffsets(context.Background(), g.In(s.namespace))
			require.NoError(s.t, err)
			for _, name := range topic.ReadBy(g) {
				if moving[name] {
					continue
				}
				ends, err := adm.ListEndOffsets(context.Background(), name.In(s.namespace))
				require.NoError(s.t, err)
				starts, err := adm.ListStartOffsets(context.Background(), name.In(s.namespace))
				require.NoError(s.t, err)
				ends.Each(func(e kadm.ListedOffset) {
					c, ok := committed.Lookup(e.Topic, e.Partition)
					start, _ := starts.Lookup(e.Topic, e.Partition)
					if !ok || e.Offset > start.Offset && c.At < e.Offset-left[g] {
						behind = fmt.Sprintf("%s/%d: committed %d of %d", e.Topic, e.Partition, c.At, e.Offset)
					}
				})
			}
			return behind == ""
		})
	}
}
