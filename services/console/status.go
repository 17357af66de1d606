package console

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// overview is what status says without a run: how everything fares now.
type overview struct {
	Well        bool             `json:"well"`
	Wrong       []string         `json:"wrong"` // what is wrong now, in words
	Services    []serviceStatus  `json:"services"`
	Groups      []groupStatus    `json:"groups"`
	Imports     []importStatus   `json:"imports"`      // not ended
	Runs        []runStatus      `json:"runs"`         // not ended
	DeadLetters map[string]int64 `json:"dead_letters"` // by service
}

// serviceStatus is what a process says of itself, or that it does not answer.
type serviceStatus struct {
	Addr    string `json:"addr"`
	Answers bool   `json:"answers"`
	Error   string `json:"error,omitempty"`
	*telemetry.Status
}

func (s *serviceStatus) name() string {
	switch {
	case s.Status == nil:
		return s.Addr
	case s.Member != "":
		return s.Member
	}
	return s.Service
}

// groupStatus is a consumer group: who is in it, and what it has still to read.
type groupStatus struct {
	Group   topic.Group          `json:"group"`
	State   string               `json:"state"` // as Kafka calls it
	Members []string             `json:"members"`
	Lag     int64                `json:"lag_records"`
	Lacks   map[topic.Name]int64 `json:"lacks"` // records, by topic; ticks, which never end, are left out
}

type importStatus struct {
	ImportID string    `json:"import_id"`
	Spec     string    `json:"spec"`
	Key      string    `json:"key"`
	State    string    `json:"state"`
	Rows     int64     `json:"rows"`
	At       time.Time `json:"updated_at"`
}

type runStatus struct {
	RunID      string `json:"run_id"`
	CampaignID string `json:"campaign_id"`
	State      string `json:"state"`
	Note       string `json:"note"`
	Requested  int64  `json:"requested"`
	Waiting    int64  `json:"waiting"`
	WaitsFor   string `json:"waits_for"`
	Unread     int64  `json:"unread_spool_events"`
}

// overview asks everybody and prints what came of it. It shows what it can: that
// something is away is the answer, not a reason for none.
func (a *app) overview(ctx context.Context) error {
	cfg, err := a.config(ctx)
	if err != nil {
		return err
	}
	o := &overview{Wrong: []string{}, Groups: []groupStatus{}, Imports: []importStatus{}, Runs: []runStatus{}, DeadLetters: map[string]int64{}}
	o.Services = askServices(ctx, cfg.TelemetryAddrs)
	// First what is away, because the rest may follow from it.
	if _, err := a.clickhouse(ctx); err != nil {
		o.wrong("%v", err)
	}
	if c, err := a.kafka(ctx); err != nil {
		o.wrong("%v", err)
	} else if err := a.lookIntoKafka(ctx, c, o); err != nil {
		o.wrong("Kafka could not be looked into: %v", err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i := range o.Services {
		o.Wrong = append(o.Wrong, o.Services[i].wrong()...)
	}
	for _, g := range o.Groups {
		if len(g.Members) == 0 {
			o.wrong("group %s has no members, so nobody reads %s", g.Group, join(topic.ReadBy(g.Group)))
		}
	}
	for _, r := range o.Runs {
		if r.State == "blocked" {
			o.wrong("run %s of %s is blocked: %s", r.RunID, r.CampaignID, r.WaitsFor)
		}
	}
	o.Well = len(o.Wrong) == 0
	if a.asJSON {
		err = a.printJSON(o)
	} else {
		a.printOverview(o)
	}
	if err == nil && !o.Well {
		return missing("%d things are wrong", len(o.Wrong))
	}
	return err
}

func (o *overview) wrong(format string, args ...any) {
	o.Wrong = append(o.Wrong, fmt.Sprintf(format, args...))
}

// statusPatience is how long a process may take to say how it is.
const statusPatience = 2 * time.Second

// askServices asks all at once; the answers are in the order of the addresses.
func askServices(ctx context.Context, addrs []string) []serviceStatus {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	out := make([]serviceStatus, len(addrs))
	var asked sync.WaitGroup
	for i, addr := range addrs {
		asked.Go(func() {
			out[i] = serviceStatus{Addr: addr}
			s, err := askService(ctx, addr)
			if err != nil {
				out[i].Error = err.Error()
				return
			}
			out[i].Answers, out[i].Status = true, s
		})
	}
	asked.Wait()
	return out
}

func askService(ctx context.Context, addr string) (*telemetry.Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/statusz", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/statusz answers %s", resp.Status)
	}
	s := new(telemetry.Status)
	if err := json.NewDecoder(resp.Body).Decode(s); err != nil {
		return nil, fmt.Errorf("reading /statusz: %w", err)
	}
	return s, nil
}

