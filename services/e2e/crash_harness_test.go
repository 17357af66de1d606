package e2e

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/console"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// mortal builds the programs that can be told to die at a crash point, once for
// all tests.
var mortal = sync.OnceValues(func() (string, error) {
	return build("-tags", "crashpoints", "github.com/hikyaku/hikyaku/services/console/cmd/hikyaku", "github.com/hikyaku/hikyaku/services/internal/cmd/provision")
})

const (
	crashConnections = 4               // of the sender: twice as many may be uncertain after a kill
	crashPeople      = 60              // in the audience of a run, and others beside
	backAtWork       = 5 * time.Second // what docs/architecture.md promises; it is printed when it takes longer, and fails nothing here
	lookEvery        = 50 * time.Millisecond
	programConsole   = "hikyaku"
	programProvision = "provision"
)

// lane is a namespace of its own on the test's stack, with one instance of every
// service as a program that can crash. One case at a time is in it.
type lane struct {
	*stack
	root     *testing.T // ends the lane
	children map[string]*child
	db       *clickhouse.Conn
	kafka    *kgo.Client
	admin    *kadm.Client
	people   population
	size     int // how many people it has
	used     int // numbers what must not occur twice
}

// child is a program of a lane, and after a crash its successor.
type child struct {
	l       *lane
	program string
	env     map[string]string // beside the lane's
	args    []string
	cmd     *exec.Cmd
	stderr  string // file
	stdout  bytes.Buffer
	ended   chan struct{} // closed when cmd has ended
}

// newLane is a namespace beside the stack's own, without services. It ends with
// root; t is the test that needs it first.
func newLane(root, t *testing.T, s *stack) *lane {
	t.Helper()
	inner := *s
	inner.t, inner.env, inner.namespace = t, maps.Clone(s.env), newNamespace()
	l := &lane{stack: &inner, root: root, children: map[string]*child{}, size: crashPeople}
	collector := freeAddr(t)
	maps.Copy(inner.env, map[string]string{
		"NAMESPACE": inner.namespace, "COLLECTOR_ADDR": collector, "TRACKING_URL": "http://" + collector, "HIKYAKU_DATA": root.TempDir(),
		"LOG_LEVEL": "info", "SMTP_CONNECTIONS": fmt.Sprint(crashConnections), "TRANSACTION_BYTES": "65536", "STORE_CACHE_MIB": "8", "RETRY_BACKOFF": "100ms",
		// What is answered is in Kafka, however busy the machine is, and not in the spool.
		"INTAKE_ACK_TIMEOUT": "20s", "TRACKING_HIT_TIMEOUT": "20s",
	})
	type settings struct{ ClickHouse clickhouse.Config }
	cfg, err := config.Load[settings](context.Background(), envconfig.MapLookuper(inner.env))
	require.NoError(t, err)
	l.db, err = clickhouse.Open(cfg.ClickHouse, inner.namespace)
	require.NoError(t, err)
	l.kafka, err = kgo.NewClient(kgo.SeedBrokers(inner.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	l.admin = kadm.NewClient(l.kafka)
	root.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		_ = l.db.Exec(ctx, "DROP DATABASE IF EXISTS "+l.db.Database()) // so that many lanes do not weigh
		kafkatest.Remove(root, inner.brokers, inner.namespace)
		l.kafka.Close()
		l.db.Close()
	})
	return l
}

