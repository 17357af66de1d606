// Package drill shows what Hikyaku promises while parts of it die: a campaign
// runs, people join, unsubscribe and click, services are killed and paused, and at
// the end everybody is accounted for.
//
// Like the quickstart it has no code in common with the services: it starts them
// as processes and believes what ClickHouse, the broker and the mail server tell.
package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/e2e/internal/bucket"
	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

const help = `drill sends a campaign to 50,000 people (to an outbox: nothing leaves this machine) while services are killed, and says who got it.

  scripts/drill                              20 services are killed at random moments, the embedded stack once
  scripts/drill --instances 3 --pause        three of each; each service is also paused beyond the session timeout
  scripts/drill --policy at_least_once       whoever is not known to have got it is sent it again
  scripts/drill --points                     they die at named points of their code instead (test builds)
  scripts/drill --sabotage claim             the sender's claim is switched off, and senders also die between an answer and its
                                             outcome: the drill must fail and name who was hit twice
  scripts/drill --seed 42                    the same people, victims and shares of the run again
  scripts/drill --people 5000 --kills 5      under a minute
  scripts/drill intake                       another drill: events, a broker that is away and a collector that is killed; -h teaches

Meanwhile people join over HTTP and by files dropped into S3, unsubscribe and click. A kill is SIGKILL; the victim is started again at
once. A pause is SIGSTOP for the session timeout and 4 s, then SIGCONT. Moments are shares of the audience that is settled, drawn from
the seed; a fifth of the kills fall into the import. The stack (Kafka, registry, ClickHouse, S3 in one process; not the outbox) promises what it has
acknowledged; its kill is judged by the same bars but counted apart, and services may take longer while it is away. --keep-stack leaves it
alone; so does a stack that is not ours.

What must hold, or the exit code is 1 and the bar is named:
  copies       nobody gets two under at_most_once; under at_least_once no more than the messages claimed and without an outcome at the kills
  missing      everybody in the audience is excluded with a reason or has an ending; who was accepted has a mail, and who has a mail
               is accepted or uncertain
  uncertain    at most 128 for each kill or pause of a sender, none otherwise; under at_least_once only who was not to be asked for again,
               having unsubscribed say. (The embedded broker, killed while senders share out their work anew, forgets who they are, so
               its kill may count like one of every sender; Kafka's does not.)
  balance      the resolver's counters and ClickHouse's count are equal in every class
  back         each service is at work within 5 s (--back) of its restart: ready, and every loop has dealt with a record or has none waiting. What
               the stack was away is taken off, and the time in which another instance of that service hangs: Kafka shares out a
               group's work only when that one's session has ended
  acknowledged who joined or unsubscribed and was told so is found so; every file is imported to the end

A part whose variable is set is not started: KAFKA_BROKERS, SCHEMA_REGISTRY_URL, CLICKHOUSE_URL, AWS_ENDPOINT_URL_S3, SMTP_ADDR. With
SMTP_ADDR the drill cannot see copies, unless --index names what your mail sink writes: one recipient per line, or the outbox's index.tsv.
Ports are free ones, the namespace is a new one, data lies in a temporary directory that is removed unless a bar broke or --keep.

What happens is told on stderr; stdout carries one line of JSON when everything has stopped. Exit codes: 0 every bar held, 1 one broke,
2 usage, 3 something needed is missing or away, 130 stopped before there was a result.

`

const (
	atMostOnce  = "at_most_once"
	atLeastOnce = "at_least_once"
)

