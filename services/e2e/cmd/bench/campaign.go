package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A benchmark of a whole campaign: people in a CSV file, mails of 10 KB with
// five fields and five tracked links, the mail server a counting sink on the
// same two cores.
const (
	benchTimeout = 10 * time.Minute
	mailBytes    = 10 << 10
)

func campaign(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("campaign", flag.ContinueOnError)
	people := flags.Int("people", 20_000, "people in the audience")
	connections := flags.Int("connections", 32, "SMTP connections of each sender")
	instances := flags.Int("instances", 1, "instances of each service, 1 to 4")
	profiles := flags.String("profile", "", "directory for a CPU profile of every process, taken while sending, and for the services' metrics")
	keep := flags.Bool("keep", false, "keep the working directory and say where it is")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	if *instances < 1 || *instances > 4 || *connections < 1 {
		return nil, fmt.Errorf("%d instances, %d connections: 1 to 4 instances, and at least a connection for each sender", *instances, *connections)
	}
	b := &campaignBench{ctx: ctx, people: *people, connections: *connections, instances: *instances, profiles: *profiles}
	var err error
	if b.place, err = newPlace(ctx, root, nil); err != nil {
		return nil, err
	}
	defer b.leave(*keep)
	defer func() {
		if b.index != nil {
			b.index.Close()
		}
	}()
	return b.run()
}

func buildAll(ctx context.Context, root, bin string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./deploy/embedded/cmd/embedded", "./services/internal/cmd/provision", "./services/importer/cmd/importer",
		"./services/audience-resolver/cmd/audience-resolver", "./services/renderer/cmd/renderer", "./services/sender/cmd/sender", "./services/event-collector/cmd/event-collector", "./services/console/cmd/hikyaku")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building: %w\n%s", err, out)
	}
	return nil
}

type campaignBench struct {
	ctx context.Context
	*place
	people        int
	connections   int
	instances     int
	profiles      string
	smtpAddr      string
	index         *os.File // the sink's, read as far as lines are counted
	lines         int
	telemetry     map[string]string // service's process to address
	profiled      map[string]string // process to address of its profiles
	importSeconds float64
	firstSeconds  float64 // from the request to the first mail
}

func (b *campaignBench) run() (*result, error) {
	var err error
	if b.smtpAddr, err = freeAddr(); err != nil {
		return nil, err
	}
	b.profiled = map[string]string{}
	if b.profiled["sink"], err = freeAddr(); err != nil {
		return nil, err
	}
	sink, err := b.children.start("sink", filepath.Join(b.bin, "embedded"), nil, "outbox", "--count", "--listen", b.smtpAddr, "--dir", filepath.Join(b.dir, "outbox"), "--profiles", b.profiled["sink"])
	if err != nil {
		return nil, err
	}
	sink.kind = sink.name
	if err = b.children.await(b.ctx, "the counting sink", time.Minute, func() bool { return dials(b.smtpAddr) }); err != nil {
		return nil, err
	}
	ceiling, sessions := b.ceiling()
	before := b.mails()
	if err := b.startPipeline(); err != nil {
		return nil, err
	}
	if err := b.importPeople(); err != nil {
		return nil, err
	}
	seconds, finished, peak, each, err := b.send(before)
	if err != nil {
		return nil, err
	}
	r := &result{Rate: float64(b.people) / seconds, Unit: "messages/s", PeakRSSMiB: peak}
	r.against(ceiling, fmt.Sprintf("smtp-source, %d sessions, against the same counting sink", sessions))
	if ceiling == 0 {
		r.CeilingOf = "smtp-source (Debian postfix) is not installed"
	}
	b.table(seconds, finished, ceiling, each)
	return r, b.saveMetrics()
}