// populate starts so many instances of each service, defines a campaign for either
// policy and fills the audience.
func (l *lane) populate(instances int) {
	l.t.Helper()
	l.provision()
	for _, service := range serviceNames {
		for i := range instances {
			c := l.child(service)
			name := service
			if i > 0 { // links lead to the first
				c.env["INSTANCE"], c.env["COLLECTOR_ADDR"] = fmt.Sprint(i), free
				name += fmt.Sprint("-", i)
			}
			l.children[name] = c
			c.launch("")
		}
	}
	root, children := l.root, l.children
	root.Cleanup(func() {
		l.t = root
		for _, c := range children {
			c.awaitSignals()
			_ = c.cmd.Process.Signal(syscall.SIGTERM)
		}
		for _, c := range children {
			<-c.ended
			if !c.cmd.ProcessState.Success() {
				root.Errorf("%s does not end cleanly when it is told to: %s\n%s", c.program, c.cmd.ProcessState, tail(c.log()))
			}
		}
	})
	l.define(fmt.Sprintf(`policy: at_most_once
---
kind: Campaign
id: greeting-surely
audience: adults
template: hello
policy: at_least_once
from: {name: Hikyaku, address: hello@example.test}
---
kind: ImportSpec
id: list
source: {prefix: %s, format: csv}
user_id: {column: id}
profile:
  addresses: {email: {column: email}}
  attributes: {score: {column: score, type: int}}
segment: {id: listed, attributes: {score: {column: score}}}
`, l.prefix("list")))
	l.people = population{}
	for i := range l.size {
		row := []string{fmt.Sprintf("u%03d", i), l.address(fmt.Sprintf("u%03d", i), ""), "", fmt.Sprintf("Name %d", i), "30"}
		l.people.audience++
		switch i % 20 {
		case 3:
			row[1] = ""
			l.people.noAddress++
		case 7:
			row[2] = "unsubscribed"
			l.people.unsubscribed++
		case 11:
			row[3] = ""
			l.people.rejected++
		case 13:
			row[1] = l.address(row[0], "550")
			l.people.failed++
		case 17:
			row[1] = l.address(row[0], "451")
			l.people.again++
		case 19:
			row[4] = "17"
			l.people.audience--
		}
		l.people.rows = append(l.people.rows, row)
	}
	l.upload(l.prefixOf("people"), "list.csv", asCSV([]string{"id", "email", "consent", "name", "age"}, l.people.rows))
}

// address is a person's in this lane: no other lane has it.
func (l *lane) address(user, wish string) string {
	if wish != "" {
		wish = "+" + wish
	}
	return fmt.Sprintf("%s.%s%s@example.test", user, l.namespace, wish)
}

func (l *lane) prefixOf(list string) string { return l.namespace + "-" + list }
func (l *lane) prefix(list string) string   { return "imports/" + l.prefixOf(list) + "/" }

// define is the stack's, with a prefix of the lane's own for people.
func (l *lane) define(extra string) {
	l.t.Helper()
	dir := l.t.TempDir()
	text := strings.Replace(definitionsYAML, "imports/people/", l.prefix("people"), 1) + extra
	require.NoError(l.t, os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(text), 0o644))
	l.hikyaku(nil, "apply", "-f", dir)
}

func asCSV(header []string, rows [][]string) string {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(header) // to memory
	_ = w.WriteAll(rows)
	return b.String()
}

// next is a number that this lane has not used.
func (l *lane) next() int {
	l.used++
	return l.used
}

func (l *lane) child(program string, args ...string) *child {
	return &child{l: l, program: program, args: args, env: map[string]string{}}
}

// at is what CRASH_AT says.
func at(p crash.Point, n int) string { return fmt.Sprintf("%s#%d", p, n) }

// launch starts the program, to die at a point unless that is empty.
func (c *child) launch(crashAt string) {
	t := c.l.t
	t.Helper()
	dir, err := mortal()
	require.NoError(t, err)
	c.stderr = filepath.Join(c.l.root.TempDir(), fmt.Sprintf("%s-%d.log", c.program, c.l.next()))
	log, err := os.Create(c.stderr)
	require.NoError(t, err)
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(dir, c.program), c.args...)
	c.cmd.Stderr = log // a file: what was written stays, whoever dies
	c.stdout.Reset()
	c.cmd.Stdout = &c.stdout
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, env := range []map[string]string{c.l.env, c.env} {
		for k, v := range env {
			c.cmd.Env = append(c.cmd.Env, k+"="+v)
		}
	}
	if crashAt != "" {
		c.cmd.Env = append(c.cmd.Env, "CRASH_AT="+crashAt)
	}
	require.NoError(t, c.cmd.Start())
	c.ended = make(chan struct{})
	cmd, ended := c.cmd, c.ended
	go func() {
		_ = cmd.Wait() // its ProcessState is asked
		close(ended)
	}()
}