type options struct {
	people, kills, instances  int
	pause, points, stackKill  bool
	policy, sabotage, indexOf string
	seed                      uint64
	keep                      bool
	back                      time.Duration
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("drill", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, help)
		flags.PrintDefaults()
	}
	seed := flags.Int64("seed", -1, "repeat the drill of this `number`; a random one if not given")
	flags.IntVar(&o.people, "people", 50_000, "`number` of people in the list")
	flags.IntVar(&o.kills, "kills", 20, "`number` of services killed")
	flags.IntVar(&o.instances, "instances", 1, "`number` of instances of every service")
	flags.BoolVar(&o.pause, "pause", false, "pause each service once beyond the session timeout, too")
	flags.BoolVar(&o.points, "points", false, "kill at named points of the code (test builds) instead of random moments")
	flags.StringVar(&o.policy, "policy", atMostOnce, "at_most_once or at_least_once")
	flags.StringVar(&o.sabotage, "sabotage", "", "break a `promise` (test builds): claim")
	flags.StringVar(&o.indexOf, "index", "", "`file` with the recipients that a mail sink of your own (SMTP_ADDR) has seen")
	flags.DurationVar(&o.back, "back", backWithin, "how soon a service must be back at work; a busy machine may need longer")
	keepStack := flags.Bool("keep-stack", false, "do not kill the embedded stack")
	flags.BoolVar(&o.keep, "keep", false, "keep the working directory and say where it is")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.stackKill = !*keepStack && getenv("KAFKA_BROKERS") == ""
	o.seed = uint64(*seed)
	if *seed < 0 {
		o.seed = uint64(rand.Uint32())
	}
	switch {
	case flags.NArg() > 0:
		return o, command.Usagef("unexpected %q; -h teaches", flags.Arg(0))
	case o.people < 100:
		return o, command.Usagef("--people %d: at least 100", o.people)
	case o.kills < 0 || o.instances < 1 || o.instances > 16:
		return o, command.Usagef("--kills from 0, --instances from 1 to 16")
	case o.policy != atMostOnce && o.policy != atLeastOnce:
		return o, command.Usagef("--policy %s: at_most_once or at_least_once", o.policy)
	case o.sabotage != "" && o.sabotage != "claim":
		return o, command.Usagef("--sabotage %s: claim is the only promise that can be broken", o.sabotage)
	case o.sabotage != "" && (o.kills == 0 || o.policy != atMostOnce):
		return o, command.Usagef("--sabotage shows under at_most_once, and when a sender is killed")
	case o.indexOf != "" && getenv("SMTP_ADDR") == "":
		return o, command.Usagef("--index is for a mail sink of your own; set SMTP_ADDR")
	}
	if o.indexOf != "" {
		abs, err := filepath.Abs(o.indexOf)
		if err != nil {
			return o, err
		}
		o.indexOf = abs
	}
	return o, nil
}

// Main runs the command and returns its exit code.
func Main(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return command.Done
	case err != nil:
		fmt.Fprintln(stderr, "drill:", err)
		return command.Usage
	}
	ctx, stop := command.Stoppable()
	defer stop(nil)

	d := &drill{options: o, getenv: getenv, out: stderr, ctx: ctx, fail: stop, procs: process.NewStarter(), began: time.Now(),
		http: &http.Client{Timeout: 2 * time.Second}}
	d.result = Result{Seed: o.seed, Policy: o.policy, Instances: o.instances, People: o.people}
	err = d.run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // rather than what it did to the step
	}
	d.halt()
	if err != nil {
		d.result.Error = err.Error()
	}
	code := command.ExitCode(err)
	if len(d.result.Broken) > 0 {
		code = command.Broken
	}
	d.clean(code)
	d.result.Seconds = float64(d.since().Milliseconds()) / 1000
	if err != nil {
		fmt.Fprintln(stderr, "\ndrill:", err)
	}
	if werr := d.result.write(stdout); werr != nil {
		return command.Broken
	}
	return code
}

// drill is one call of the command.
type drill struct {
	options
	getenv func(string) string
	out    io.Writer
	ctx    context.Context
	fail   context.CancelCauseFunc
	procs  *process.Starter
	http   *http.Client
	began  time.Time
	result Result

	root, dir string
	namespace string
	env       []string
	own       map[string]string // variables that we have set
	bucket    bucket.Bucket
	prefix    string
	list      *population

	index     string // what the mail server writes; empty if it cannot be seen
	indexFrom int64
	mails     int

	outbox, stack *member
	members       []*member
	kafka         *kadm.Client
	crowd         *crowd
	runID         identity.ID
	sheet         sheet
	tail          sync.WaitGroup // pauses and drops under way
	files         int            // dropped
	filesDone     int

	mu        sync.Mutex
	incidents []*incident
	snapshots []snapshot
	settled   float64       // share of the audience
	slowest   time.Duration // from a file's drop to its report
}

func (d *drill) since() time.Duration { return time.Since(d.began) }

func (d *drill) say(format string, a ...any) {
	fmt.Fprintf(d.out, "%8s  %s\n", clock(d.since()), fmt.Sprintf(format, a...))
}