// wrong is what is not as it should be, a sentence each.
func (s *serviceStatus) wrong() []string {
	if !s.Answers {
		return []string{fmt.Sprintf("no service answers on %s: %s", s.Addr, s.Error)}
	}
	var out []string
	for _, c := range s.Components {
		if !c.Ready {
			out = append(out, fmt.Sprintf("%s, %s, since %s: %s", s.name(), c.Name, moment(c.Since), c.Reason))
		}
	}
	for _, stuck := range s.Stuck {
		out = append(out, s.name()+" stands still: "+stuck)
	}
	if s.Stopping {
		out = append(out, s.name()+" is stopping")
	}
	return out
}

func groups() []topic.Group {
	return []topic.Group{topic.GroupPersonLoop, topic.GroupShardLoop, topic.GroupRenderer, topic.GroupSender, topic.GroupSink}
}

// endsInMarker are the groups that do not pass a transaction's marker by
// themselves: at rest they are one behind on every partition that others write
// in transactions.
var endsInMarker = map[topic.Group]bool{topic.GroupShardLoop: true, topic.GroupRenderer: true}

// lookIntoKafka fills in what the topics and groups say.
func (a *app) lookIntoKafka(ctx context.Context, c *kafka.Cluster, o *overview) error {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	client, err := c.Producer()
	if err != nil {
		return err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	for _, g := range groups() {
		s, err := lookAtGroup(ctx, adm, c, g)
		if err != nil {
			return err
		}
		o.Groups = append(o.Groups, s)
	}
	runs := map[identity.ID]*runPicture{}
	imports := map[identity.ID]*event.Import{}
	err = a.read(ctx, []topic.Name{topic.Runs, topic.Imports}, false, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		if c.NameOf(r.Topic) == topic.Imports {
			e := new(event.Import)
			if err := c.Decode(r, e); err != nil {
				return err
			}
			imports[e.ImportID] = e
			return nil
		}
		var rec event.Run
		if err := c.Decode(r, &rec); err != nil {
			return err
		}
		if runs[rec.RunID] == nil {
			runs[rec.RunID] = &runPicture{counters: map[int32]*event.RunCounters{}}
		}
		runs[rec.RunID].apply(&rec)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading runs and imports: %w", err)
	}
	for _, e := range imports {
		if !importfile.Ended(e.State) {
			o.Imports = append(o.Imports, importStatus{e.ImportID.String(), e.SpecID, e.Key, e.State, e.Rows, e.UpdatedAt})
		}
	}
	slices.SortFunc(o.Imports, func(x, y importStatus) int { return x.At.Compare(y.At) })
	for id, p := range runs {
		if s, open := p.status(id, o.Groups); open {
			o.Runs = append(o.Runs, s)
		}
	}
	slices.SortFunc(o.Runs, func(x, y runStatus) int { return strings.Compare(x.RunID, y.RunID) })
	o.DeadLetters, err = a.openDeadLetters(ctx)
	return err
}

func lookAtGroup(ctx context.Context, adm *kadm.Client, c *kafka.Cluster, g topic.Group) (groupStatus, error) {
	s := groupStatus{Group: g, Members: []string{}, Lacks: map[topic.Name]int64{}}
	name := g.In(c.Namespace())
	described, err := adm.DescribeGroups(ctx, name)
	if err != nil {
		return s, fmt.Errorf("describing group %s: %w", g, err)
	}
	if d, ok := described[name]; ok {
		s.State = d.State
		for _, m := range d.Members {
			member := m.MemberID
			if m.InstanceID != nil {
				member = *m.InstanceID
			}
			s.Members = append(s.Members, member)
		}
	}
	slices.Sort(s.Members)
	reads := slices.DeleteFunc(topic.ReadBy(g), func(n topic.Name) bool { return n == topic.Ticks })
	ends, err := c.HighWatermarks(ctx, reads...)
	if err != nil {
		return s, err
	}
	committed, err := adm.FetchOffsets(ctx, name)
	if err != nil {
		return s, fmt.Errorf("fetching the offsets of group %s: %w", g, err)
	}
	for name, partitions := range ends {
		for p, end := range partitions {
			at, _ := committed.Lookup(name.In(c.Namespace()), p)
			lag := end - max(0, at.At)
			if endsInMarker[g] && lag > 0 {
				lag--
			}
			if lag > 0 {
				s.Lacks[name] += lag
				s.Lag += lag
			}
		}
	}
	return s, nil
}

// lacks says in words what a group has still to read; "" if nothing.
func (g *groupStatus) lacks() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(g.Lacks)) {
		parts = append(parts, fmt.Sprintf("%s of %s", thousands(g.Lacks[name]), name))
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("group %s lacks %s", g.Group, strings.Join(parts, ", "))
}

// runPicture is a run as the topic runs has it.
type runPicture struct {
	campaign     string
	state        *event.RunState
	shards, done int64 // parts of the audience, and those that were read
	counters     map[int32]*event.RunCounters
}