func (c *child) log() string {
	text, _ := os.ReadFile(c.stderr) // shown to people only, and asked for a line that must be there
	return string(text)
}

func (c *child) dead() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// explain says, of a case that has failed, what everybody said at last.
func (l *lane) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, c := range l.children {
		t.Logf("%s says:\n%s", c.program, tail(c.log()))
	}
}

// awaitSignals returns when the service would end cleanly if it were told to, or has
// ended.
func (c *child) awaitSignals() {
	c.l.eventually(c.program+" has started", func() bool { return c.dead() || strings.Contains(c.log(), "msg=started") })
}

// stop ends the service as an operator would.
func (c *child) stop() {
	t := c.l.t
	t.Helper()
	c.awaitSignals()
	require.False(t, c.dead(), "%s has ended by itself: %s\n%s", c.program, c.cmd.ProcessState, tail(c.log()))
	require.NoError(t, c.cmd.Process.Signal(syscall.SIGTERM))
	c.wait()
	require.True(t, c.cmd.ProcessState.Success(), "%s does not end cleanly when it is told to: %s\n%s", c.program, c.cmd.ProcessState, tail(c.log()))
}

// wait returns when the program has ended.
func (c *child) wait() {
	c.l.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(deadline):
		require.FailNow(c.l.t, "timed out waiting for the end of "+c.program, tail(c.log()))
	}
}

// requireDiedAt checks that the program, which has ended, was killed by its crash
// point and by nobody else.
func (c *child) requireDiedAt(crashAt string) {
	t := c.l.t
	t.Helper()
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, status.Signaled() && status.Signal() == syscall.SIGKILL, "%s was to die at %s and ended with %s\n%s", c.program, crashAt, c.cmd.ProcessState, tail(c.log()))
	lines := strings.Split(strings.TrimSpace(c.log()), "\n")
	require.Contains(t, lines, "crash: dying at "+crashAt, "%s was killed, but not there", c.program)
}

// groupOf is the group whose offsets tell that a service is at work.
var groupOf = map[string]topic.Group{
	topic.Resolver: topic.GroupPersonLoop, topic.Renderer: topic.GroupRenderer, topic.Sender: topic.GroupSender, topic.Collector: topic.GroupSink,
}

// committed is the sum of a group's committed offsets: it grows when the group is at
// work. -1 if it is not known.
func (l *lane) committed(g topic.Group) int64 {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	offsets, err := l.admin.FetchOffsets(ctx, g.In(l.namespace))
	if err != nil || offsets.Error() != nil {
		return -1
	}
	sum := int64(0)
	offsets.Each(func(o kadm.OffsetResponse) { sum += o.At })
	return sum
}

// comeback measures how long a service needs from its restart until its group moves.
type comeback struct {
	l      *lane
	group  topic.Group
	before int64
	since  time.Time
	took   time.Duration
}

// look notes the time when the group has moved.
func (b *comeback) look() {
	if b != nil && b.took == 0 && b.group != "" {
		if now := b.l.committed(b.group); now > b.before {
			b.took = time.Since(b.since)
		}
	}
}

func (b *comeback) say() {
	switch {
	case b == nil || b.group == "":
	case b.took == 0:
		b.l.t.Logf("back at work: there was nothing left to do")
	case b.took > backAtWork:
		b.l.t.Logf("back at work after %s, LATER THAN %s", b.took.Round(10*time.Millisecond), backAtWork)
	default:
		b.l.t.Logf("back at work after %s", b.took.Round(10*time.Millisecond))
	}
}

// started is what became of hikyaku start, which waits for the run and is therefore
// called beside the test.
type started struct {
	run string
	err error
}

func (l *lane) begin(campaign string) <-chan started {
	answer := make(chan started, 1)
	env := maps.Clone(l.env)
	go func() {
		var out, errs bytes.Buffer
		code := console.Main([]string{"--timeout", deadline.String(), "start", campaign, "--again", "--yes", "--json"}, envconfig.MapLookuper(env), strings.NewReader(""), &out, &errs)
		var got struct {
			RunID string `json:"run_id"`
		}
		if code != 0 || json.Unmarshal(out.Bytes(), &got) != nil {
			answer <- started{err: fmt.Errorf("hikyaku start %s: exit code %d: %s", campaign, code, errs.String())}
			return
		}
		answer <- started{run: got.RunID}
	}()
	return answer
}