func (d *drill) share() float64 { d.mu.Lock(); defer d.mu.Unlock(); return d.settled }

func (d *drill) record(i *incident) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.incidents = append(d.incidents, i)
	switch i.Kind {
	case ended:
		d.say("%s ended of itself: %s", i.name(), i.Why)
	case crashed:
		d.say("%s died at %s", i.name(), i.Point)
	}
}

// returned says that a process is at work again.
func (d *drill) returned(i *incident) {
	d.say("%s is back at work, %.1f s after its restart", i.name(), (i.Back - i.Restart).Seconds())
}

func (d *drill) set(variable string) bool { return d.getenv(variable) != "" }

func (d *drill) bin(name string) string { return filepath.Join(d.dir, "bin", name) }

func (d *drill) brokers() []string { return strings.Split(d.own["KAFKA_BROKERS"], ",") }

// build builds what is needed and keeps it aside, so that a build by somebody else
// meanwhile changes nothing.
func (d *drill) build() error {
	var err error
	if d.root, err = command.AboveBin("scripts/drill"); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "hikyaku-drill-"); err != nil {
		return err
	}
	to := filepath.Join(d.root, "bin")
	args := []string{"build"}
	if d.sabotage != "" || d.points {
		to = filepath.Join(to, "crashpoints")
		args = append(args, "-tags", "crashpoints")
	}
	packages := []string{"./deploy/embedded/cmd/embedded", "./services/internal/cmd/provision", "./services/console/cmd/hikyaku", "./services/e2e/cmd/copies"}
	for _, s := range services() {
		packages = append(packages, "./services/"+s+"/cmd/"+s)
	}
	e, err := d.procs.Run(d.ctx, process.Tool{Path: "go", Args: append(append(args, "-o", to+string(filepath.Separator)), packages...), Dir: d.root, Env: os.Environ()})
	if err != nil {
		return command.Missingf("building: %w", err)
	}
	if e.Code != 0 {
		return command.Brokenf("the programs do not build: %s", e.Stderr)
	}
	if err := os.Mkdir(filepath.Join(d.dir, "bin"), 0o755); err != nil {
		return err
	}
	for _, p := range packages {
		name := filepath.Base(p)
		if err := os.Link(filepath.Join(to, name), d.bin(name)); err != nil { // another file system
			if err := copyFile(filepath.Join(to, name), d.bin(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// prepare starts everything and defines the campaign.
func (d *drill) prepare() error {
	const parts = 5
	n := d.instances
	addr, err := process.FreeAddrs(parts + n + n*len(services()))
	if err != nil {
		return command.Missingf("%w", err)
	}
	data := filepath.Join(d.dir, "data")
	d.namespace = fmt.Sprintf("drill%08x", rand.Uint32())
	d.prefix = "imports/" + d.namespace + "/"
	collectors := addr[parts : parts+n]
	d.own = map[string]string{
		"HIKYAKU_DATA": data, "NAMESPACE": d.namespace, "ALLOW_INSECURE_DEFAULTS": "true", "TRACKING_SECRET": trackingSecret, "TRACKING_KEY_ID": "1",
		"TRACKING_URL": "http://" + collectors[0], "INSTANCE": "0", "WRITE_KEYS": "", "ROLES": "", "SABOTAGE": "", "CRASH_AT": "", "TELEMETRY_ADDR": "",
	}
	add := func(name, value string) {
		if v := d.getenv(name); v != "" {
			value = v
		}
		d.own[name] = value
	}
	add("KAFKA_BROKERS", addr[0])
	add("SCHEMA_REGISTRY_URL", "http://"+addr[1])
	add("CLICKHOUSE_URL", "http://"+addr[2])
	add("AWS_ENDPOINT_URL_S3", "http://"+addr[3])
	add("SMTP_ADDR", addr[4])
	add("AWS_REGION", "us-east-1")
	add("S3_BUCKET", "hikyaku")
	add("RETRY_BACKOFF", "2s")
	add("POLL_INTERVAL", "300ms")
	if !d.set("AWS_ACCESS_KEY_ID") || !d.set("AWS_SECRET_ACCESS_KEY") {
		d.own["AWS_ACCESS_KEY_ID"], d.own["AWS_SECRET_ACCESS_KEY"] = "hikyaku", "hikyaku-embedded"
	}
	d.env = os.Environ()
	for name, value := range d.own {
		d.env = append(d.env, name+"="+value) // the last of two settings counts
	}

	if d.set("SMTP_ADDR") {
		d.index = d.indexOf
		if info, err := os.Stat(d.index); d.index != "" && err == nil {
			d.indexFrom = info.Size()
		}
	} else {
		box := filepath.Join(d.dir, "outbox")
		d.index = filepath.Join(box, "index.tsv")
		d.outbox = d.member("outbox", 0, "embedded", []string{"outbox", "--count", "--listen", addr[4], "--dir", box}, nil)
		if err := d.begin(d.outbox); err != nil {
			return err
		}
	}
	ours := false
	env := os.Environ()
	for variable := range map[string]bool{"KAFKA_BROKERS": true, "SCHEMA_REGISTRY_URL": true, "CLICKHOUSE_URL": true, "AWS_ENDPOINT_URL_S3": true} {
		ours = ours || !d.set(variable)
	}
	if ours {
		env = append(env, "SMTP_ADDR="+d.own["SMTP_ADDR"], "AWS_ACCESS_KEY_ID="+d.own["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY="+d.own["AWS_SECRET_ACCESS_KEY"])
		if library := d.library(); library != "" {
			env = append(env, "LIBCHDB_PATH="+library)
		}
		d.stack = d.member("embedded", 0, "embedded", []string{"-data", data, "-kafka", addr[0], "-registry", addr[1], "-clickhouse", addr[2], "-s3", addr[3]}, env)
		if err := d.begin(d.stack); err != nil {
			return err
		}
	} else {
		d.stackKill = false
	}
	if err := d.reachable(); err != nil {
		return err
	}
	e, err := d.procs.Run(d.ctx, process.Tool{Path: d.bin("provision"), Env: d.env, Dir: d.dir})
	if err != nil {
		return err
	}
	if e.Code != 0 {
		return command.Exit(e.Code, errors.New(e.LastLine()))
	}
	if err := d.connect(); err != nil {
		return err
	}
	groups := map[string][]string{topic.Resolver: {string(topic.GroupPersonLoop), string(topic.GroupShardLoop)}, topic.Renderer: {string(topic.GroupRenderer)},
		topic.Sender: {string(topic.GroupSender)}, topic.Collector: {string(topic.GroupSink)}}
	var apis []string
	telemetry := addr[parts+n:]
	for s, service := range services() {
		for i := range n {
			at := telemetry[s*n+i]
			env := append(d.env[:len(d.env):len(d.env)], fmt.Sprintf("INSTANCE=%d", i), "TELEMETRY_ADDR="+at)
			if service == topic.Collector {
				env = append(env, "COLLECTOR_ADDR="+collectors[i])
				apis = append(apis, "http://"+collectors[i])
			}
			if service == topic.Sender && d.sabotage != "" {
				env = append(env, "SABOTAGE="+d.sabotage)
			}
			m := d.member(service, i, service, nil, env)
			m.telemetry, m.groups = at, groups[service]
			d.members = append(d.members, m)
		}
	}
	for _, a := range plan(d.options).Armed {
		m := d.find(a.Service, a.Instance)
		m.arms = append(m.arms, a.Point)
	}
	for _, m := range d.members {
		if err := m.supervise(); err != nil {
			return err
		}
	}
	for _, m := range d.members {
		if err := d.await(m.name()+" to be ready", 90*time.Second, func() bool { return m.up(d.ctx) }); err != nil {
			return err
		}
	}
	if d.crowd, err = newCrowd(d, apis); err != nil {
		return err
	}
	d.bucket = bucket.Folder{Dir: filepath.Join(data, "s3", d.own["S3_BUCKET"])}
	if endpoint := d.getenv("AWS_ENDPOINT_URL_S3"); endpoint != "" {
		if d.bucket, err = bucket.NewRemote(d.ctx, endpoint, d.own["AWS_REGION"], d.own["S3_BUCKET"]); err != nil {
			return err
		}
	}
	definitions := filepath.Join(d.dir, "definitions")
	if err := os.Mkdir(definitions, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(definitions, "drill.yaml"), fmt.Appendf(nil, definitionsYAML, d.prefix, d.policy), 0o644); err != nil {
		return err
	}
	if e, err = d.hikyaku("apply", "-f", definitions); err != nil {
		return err
	}
	if e.Code != 0 {
		return command.Exit(e.Code, fmt.Errorf("applying the definitions: %s", e.LastLine()))
	}
	return nil
}

func (d *drill) find(service string, instance int) *member {
	for _, m := range d.members {
		if m.service == service && m.instance == instance {
			return m
		}
	}
	return nil
}

func (d *drill) member(service string, instance int, program string, args, env []string) *member {
	if env == nil {
		env = os.Environ()
	}
	return &member{d: d, service: service, instance: instance, path: d.bin(program), args: args, env: env,
		logPath: filepath.Join(d.dir, fmt.Sprintf("%s-%d.log", service, instance))}
}

// begin starts a part of the stack and waits until it serves.
func (d *drill) begin(m *member) error {
	if err := m.supervise(); err != nil {
		return err
	}
	err := d.await(m.service+" to be ready", 90*time.Second, func() bool { return m.up(d.ctx) })
	if err != nil {
		return command.Missingf("%w; its log says: %s", err, process.LastLines(m.said(), 2))
	}
	return nil
}

// library is where ClickHouse's engine lies, as the embedded stack does not look for it where we start it.
func (d *drill) library() string {
	if d.set("LIBCHDB_PATH") {
		return d.getenv("LIBCHDB_PATH")
	}
	found, _ := filepath.Glob(filepath.Join(d.root, "deploy/embedded/chdb/node_modules/@chdb/*/libchdb.so"))
	if len(found) > 0 {
		return found[0]
	}
	return ""
}

// reachable refuses to begin when something that is not ours is away.
func (d *drill) reachable() error {
	for variable, addr := range map[string]string{"KAFKA_BROKERS": d.brokers()[0], "SMTP_ADDR": d.own["SMTP_ADDR"]} {
		if !d.set(variable) {
			continue
		}
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return command.Missingf("%s: %w", variable, err)
		}
		conn.Close()
	}
	return nil
}

// await waits for a condition.
func (d *drill) await(what string, limit time.Duration, done func() bool) error {
	for end := time.Now().Add(limit); !done(); {
		if time.Now().After(end) {
			return command.Missingf("waited %s for %s", limit, what)
		}
		if !command.Wait(d.ctx, 50*time.Millisecond) {
			return context.Cause(d.ctx)
		}
	}
	return nil
}

func (d *drill) get(ctx context.Context, url string) (int, []byte) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, body
}

// halt stops everything: the services first, then what they stand on.
func (d *drill) halt() {
	if d.crowd != nil {
		d.crowd.end()
	}
	var wg sync.WaitGroup
	for _, m := range d.members {
		if m.stopped != nil {
			wg.Go(m.halt)
		}
	}
	wg.Wait()
	for _, m := range []*member{d.stack, d.outbox} {
		if m != nil && m.stopped != nil {
			m.halt()
		}
	}
	if d.kafka != nil {
		d.kafka.Close()
	}
}

// clean removes the working directory, unless there is something to look at.
func (d *drill) clean(code int) {
	if d.dir == "" {
		return
	}
	if d.keep || code == command.Broken {
		fmt.Fprintf(d.out, "\nLogs, data and lists of names are kept in %s\n", d.dir)
		return
	}
	os.RemoveAll(d.dir)
}

// imported tells whether the report of a file says that it is done.
func (d *drill) imported(key string) (bool, error) {
	text, there, err := d.bucket.Get(d.ctx, key+".report.json")
	var report struct{ State, Error string }
	if err != nil || !there || json.Unmarshal(text, &report) != nil {
		return false, nil // it is being written, or S3 is away
	}
	if report.State != "done" {
		return false, command.Brokenf("the import of %s ended as %s: %s", key, report.State, report.Error)
	}
	return true, nil
}

// put drops a file; S3 may be away for a moment.
func (d *drill) put(name string, write func(io.Writer) error) (key string, err error) {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return "", err
	}
	file := filepath.Join(d.dir, name)
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		return "", err
	}
	key = d.prefix + name
	for end := time.Now().Add(30 * time.Second); ; {
		if err = d.bucket.Put(d.ctx, key, file); err == nil || time.Now().After(end) {
			return key, err
		}
		if !command.Wait(d.ctx, 500*time.Millisecond) {
			return key, context.Cause(d.ctx)
		}
	}
}
