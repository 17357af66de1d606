package quickstart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/bucket"
	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
	"github.com/hikyaku/hikyaku/services/e2e/internal/quickstart/reader"
	"github.com/hikyaku/hikyaku/services/e2e/internal/quickstart/sample"
)

const (
	chdbLibrary = "deploy/embedded/chdb/node_modules/@chdb"

	startPatience = 90 * time.Second // for a part to serve: it may have much to read
	// A run or an import that does not move for so long will not end.
	stallPatience = 5 * time.Minute
	// Beyond the sink's own lingering.
	funnelPatience = time.Minute
)

// fetch gets what does not come with building.
func (q *quickstart) fetch(ctx context.Context) error {
	q.screen.step("Fetch what is missing")
	if _, err := exec.LookPath("go"); err != nil {
		return command.Missingf("go is not installed; version 1.26 or later is needed")
	}
	found, _ := filepath.Glob(filepath.Join(q.root, chdbLibrary, "*", "libchdb.so"))
	switch {
	case q.set("CLICKHOUSE_URL"), q.set("LIBCHDB_PATH"), len(found) > 0:
		q.screen.done("nothing")
		return nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return command.Missingf("npm is not installed; it fetches ClickHouse's engine (or set CLICKHOUSE_URL to a server, or LIBCHDB_PATH to a libchdb.so)")
	}
	q.screen.line("ClickHouse's engine as a library, with npm: 167 MB")
	e, err := q.procs.Run(ctx, process.Tool{Path: npm, Args: []string{"ci", "--prefix", "deploy/embedded/chdb", "--no-audit", "--no-fund"}, Dir: q.root, Env: q.env})
	if err != nil {
		return err
	}
	if e.Code != 0 {
		return command.Missingf("npm ci --prefix deploy/embedded/chdb failed: %s", process.LastLines(e.Stderr, 3))
	}
	q.screen.done("fetched")
	return nil
}

func (q *quickstart) build(ctx context.Context) error {
	q.screen.step("Build the programs into bin/")
	args := []string{"build", "-o", "bin" + string(filepath.Separator), "./deploy/embedded/cmd/embedded", "./services/internal/cmd/provision", "./services/console/cmd/hikyaku"}
	for _, s := range pipeline() {
		args = append(args, "./services/"+s+"/cmd/"+s)
	}
	// One call, so that what they share is built once.
	e, err := q.procs.Run(ctx, process.Tool{Path: "go", Args: args, Dir: q.root, Env: q.env})
	if err != nil {
		return err
	}
	if e.Code != 0 {
		q.screen.text(e.Stderr)
		return command.Brokenf("the programs do not build")
	}
	q.screen.done("8 programs")
	return nil
}

func (q *quickstart) startStack(ctx context.Context) error {
	q.screen.step("Start the embedded stack: Kafka, Schema Registry, ClickHouse, S3, a mail outbox")
	q.stack = q.supervise(program{name: "embedded", path: q.bin("embedded"), env: q.env, grace: 10 * time.Second,
		up: func(_ context.Context, stdout string) error {
			if strings.HasSuffix(stdout, "\nready\n") || stdout == "ready\n" {
				return nil
			}
			return errors.New("it has not said ready yet")
		}})
	if err := q.stack.awaitUp(ctx, startPatience); err != nil {
		return err
	}
	q.stack.mu.Lock()
	said := strings.TrimSuffix(q.stack.stdout.String(), "ready\n")
	q.stack.mu.Unlock()
	q.screen.text(said)
	q.screen.done("ready")
	return nil
}

// supervise starts a program that is kept running from now on.
func (q *quickstart) supervise(p program) *supervised {
	p.log = filepath.Join(q.logs(), p.name+".log")
	_ = os.Remove(p.log) // of the run before
	s := &supervised{program: p, procs: q.procs, screen: q.screen, restarts: &q.restarts, fatal: q.fail, hurry: q.hurry}
	s.supervise()
	return s
}