// stateOf is a run's state, as the sink has stored it; empty while it has not.
func (l *lane) stateOf(run string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	state := ""
	_ = l.db.QueryRow(ctx, "SELECT toString(state) FROM runs WHERE run_id = toUUID(?)", uuid(run)).Scan(&state) // not there yet
	return state
}

func uuid(hex string) string {
	return hex[:8] + "-" + hex[8:12] + "-" + hex[12:16] + "-" + hex[16:20] + "-" + hex[20:]
}

func over(state string) bool {
	return state == "finished" || state == "cancelled" || state == "failed" || state == "refused"
}

// mailbox is where the provider's record of this lane ends.
func (l *lane) mailbox() int64 {
	l.t.Helper()
	info, err := os.Stat(filepath.Join(l.outbox, "index.tsv"))
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(l.t, err)
	return info.Size()
}

// copies counts, in the provider's own record, the mails since from that went to
// people of this lane.
func (l *lane) copies(from int64) map[string]int64 {
	l.t.Helper()
	f, err := os.Open(filepath.Join(l.outbox, "index.tsv"))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(l.t, err)
	defer f.Close()
	_, err = f.Seek(from, io.SeekStart)
	require.NoError(l.t, err)
	text, err := io.ReadAll(f)
	require.NoError(l.t, err)
	times := map[string]int64{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if fields := strings.Split(line, "\t"); len(fields) > 2 && strings.Contains(fields[2], "."+l.namespace) {
			times[fields[2]]++
		}
	}
	return times
}

// death is how a case's victim dies in a run.
type death struct {
	victim string
	// points in the order in which it dies: the last is the case's own, the others
	// bring it there.
	points []crash.Point
	// most is up to which occurrence of the first point it may live.
	most int
	// surely says that the run's policy is at_least_once.
	surely bool
	// uncertain is how many people may be it: least and most. The most is nothing
	// where no call can have been made without a known answer.
	uncertain [2]int64
	// before runs when the victim has been launched, before the run begins.
	before func(l *lane)
}

// maxRounds is how many runs a victim may live through before it passes its point
// as often as it was told to.
const maxRounds = 25

// dieInARun lets the victim die in the middle of a run, as often as it has points,
// and checks that everybody is accounted for.
func (l *lane) dieInARun(d death, rng *rand.Rand) {
	l.t.Helper()
	victim := l.children[d.victim]
	victim.stop()
	order := at(d.points[0], 1+rng.IntN(max(1, d.most)))
	victim.launch(order)
	if d.before != nil {
		d.before(l)
	}
	campaign := "greeting"
	if d.surely {
		campaign = "greeting-surely"
	}
	deaths := 0
	for round := 1; ; round++ {
		mailbox, deathsBefore := l.mailbox(), deaths
		answer := l.begin(campaign)
		run := ""
		var back *comeback
		l.eventually("the run has ended", func() bool {
			back.look()
			if victim.dead() {
				require.Less(l.t, deaths, len(d.points), "%s has ended once more: %s\n%s", d.victim, victim.cmd.ProcessState, tail(victim.log()))
				victim.requireDiedAt(order)
				deaths++
				order = ""
				if deaths < len(d.points) {
					order = at(d.points[deaths], 1)
				}
				back = &comeback{l: l, group: groupOf[d.victim], before: l.committed(groupOf[d.victim]), since: time.Now()}
				victim.launch(order)
				return false
			}
			select {
			case s := <-answer:
				require.NoError(l.t, s.err)
				run = s.run
			default:
			}
			// A successor that is still on its way to its own point is waited for.
			return run != "" && (deaths == deathsBefore || deaths == len(d.points)) && over(l.stateOf(run))
		})
		back.say()
		l.requireAccounted(d, run, deaths-deathsBefore, mailbox)
		if deaths == len(d.points) {
			break
		}
		require.Less(l.t, round, maxRounds, "%s lives: it has not passed %s", d.victim, order)
	}
	l.requireAllCommitted()
}