func (p *runPicture) apply(r *event.Run) {
	p.campaign = r.CampaignID
	switch {
	case r.State != nil:
		p.state = r.State
	case r.Shard != nil && r.Shard.Children == 0:
		p.done++
	case r.Shard != nil:
		p.shards += int64(r.Shard.Children) - 1
	case r.Counters != nil:
		p.counters[r.Counters.Partition] = r.Counters
	}
}

// status is the run in words; false if it has ended.
func (p *runPicture) status(id identity.ID, groups []groupStatus) (runStatus, bool) {
	if p.state == nil || (&runState{State: p.state.State}).ended() {
		return runStatus{}, false
	}
	s := runStatus{RunID: id.String(), CampaignID: p.campaign, State: p.state.State, Note: p.state.Note, Unread: p.state.UnreadSpoolEvents}
	for _, c := range p.counters {
		s.Requested += c.Requested
		s.Waiting += c.Waiting
	}
	// Who stands between the state and the next one.
	var between []topic.Group
	var parts []string
	switch s.State {
	case "preparing", "blocked", "balancing":
		between = []topic.Group{topic.GroupPersonLoop, topic.GroupSink}
	case "resolving":
		parts = append(parts, fmt.Sprintf("%d of %d parts of the audience are read", p.done, int64(p.state.Shards)+p.shards))
		between = []topic.Group{topic.GroupPersonLoop, topic.GroupShardLoop}
	case "sending":
		parts = append(parts, thousands(s.Waiting)+" messages have no ending yet")
		between = []topic.Group{topic.GroupPersonLoop, topic.GroupRenderer, topic.GroupSender}
	}
	if s.Note != "" {
		parts = append([]string{s.Note}, parts...)
	}
	for _, g := range groups {
		if lacks := g.lacks(); lacks != "" && slices.Contains(between, g.Group) {
			parts = append(parts, lacks)
		}
	}
	s.WaitsFor = strings.Join(parts, "; ")
	return s, true
}

func (a *app) printOverview(o *overview) {
	if o.Well {
		fmt.Fprintln(a.out, "Nothing is wrong.")
	} else {
		fmt.Fprintln(a.out, "What is wrong now:")
		for _, w := range o.Wrong {
			fmt.Fprintf(a.out, "  - %s\n", printable(w))
		}
	}
	fmt.Fprintln(a.out)
	var rows [][]string
	for i := range o.Services {
		s := &o.Services[i]
		ready := "yes"
		switch {
		case !s.Answers:
			ready = "no answer"
		case !s.Ready:
			ready = "NO"
		}
		since := ""
		if s.Status != nil {
			since = moment(s.StartedAt)
		}
		rows = append(rows, []string{s.name(), s.Addr, ready, since})
	}
	a.table([]string{"SERVICE", "TELEMETRY", "READY", "STARTED (UTC)"}, rows)
	if len(o.Groups) > 0 {
		rows = nil
		for _, g := range o.Groups {
			rows = append(rows, []string{string(g.Group), g.State, strconv.Itoa(len(g.Members)), thousands(g.Lag), strings.TrimPrefix(g.lacks(), fmt.Sprintf("group %s lacks ", g.Group))})
		}
		fmt.Fprintln(a.out)
		a.table([]string{"GROUP", "STATE", "MEMBERS", "LAG", "RECORDS TO READ"}, rows)
	}
	if len(o.Imports) > 0 {
		rows = nil
		for _, i := range o.Imports {
			rows = append(rows, []string{i.Key, i.Spec, i.State, thousands(i.Rows), moment(i.At)})
		}
		fmt.Fprintln(a.out)
		a.table([]string{"IMPORT", "SPEC", "STATE", "ROWS", "LAST SIGN (UTC)"}, rows)
	}
	if len(o.Runs) > 0 {
		rows = nil
		for _, r := range o.Runs {
			rows = append(rows, []string{r.RunID, r.CampaignID, r.State, r.WaitsFor})
		}
		fmt.Fprintln(a.out)
		a.table([]string{"RUN", "CAMPAIGN", "STATE", "WAITS FOR"}, rows)
		for _, r := range o.Runs {
			if r.Unread > 0 {
				fmt.Fprintf(a.out, "%s: %s.\n", r.RunID, aboutUnread(r.Unread))
			}
		}
	}
	var letters []string
	for _, service := range slices.Sorted(maps.Keys(o.DeadLetters)) {
		if n := o.DeadLetters[service]; n > 0 {
			letters = append(letters, fmt.Sprintf("%s of the %s", thousands(n), service))
		}
	}
	if len(letters) > 0 {
		fmt.Fprintf(a.out, "\nDead letters: %s. hikyaku dead-letters lists them.\n", strings.Join(letters, ", "))
	}
}

func join(names []topic.Name) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ", ")
}