func (q *quickstart) provision(ctx context.Context) error {
	q.screen.step("Provision: topics, offsets, schemas, tables")
	log, err := os.Create(filepath.Join(q.logs(), "provision.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	e, err := q.procs.Run(ctx, process.Tool{Path: q.bin("provision"), Env: q.env, Log: log})
	if err != nil {
		return err
	}
	if e.Code != 0 {
		return command.Exit(e.Code, errors.New(e.LastLine()))
	}
	q.screen.done("%s", strings.TrimPrefix(e.LastLine(), "provision: "))
	return nil
}

func (q *quickstart) startServices(ctx context.Context) error {
	q.screen.step("Start the services: %s", strings.Join(pipeline(), ", "))
	client := &http.Client{Timeout: 2 * time.Second}
	for i, name := range pipeline() {
		addr := q.telemetry(i)
		// Go takes the last of two settings of one variable.
		env := append(q.env[:len(q.env):len(q.env)], "TELEMETRY_ADDR="+addr, "INSTANCE="+q.value("INSTANCE", "0"))
		q.services = append(q.services, q.supervise(program{name: name, path: q.bin(name), env: env, grace: 13 * time.Second,
			up: func(ctx context.Context, _ string) error { return ready(ctx, client, "http://"+addr+"/readyz") }}))
	}
	for _, s := range q.services {
		q.screen.progress("waiting for the " + s.name)
		if err := s.awaitUp(ctx, startPatience); err != nil {
			return err
		}
	}
	q.screen.done("ready; their logs are in %s", q.shown(q.logs()))
	return nil
}

// ready asks a service; the error is what it says it waits for.
func ready(ctx context.Context, client *http.Client, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	r, err := client.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	said, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if r.StatusCode == http.StatusOK {
		return err
	}
	return fmt.Errorf("it says: %s", strings.ReplaceAll(strings.TrimSpace(string(said)), "\n", "; "))
}

// define makes the sample, unless there is a file already, and applies the definitions.
func (q *quickstart) define(ctx context.Context) error {
	if q.input == "" {
		q.screen.step("Make a sample of %s people and apply the definitions in examples/sample", thousands(q.people))
		q.input, q.spec = filepath.Join(q.data, "people.csv"), filepath.Join(q.root, "examples", "sample")
		made, err := q.makeSample()
		if err != nil {
			return err
		}
		q.screen.line("%s rows: %s without address, %s unsubscribed, %s without name, %s refused by the mail server for good and %s for now,",
			thousands(made.Rows), thousands(made.NoAddress), thousands(made.Unsubscribed), thousands(made.Nameless), thousands(made.RefusedForGood), thousands(made.RefusedOnce))
		q.screen.line("%s that it takes without answering, %s rows doubled, %s broken", thousands(made.Unanswered), thousands(made.Doubled), thousands(made.Broken))
	} else {
		q.screen.step("Apply the definitions in %s", q.shown(q.spec))
	}
	e, err := q.hikyaku.run(ctx, "apply", "-f", q.spec, "--json")
	if err != nil {
		return err
	}
	if e.Code != 0 {
		q.screen.text(e.Stderr)
		q.screen.text(e.Stdout)
		return command.Exit(e.Code, errors.New("the definitions were not applied"))
	}
	var applied struct {
		Applied []struct {
			Kind, ID string
			Changed  bool
		}
	}
	if err := json.Unmarshal([]byte(e.Stdout), &applied); err != nil {
		return command.Brokenf("hikyaku apply --json did not answer with JSON: %w", err)
	}
	var campaigns, specs, named []string
	for _, a := range applied.Applied {
		switch a.Kind {
		case "Campaign":
			campaigns = append(campaigns, a.ID)
		case "ImportSpec":
			specs = append(specs, a.ID)
		}
		state := "unchanged"
		if a.Changed {
			state = "applied"
		}
		named = append(named, fmt.Sprintf("%s %s %s", a.Kind, a.ID, state))
	}
	if len(campaigns) != 1 || len(specs) != 1 {
		return command.Usagef("%s defines %d import specs and %d campaigns; the quickstart needs one of each", q.shown(q.spec), len(specs), len(campaigns))
	}
	q.importSpec, q.campaign, q.result.Campaign = specs[0], campaigns[0], campaigns[0]
	q.screen.done("%s", strings.Join(named, ", "))
	return nil
}

func (q *quickstart) makeSample() (sample.Made, error) {
	f, err := os.Create(q.input)
	if err != nil {
		return sample.Made{}, err
	}
	defer f.Close()
	made, err := sample.Write(f, q.seed, q.people)
	return made, errors.Join(err, f.Close())
}

// definition reads the body of a definition in force.
func (q *quickstart) definition(ctx context.Context, kind, id string, body any) error {
	var answer struct{ Body json.RawMessage }
	if err := q.hikyaku.ask(ctx, &answer, "get", kind, id); err != nil {
		return err
	}
	return json.Unmarshal(answer.Body, body)
}

// load uploads the file and waits for the importer's report beside it.
func (q *quickstart) load(ctx context.Context) error {
	var spec struct{ Source struct{ Prefix string } }
	if err := q.definition(ctx, "importspec", q.importSpec, &spec); err != nil {
		return err
	}
	// A name of its own: the report of an earlier file of this name would be taken for this one's.
	key := spec.Source.Prefix + time.Now().UTC().Format("20060102-150405-") + path.Base(filepath.ToSlash(q.input))
	q.screen.step("Import %s from S3", filepath.Base(q.input))
	q.bucket = bucket.Folder{Dir: q.dropFolder()}
	if endpoint := q.getenv("AWS_ENDPOINT_URL_S3"); endpoint != "" {
		r, err := bucket.NewRemote(ctx, endpoint, q.value("AWS_REGION", "us-east-1"), q.value("S3_BUCKET", "hikyaku"))
		if err != nil {
			return err
		}
		q.bucket = r
	}
	if err := q.bucket.Put(ctx, key, q.input); err != nil {
		return command.Missingf("uploading %s: %w", key, err)
	}
	var last float64
	moved := time.Now()
	for {
		text, there, err := q.bucket.Get(ctx, key+".report.json")
		switch {
		case err != nil && ctx.Err() != nil:
			return err
		case err == nil && there && json.Unmarshal(text, &q.result.Import) == nil: // else it is still being written, or S3 is away
			r := &q.result.Import
			r.Object = key
			if r.State == "failed" {
				return command.Usagef("the import of %s failed: %s", filepath.Base(q.input), r.Error)
			}
			q.screen.done("%s rows, %s of them rejected with line number and reason (%s.rejects.csv); %s profile updates, %s events",
				thousands(r.Rows), thousands(r.Rejected), path.Base(key), thousands(r.ProfileUpdates), thousands(r.Events))
			return nil
		}
		rows := process.Metric(ctx, http.DefaultClient, q.telemetry(0), "importer_rows_total")
		if rows != last {
			last, moved = rows, time.Now()
		}
		if time.Since(moved) > stallPatience {
			return command.Brokenf("the import of %s has not moved for %s; see %s", key, stallPatience, filepath.Join(q.logs(), "importer.log"))
		}
		q.screen.progress(thousands(int64(rows)) + " rows")
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// start starts the campaign.
func (q *quickstart) start(ctx context.Context) error {
	q.screen.step("Start campaign %s", q.campaign)
	var campaign struct{ Policy string }
	if err := q.definition(ctx, "campaign", q.campaign, &campaign); err != nil {
		return err
	}
	q.atMostOnce = campaign.Policy == "at_most_once"
	var before struct{ Runs int64 }
	// An id is letters, digits and dashes: it cannot end the quotes.
	if err := q.hikyaku.ask(ctx, &before, "sql", "SELECT count() AS runs FROM run_balance WHERE campaign_id = '"+q.campaign+"' AND state != 'refused'"); err != nil {
		return err
	}
	args := []string{"start", q.campaign}
	if before.Runs > 0 {
		q.screen.line("it has run before; a campaign runs once unless --again is given")
		args = append(args, "--again", "--yes")
	}
	if !q.set("SMTP_ADDR") {
		var err error
		if q.outboxBegan, err = reader.IndexSize(q.outbox()); err != nil {
			return err
		}
	}
	var run struct {
		ID string `json:"run_id"`
	}
	if err := q.hikyaku.ask(ctx, &run, args...); err != nil {
		return err
	}
	q.result.RunID = run.ID
	q.screen.done("run %s", run.ID)
	return nil
}

// follow waits until the run has ended, and takes its balance.
func (q *quickstart) follow(ctx context.Context) error {
	q.screen.step("Send: audience, admission, rendering, mail server")
	var s, last runStatus
	began, moved := time.Now(), time.Now()
	for !s.ended() {
		var now runStatus
		err := q.hikyaku.ask(ctx, &now, "status", q.result.RunID)
		var f *command.Failure
		switch {
		case err == nil:
			s = now
		case ctx.Err() != nil:
			return err
		case errors.As(err, &f) && f.Code == command.Missing:
			// Somebody has killed the stack; it comes back.
		default:
			return err
		}
		if s != last {
			last, moved = s, time.Now()
		}
		if time.Since(moved) > stallPatience {
			return errors.Join(command.Brokenf("run %s has not moved for %s: %s", q.result.RunID, stallPatience, s.line()), q.takeBalance(ctx))
		}
		q.screen.progress(s.line())
		if !s.ended() {
			if err := pause(ctx, 250*time.Millisecond); err != nil {
				return err
			}
		}
	}
	if err := q.takeBalance(ctx); err != nil {
		return err
	}
	if s.State != "finished" {
		q.complain(command.Brokenf("run %s ended as %s: %s", q.result.RunID, s.State, s.Note))
	}
	q.screen.done("%s people, %s", thousands(s.Audience), rate(s.Requested, time.Since(began)))
	return nil
}

func rate(n int64, d time.Duration) string {
	return fmt.Sprintf("%s messages, %.0f a second", thousands(n), float64(n)/d.Seconds())
}

// takeBalance reads the run's counts into the result.
func (q *quickstart) takeBalance(ctx context.Context) error {
	e, err := q.hikyaku.run(ctx, "balance", q.result.RunID, "--json")
	if err != nil {
		return err
	}
	// Code 1 says that it does not balance; the counts are there all the same.
	if e.Code > command.Broken {
		return command.Exit(e.Code, errors.New(e.LastLine()))
	}
	if err := json.Unmarshal([]byte(e.Stdout), &q.result); err != nil {
		return command.Brokenf("hikyaku balance --json did not answer with JSON: %w", err)
	}
	return nil
}

// read holds the outbox against the balance and lets the readers read.
func (q *quickstart) read(ctx context.Context) error {
	if q.set("SMTP_ADDR") {
		q.screen.step("Read: left out, the mail went to SMTP_ADDR=%s", q.getenv("SMTP_ADDR"))
		q.screen.done("no outbox, so nobody here to open, click or unsubscribe")
		return nil
	}
	q.screen.step("Read: demo readers open 40 %%, click 10 %%, unsubscribe 1 %%")
	since, err := reader.Deliveries(q.outbox(), q.outboxBegan)
	if err != nil {
		return err
	}
	classes, err := q.classes(ctx)
	if err != nil {
		return err
	}
	mails, unique, held := witness(since, classes, q.atMostOnce)
	q.result.DeliveredUnique = &unique
	q.complain(held)
	crowd := &reader.Crowd{Outbox: q.outbox(), Tracking: q.tracking(), Seed: q.seed, Client: reader.NewClient(), Progress: func(done, total int) {
		q.screen.progress(fmt.Sprintf("%s %s of %s mails opened", bar(int64(done), int64(total)), thousands(done), thousands(total)))
	}}
	did, err := crowd.Read(ctx, mails)
	if ctx.Err() != nil {
		return err
	}
	q.complain(err)
	if err := q.awaitFunnel(ctx, did); command.ExitCode(err) > command.Broken {
		return err
	} else if err != nil {
		q.complain(err)
	}
	q.screen.done("%s opened, %s clicked, %s unsubscribed; ClickHouse counts %s, %s and %s", thousands(did.Opened), thousands(did.Clicked), thousands(did.Unsubscribed),
		thousands(q.result.Opened), thousands(q.result.Clicked), thousands(q.result.Unsubscribed))
	return nil
}

// complain notes a promise that did not hold; the steps go on, to show what there is.
func (q *quickstart) complain(err error) {
	if err != nil {
		q.screen.line("NOT AS PROMISED: %v", err)
		q.complaints = append(q.complaints, err)
	}
}

// classes gives what is said to have become of each message of the run, by its id as in mails.
func (q *quickstart) classes(ctx context.Context) (map[string]string, error) {
	e, err := q.hikyaku.run(ctx, "sql", "--json", "SELECT toString(message_id) AS id, toString(class) AS class FROM messages WHERE run_id = toUUID('"+dashed(q.result.RunID)+"') AND class != 'excluded'")
	if err != nil {
		return nil, err
	}
	if e.Code != command.Done {
		return nil, command.Exit(e.Code, errors.New(e.LastLine()))
	}
	classes := map[string]string{}
	for dec := json.NewDecoder(strings.NewReader(e.Stdout)); ; {
		var m struct{ ID, Class string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return classes, nil
		} else if err != nil {
			return nil, command.Brokenf("hikyaku sql --json did not answer with JSON: %w", err)
		}
		classes[strings.ReplaceAll(m.ID, "-", "")] = m.Class
	}
}

// witness holds the outbox, which knows nothing of Hikyaku, against what is said
// of each message: what was accepted is there, what is there was accepted or is
// uncertain, and at most once means once. It returns the run's mails without
// copies, and how many recipients they have. Mails of other runs are left out.
func witness(since []reader.Delivery, classes map[string]string, atMostOnce bool) (mails []reader.Delivery, recipients int64, err error) {
	there, people := map[string]bool{}, map[string]bool{}
	var copies, unexpected, absent int
	for _, d := range since {
		id, _, _ := strings.Cut(strings.Trim(d.MessageID, "<>"), "@")
		class, ours := classes[id]
		switch {
		case !ours:
			continue
		case there[id]:
			copies++
			continue
		case class != "accepted" && class != "uncertain":
			unexpected++
		}
		there[id] = true
		people[strings.ToLower(d.Recipient)] = true
		mails = append(mails, d)
	}
	for id, class := range classes {
		if class == "accepted" && !there[id] {
			absent++
		}
	}
	var errs []error
	if absent > 0 {
		errs = append(errs, command.Brokenf("%d messages are said to be accepted, but the outbox does not have them", absent))
	}
	if unexpected > 0 {
		errs = append(errs, command.Brokenf("the outbox has %d messages that are said to be neither accepted nor uncertain", unexpected))
	}
	if copies > 0 && atMostOnce {
		errs = append(errs, command.Brokenf("the outbox has %d copies of messages that were to be sent at most once", copies))
	}
	return mails, int64(len(people)), errors.Join(errs...)
}

// awaitFunnel waits until ClickHouse shows what the readers did.
func (q *quickstart) awaitFunnel(ctx context.Context, did reader.Did) error {
	// Raw hits: readers as quick as these are often taken for machines.
	query := "SELECT toInt64(countIf(opened_raw_at IS NOT NULL)) AS opened, toInt64(countIf(clicked_raw_at IS NOT NULL)) AS clicked, toInt64(countIf(unsubscribed_at IS NOT NULL)) AS unsubscribed FROM message_steps WHERE run_id = toUUID('" + dashed(q.result.RunID) + "')"
	for deadline := time.Now().Add(funnelPatience); ; {
		var now struct{ Opened, Clicked, Unsubscribed int64 }
		err := q.hikyaku.ask(ctx, &now, "sql", query)
		if err == nil {
			q.result.Opened, q.result.Clicked, q.result.Unsubscribed = now.Opened, now.Clicked, now.Unsubscribed
			if now.Opened == int64(did.Opened) && now.Clicked == int64(did.Clicked) && now.Unsubscribed == int64(did.Unsubscribed) {
				return nil
			}
			err = command.Brokenf("the readers opened %d, clicked %d and unsubscribed %d, but ClickHouse counts %d, %d and %d",
				did.Opened, did.Clicked, did.Unsubscribed, now.Opened, now.Clicked, now.Unsubscribed)
		}
		if time.Now().After(deadline) {
			return err
		}
		q.screen.progress("waiting until ClickHouse has it")
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// show tells what came of it, and what to try.
func (q *quickstart) show(ctx context.Context) error {
	q.screen.step("What became of everybody")
	for _, args := range [][]string{{"balance", q.result.RunID}, {"funnel", q.campaign}} {
		e, err := q.hikyaku.run(ctx, args...)
		if err != nil {
			return err
		}
		q.screen.text(e.Stdout + "\n")
		if e.Code != 0 {
			q.screen.text(e.Stderr)
		}
	}
	if !q.set("SMTP_ADDR") {
		q.screen.line("The mails:            http://127.0.0.1:8025")
	}
	if !q.set("AWS_ENDPOINT_URL_S3") {
		q.screen.line("Drop a file into:     %s", filepath.Join(q.shown(q.dropFolder()), filepath.FromSlash(path.Dir(q.result.Import.Object))))
	}
	program := q.shown(q.bin("hikyaku"))
	q.screen.line("Try:                  %s explain %s %s", program, q.campaign, q.somebody(ctx, "excluded"))
	q.screen.line("                      %s preview %s %s", program, q.campaign, q.somebody(ctx, "accepted"))
	q.screen.line("                      %s sql \"SELECT class, count() FROM messages WHERE run_id = toUUID('%s') GROUP BY class\"", program, dashed(q.result.RunID))
	q.screen.line("")
	q.screen.done("done after %s altogether", seconds(time.Since(q.began)))
	if !q.result.Balanced {
		q.complaints = append(q.complaints, command.Brokenf("run %s does not balance", q.result.RunID))
	}
	return errors.Join(q.complaints...)
}

// somebody is a person whose message has the class; anybody of the run if nobody's has.
func (q *quickstart) somebody(ctx context.Context, class string) string {
	var person struct {
		UserID string `json:"user_id"`
	}
	run := "toUUID('" + dashed(q.result.RunID) + "')"
	err := q.hikyaku.ask(ctx, &person, "sql", "SELECT user_id FROM messages WHERE run_id = "+run+" ORDER BY class = '"+class+"' DESC, user_id LIMIT 1")
	if err != nil || person.UserID == "" {
		return "USER_ID"
	}
	return person.UserID
}