// requireAccounted checks the books of a run and the copies at the provider.
func (l *lane) requireAccounted(d death, run string, deaths int, mailbox int64) {
	l.t.Helper()
	var b balance
	l.hikyaku(&b, "balance", run)
	p := l.people
	require.Equal(l.t, "finished", b.State, "%+v", b)
	require.True(l.t, b.Balanced, "%+v", b)
	require.Empty(l.t, b.Difference)
	require.Equal(l.t, p.audience, b.Audience)
	require.Zero(l.t, b.Repeats)
	require.Equal(l.t, map[string]int64{"no_address": p.noAddress, "unsubscribed": p.unsubscribed}, b.Excluded)
	require.Equal(l.t, p.rejected, b.Rejected)
	require.Equal(l.t, p.accepted()+p.failed, b.Accepted+b.Failed+b.Uncertain, "%+v", b)
	require.Zero(l.t, b.Expired+b.Cancelled+b.Parked+b.Waiting, "%+v", b)

	copies := l.copies(mailbox)
	var repeats int64
	for who, n := range copies {
		repeats += n - 1
		if !d.surely {
			require.EqualValues(l.t, 1, n, "copies for %s", who)
		}
	}
	if d.surely {
		require.Zero(l.t, b.Uncertain)
		require.Equal(l.t, p.accepted(), b.Accepted)
		require.Equal(l.t, p.failed, b.Failed)
		require.EqualValues(l.t, p.accepted(), len(copies), "nobody is missing")
		require.LessOrEqual(l.t, repeats, int64(deaths)*2*crashConnections)
		if deaths > 0 {
			l.t.Logf("%d people got a second copy", repeats)
		}
		return
	}
	least, most := d.uncertain[0], d.uncertain[1]
	if deaths == 0 {
		least, most = 0, 0
	}
	require.GreaterOrEqual(l.t, b.Uncertain, least, "%+v", b)
	require.LessOrEqual(l.t, b.Uncertain, most*int64(max(1, deaths)), "%+v", b)
	require.GreaterOrEqual(l.t, int64(len(copies)), b.Accepted, "whoever was accepted has it")
	require.LessOrEqual(l.t, int64(len(copies)), b.Accepted+b.Uncertain, "whoever has it was accepted or is uncertain")
	require.LessOrEqual(l.t, b.Failed, p.failed)
	if b.Uncertain > 0 {
		l.t.Logf("%d people are uncertain", b.Uncertain)
	}
}

// post sends a body to the lane's collector. The error is the connection's.
func (l *lane) post(path, body string) (status int, err error) {
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodPost, l.env["TRACKING_URL"]+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth("dev", "")
	return answered(req)
}

// answered makes a request over a connection of its own and reads no body.
func answered(req *http.Request) (int, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// count asks ClickHouse for a number.
func (l *lane) count(query string, args ...any) int {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var n uint64
	require.NoError(l.t, l.db.QueryRow(ctx, query, args...).Scan(&n), query)
	return int(n)
}

// records reads what is committed in a topic of the lane, from the beginning.
func (l *lane) records(name topic.Name, each func(*kgo.Record)) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	ends, err := l.admin.ListCommittedOffsets(ctx, name.In(l.namespace))
	require.NoError(l.t, err)
	require.NoError(l.t, ends.Error())
	left := map[int32]int64{}
	from := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		from[o.Partition] = kgo.NewOffset().At(0)
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(l.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name.In(l.namespace): from}))
	require.NoError(l.t, err)
	defer cl.Close()
	// The last record before the end may be of an aborted transaction, which nobody
	// is shown: a partition is read when its position says so.
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		require.NoError(l.t, ctx.Err(), "reading %s", name)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if !r.Attrs.IsControl() {
					each(r)
				}
				if r.Offset+1 >= left[p.Partition] {
					delete(left, p.Partition)
				}
			}
		})
	}
}

// fnv is a hash of a case's name, so that each case draws its own numbers.
func fnv(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