// saveMetrics puts what every service counts beside the profiles.
func (b *campaignBench) saveMetrics() error {
	if b.profiles == "" {
		return nil
	}
	for name, a := range b.telemetry {
		_, body := get("http://" + a + "/metrics")
		if err := os.WriteFile(filepath.Join(b.profiles, name+".metrics"), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func dials(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// ceiling is the best rate of smtp-source, Postfix's load generator, over 2 to
// 20 sessions, against the same sink and with nothing else running.
func (b *campaignBench) ceiling() (best float64, sessions int) {
	source, err := exec.LookPath("smtp-source")
	if err != nil {
		if source = "/usr/sbin/smtp-source"; !exists(source) {
			return 0, 0
		}
	}
	const messages = 10_000
	for _, n := range []int{2, 5, 10, 20} {
		began := time.Now()
		cmd := exec.CommandContext(b.ctx, source, "-s", strconv.Itoa(n), "-m", strconv.Itoa(messages), "-l", strconv.Itoa(mailBytes), "-d", "-f", "a@example.test", "-t", "b@example.test", "-M", "example.test", b.smtpAddr)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "smtp-source with %d sessions: %v %s\n", n, err, out)
			continue
		}
		if rate := messages / time.Since(began).Seconds(); rate > best {
			best, sessions = rate, n
		}
	}
	return best, sessions
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// startPipeline starts the embedded stack, without its outbox, and all services.
func (b *campaignBench) startPipeline() error {
	data := filepath.Join(b.dir, "data")
	addr, err := b.children.startStack(b.ctx, b.bin, data, map[string]string{"SMTP_ADDR": b.smtpAddr})
	if err != nil {
		return err
	}
	b.profiled["embedded"] = addr["embedded"]
	b.children.env = map[string]string{
		"KAFKA_BROKERS": addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + addr["registry"], "CLICKHOUSE_URL": "http://" + addr["clickhouse"],
		"AWS_ENDPOINT_URL_S3": "http://" + addr["s3"], "AWS_ACCESS_KEY_ID": "hikyaku", "AWS_SECRET_ACCESS_KEY": "hikyaku-embedded", "AWS_REGION": "us-east-1", "S3_BUCKET": "hikyaku",
		"SMTP_ADDR": b.smtpAddr, "SMTP_CONNECTIONS": strconv.Itoa(b.connections), "TRACKING_URL": "http://127.0.0.1", // nobody clicks
		"HIKYAKU_DATA": data, "ALLOW_INSECURE_DEFAULTS": "true", "POLL_INTERVAL": "500ms",
	}
	if out, err := b.command("provision"); err != nil {
		return fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	b.telemetry = map[string]string{}
	for _, kind := range []string{"importer", "audience-resolver", "renderer", "sender", "event-collector"} {
		for i := range b.instances {
			if err := b.startService(kind, i); err != nil {
				return err
			}
		}
	}
	return b.children.await(b.ctx, "the services to be ready", time.Minute, func() bool {
		for _, a := range b.telemetry {
			if code, _ := get("http://" + a + "/readyz"); code != http.StatusOK {
				return false
			}
		}
		return true
	})
}

func (b *campaignBench) startService(kind string, instance int) error {
	name := kind
	if instance > 0 {
		name += "-" + strconv.Itoa(instance)
	}
	telemetry, err := freeAddr()
	if err != nil {
		return err
	}
	collector, err := freeAddr()
	if err != nil {
		return err
	}
	if _, err := b.children.start(name, filepath.Join(b.bin, kind), map[string]string{
		"INSTANCE": strconv.Itoa(instance), "TELEMETRY_ADDR": telemetry, "COLLECTOR_ADDR": collector,
	}); err != nil {
		return err
	}
	b.telemetry[name], b.profiled[name] = telemetry, telemetry
	return nil
}

func get(url string) (int, []byte) {
	resp, err := http.Get(url) //nolint:noctx // loopback, bounded by the benchmark itself
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, body
}

func (b *campaignBench) command(name string, args ...string) ([]byte, error) {
	return b.children.run(b.ctx, filepath.Join(b.bin, name), args...)
}

func (b *campaignBench) importPeople() error {
	defs := filepath.Join(b.dir, "definitions")
	if err := os.MkdirAll(defs, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(defs, "bench.yaml"), []byte(benchDefinitions), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(defs, "mail.html"), []byte(benchMail()), 0o644); err != nil {
		return err
	}
	if out, err := b.command("hikyaku", "apply", "-f", defs); err != nil {
		return fmt.Errorf("applying: %w\n%s", err, out)
	}
	folder := filepath.Join(b.dir, "data", "s3", "hikyaku", "imports", "bench")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	list := filepath.Join(b.dir, "people.csv")
	if err := writePeople(list, b.people); err != nil {
		return err
	}
	began := time.Now()
	if err := os.Rename(list, filepath.Join(folder, "people.csv")); err != nil {
		return err
	}
	report := filepath.Join(folder, "people.csv.report.json")
	if err := b.children.await(b.ctx, "the import", benchTimeout, func() bool { return exists(report) }); err != nil {
		return err
	}
	b.importSeconds = time.Since(began).Seconds()
	return nil
}

func writePeople(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "id,email,name,country,plan,age,points")
	for i := range n {
		fmt.Fprintf(w, "u%07d,u%07d@example.test,Person %d,Japan,gold,%d,%d\n", i, i, i, 18+i%60, i%1000)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

const benchDefinitions = `
kind: ImportSpec
id: bench
source: {prefix: imports/bench/, format: csv}
user_id: {column: id}
profile:
  addresses: {email: {column: email}}
  attributes: {name: {column: name}, country: {column: country}, plan: {column: plan}, age: {column: age, type: int}, points: {column: points, type: int}}
---
kind: Audience
id: everybody
filter:
  attribute: {name: age, gte: 18}
---
kind: Template
id: bench
channel: email
subject: "{{ name }}, this is for you"
html: {file: mail.html}
strict: true
---
kind: Campaign
id: bench
audience: everybody
template: bench
from: {name: Hikyaku, address: hello@example.test}
`

// benchMail is a mail of 10 KB with five fields and five links.
func benchMail() string {
	var s strings.Builder
	s.WriteString("<!doctype html><html><body>\n<p>Hello {{ name }} from {{ country }}, {{ age }}, plan {{ plan }}, {{ points }} points.</p>\n")
	for i := range 5 {
		fmt.Fprintf(&s, "<p><a href=\"https://shop.example.test/offers/%d?plan=gold\">Offer %d</a></p>\n", i, i)
	}
	for s.Len() < mailBytes-400 {
		s.WriteString("<p>Couriers ran in relays, each for a few miles, and handed on the letter box at the next station.</p>\n")
	}
	s.WriteString("</body></html>\n")
	return s.String()
}

// send starts the campaign and waits for everybody's mail, then for the books.
// The rate counts from the request to the last mail.
func (b *campaignBench) send(before int) (seconds, finished, peak float64, each map[string]float64, err error) {
	stopMemory := b.children.watchMemory()
	for _, p := range b.children.list {
		p.used = cpuTime(p.cmd.Process.Pid)
	}
	began := time.Now()
	out, err := b.command("hikyaku", "start", "bench", "--json")
	if err != nil {
		return 0, 0, 0, nil, fmt.Errorf("starting: %w\n%s", err, out)
	}
	var started struct {
		RunID string `json:"run_id"`
	}
	if err := json.Unmarshal(out, &started); err != nil {
		return 0, 0, 0, nil, err
	}
	if b.profiles != "" {
		go b.profile()
	}
	if err = b.children.await(b.ctx, "the mails", benchTimeout, func() bool {
		n := b.mails() - before
		if n > 0 && b.firstSeconds == 0 {
			b.firstSeconds = time.Since(began).Seconds()
		}
		return n >= b.people
	}); err != nil {
		balance, _ := b.command("hikyaku", "balance", started.RunID)
		return 0, 0, 0, nil, fmt.Errorf("%w: %d of %d arrived\n%s", err, b.mails()-before, b.people, balance)
	}
	seconds = time.Since(began).Seconds()
	for _, p := range b.children.list {
		p.used = cpuTime(p.cmd.Process.Pid).since(p.used)
	}
	var state struct {
		State    string `json:"state"`
		Balanced bool   `json:"balanced"`
	}
	if err = b.children.await(b.ctx, "the balance", 2*time.Minute, func() bool {
		out, err := b.command("hikyaku", "balance", started.RunID, "--json")
		return err == nil && json.Unmarshal(out, &state) == nil && state.State == "finished"
	}); err != nil {
		return 0, 0, 0, nil, err
	}
	if !state.Balanced {
		return 0, 0, 0, nil, fmt.Errorf("run %s is not balanced", started.RunID)
	}
	finished = time.Since(began).Seconds()
	peak, each = stopMemory()
	return seconds, finished, peak, each, nil
}

// mails counts the lines of the sink's index; each is read once, as the count is
// asked for all the time on the same two cores.
func (b *campaignBench) mails() int {
	if b.index == nil {
		f, err := os.Open(filepath.Join(b.dir, "outbox", "index.tsv"))
		if err != nil {
			return 0
		}
		b.index = f
	}
	for buf := make([]byte, 1<<16); ; {
		k, err := b.index.Read(buf)
		b.lines += bytes.Count(buf[:k], []byte{'\n'})
		if err != nil {
			return b.lines
		}
	}
}

// profile takes ten seconds of CPU profile from every process, one after the
// other would miss the run: all at once.
func (b *campaignBench) profile() {
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		return
	}
	time.Sleep(3 * time.Second) // past the barrier and the first batches
	for name, a := range b.profiled {
		go func() {
			code, body := get("http://" + a + "/debug/pprof/profile?seconds=10")
			if code != http.StatusOK {
				fmt.Fprintf(os.Stderr, "profile of %s: HTTP %d\n", name, code)
				return
			}
			if err := os.WriteFile(filepath.Join(b.profiles, name+".pprof"), body, 0o644); err != nil {
				fmt.Fprintln(os.Stderr, "profile:", err)
			}
		}()
	}
}

func (b *campaignBench) table(seconds, finished, ceiling float64, each map[string]float64) {
	w := os.Stderr
	fmt.Fprintf(w, "\nimport        %8d rows   %7.1f s  %9.0f rows/s, from the drop to done\n", b.people, b.importSeconds, float64(b.people)/b.importSeconds)
	fmt.Fprintf(w, "campaign      %8d mails  %7.1f s  %9.0f messages/s, from the request to the last mail\n", b.people, seconds, float64(b.people)/seconds)
	fmt.Fprintf(w, "first mail after                %7.1f s\n", b.firstSeconds)
	fmt.Fprintf(w, "balanced after                  %7.1f s\n", finished)
	if ceiling > 0 {
		fmt.Fprintf(w, "smtp-source                                %9.0f messages/s\n", ceiling)
	}
	fmt.Fprintf(w, "\n%-20s %10s %14s %10s %12s\n", "process", "instances", "CPU µs/message", "in system", "peak RSS MiB")
	var kinds []string
	n, cpu, system := map[string]int{}, map[string]float64{}, map[string]float64{}
	for _, p := range b.children.list {
		if n[p.kind] == 0 {
			kinds = append(kinds, p.kind)
		}
		n[p.kind]++
		cpu[p.kind] += float64((p.used.user + p.used.system).Microseconds()) / float64(b.people)
		system[p.kind] += float64(p.used.system.Microseconds()) / float64(b.people)
	}
	total, kernel := 0.0, 0.0
	for _, kind := range kinds {
		total += cpu[kind]
		kernel += system[kind]
		fmt.Fprintf(w, "%-20s %10d %14.1f %10.1f %12.0f\n", kind, n[kind], cpu[kind], system[kind], each[kind])
	}
	fmt.Fprintf(w, "%-20s %10s %14.1f %10.1f\n", "together", "", total, kernel)
}
