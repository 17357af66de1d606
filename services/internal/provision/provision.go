// Package provision makes a namespace: the topics of the catalogue, an offset for
// every group that will read them, the schemas and the ClickHouse tables. The
// services rely on nothing being made by itself. Doing it again changes nothing.
package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Config is how a namespace is to be made.
type Config struct {
	Partitions            int           `env:"PARTITIONS, default=16" unit:"partitions" help:"partition count of all topics that are kept by person; can never be changed in a namespace, so leave room: it bounds how many instances of a service can work"`
	ReplicationFactor     int           `env:"REPLICATION_FACTOR, default=1" unit:"brokers" help:"brokers that hold each record; from 3 on, two of them must have it before it is acknowledged"`
	BoundedRetentionBytes int64         `env:"BOUNDED_RETENTION_BYTES" unit:"bytes" help:"size beyond which partitions of rendered messages lose their oldest part; unbounded when unset, as it should be outside the embedded stack"`
	Patience              time.Duration `env:"PROVISION_PATIENCE, default=1m" help:"how long to wait for broker, registry and ClickHouse"`
}

// Validate refuses what no cluster can make.
func (c Config) Validate() error {
	switch {
	case c.Partitions < 1 || c.Partitions > 4096:
		return config.Invalid("PARTITIONS", c.Partitions, "a number from 1 to 4096")
	case c.ReplicationFactor < 1 || c.ReplicationFactor > 32:
		return config.Invalid("REPLICATION_FACTOR", c.ReplicationFactor, "a number from 1 to 32")
	case c.BoundedRetentionBytes < 0:
		return config.Invalid("BOUNDED_RETENTION_BYTES", c.BoundedRetentionBytes, "a number of bytes above 0, or nothing")
	case c.Patience < 0:
		return config.Invalid("PROVISION_PATIENCE", c.Patience, "a duration of 0 or more")
	}
	return nil
}

// Options are what Run works with.
type Options struct {
	Config
	Kafka kafka.Config
	// Migrate brings ClickHouse up to date and returns the names of the migrations
	// it applied; nil leaves ClickHouse out.
	Migrate func(context.Context) ([]string, error)
	Log     *slog.Logger // nil is silent
}

// Report is what Run has changed.
type Report struct {
	Namespace  string
	Created    []topic.Name // topics made
	Altered    []topic.Name // topics whose settings differed from the catalogue's
	Offsets    int          // (group, partition) pairs given offset 0
	Schemas    []topic.Name // topics whose schema the registry did not know
	Migrations []string     // ClickHouse migrations applied
}

// Changed tells whether anything was.
func (r Report) Changed() bool {
	return len(r.Created)+len(r.Altered)+r.Offsets+len(r.Schemas)+len(r.Migrations) > 0
}

// String is the report as a sentence.
func (r Report) String() string {
	if !r.Changed() {
		return fmt.Sprintf("namespace %s is as it should be, nothing was changed", r.Namespace)
	}
	return fmt.Sprintf("namespace %s: %d topics made, %d altered, %d offsets committed, %d schemas registered, %d migrations applied",
		r.Namespace, len(r.Created), len(r.Altered), r.Offsets, len(r.Schemas), len(r.Migrations))
}

// Run makes the namespace or completes it. It waits for what is away for at most
// Patience, after which the error is Transient. A cluster that contradicts the
// catalogue is refused before anything is changed.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := Report{Namespace: o.Kafka.Namespace}
	if err := errors.Join(o.Kafka.Validate(), o.Validate()); err != nil {
		return r, err
	}
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(o.Kafka.Brokers...),
		kgo.ClientID(o.Kafka.Namespace+".provision"),
		// What was just created must be seen at once.
		kgo.MetadataMinAge(10*time.Millisecond),
		// Waiting is patiently's; sooner or later it must say what for.
		kgo.RequestRetries(2),
	)
	if err != nil {
		return r, fmt.Errorf("building the Kafka client: %w", err)
	}
	defer cl.Close()
	registry, err := sr.NewClient(sr.URLs(o.Kafka.RegistryURL))
	if err != nil {
		return r, fmt.Errorf("building the Schema Registry client: %w", err)
	}
	p := &provisioner{o: o, adm: kadm.NewClient(cl), registry: registry, report: &r}
	// Topics that groups read come first, with their offsets: a service waits
	// until all topics exist, so none can join a group that has no offset yet.
	err = p.patiently(ctx,
		step{"looking at the topics of namespace " + o.Kafka.Namespace, p.look},
		step{"making the topics that groups read", func(ctx context.Context) error { return p.createTopics(ctx, true) }},
		step{"committing offsets", p.commitOffsets},
		step{"registering schemas", p.registerSchemas},
		step{"migrating ClickHouse", p.migrate},
		step{"making the other topics", func(ctx context.Context) error { return p.createTopics(ctx, false) }},
		step{"comparing the topics' settings", p.alterTopics},
	)
	return r, err
}

type provisioner struct {
	o        Options
	adm      *kadm.Client
	registry *sr.Client
	report   *Report
	counts   map[topic.Name]int // of the topics that exist
	before   []topic.Name       // topics that existed when Run began
}

type step struct {
	doing string
	do    func(context.Context) error
}

// patiently takes the steps in order and repeats one that meets something away.
// Every step leaves alone what is there already, so it can be repeated.
func (p *provisioner) patiently(ctx context.Context, steps ...step) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Patience)
	defer cancel()
	for _, s := range steps {
		pause := 20 * time.Millisecond // a topic just made is known to the whole cluster a moment later
		for said := false; ; {
			attempt, cancel := context.WithTimeout(ctx, 15*time.Second)
			err := s.do(attempt)
			cancel()
			if err == nil {
				break
			}
			err = fmt.Errorf("%s: %w", s.doing, err)
			if fault.ClassOf(err) != fault.ClassTransient {
				return err
			}
			if !said && pause > 200*time.Millisecond {
				said = true
				p.o.Log.Info("waiting", "reason", err.Error())
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
		}
	}
	return nil
}

// away classifies an error of the broker: it says no, or it is not there.
func away(err error) error {
	var answer *kerr.Error
	if errors.As(err, &answer) && !answer.Retriable {
		return fault.Fatal(err)
	}
	return fault.Transient(err)
}

func (p *provisioner) look(ctx context.Context) error {
	counts, err := kafka.PartitionCounts(ctx, p.adm, p.o.Kafka.Namespace)
	if err != nil {
		return away(err)
	}
	if made := counts[topic.ProfileUpdates]; made != 0 && made != p.o.Partitions && kafka.CheckPartitionCounts(counts, made, p.o.Kafka.Namespace) == nil {
		return fault.Fatal(fmt.Errorf("topic %s has %d partitions, with PARTITIONS=%d it would have %d: namespace %s was made with PARTITIONS=%d, which can never change; keep to it, or provision another NAMESPACE and fill it by replay",
			topic.ProfileUpdates.In(p.o.Kafka.Namespace), made, p.o.Partitions, p.o.Partitions, p.o.Kafka.Namespace, made))
	}
	if err := kafka.CheckPartitionCounts(counts, p.o.Partitions, p.o.Kafka.Namespace); err != nil {
		return fault.Fatal(fmt.Errorf("with PARTITIONS=%d: %w", p.o.Partitions, err))
	}
	p.counts = counts
	for name := range counts {
		p.before = append(p.before, name)
	}
	return nil
}

func (p *provisioner) createTopics(ctx context.Context, read bool) error {
	for _, t := range topic.Catalogue() {
		if p.counts[t.Name] != 0 || (len(t.Readers) > 0) != read {
			continue
		}
		n := t.PartitionCount(p.o.Partitions)
		_, err := p.adm.CreateTopic(ctx, int32(n), int16(p.o.ReplicationFactor), p.settings(t), t.Name.In(p.o.Kafka.Namespace))
		switch {
		case errors.Is(err, kerr.TopicAlreadyExists): // by a run beside this one
		case err != nil:
			return away(fmt.Errorf("topic %s: %w", t.Name, err))
		default:
			p.report.Created = append(p.report.Created, t.Name)
			crash.At(crash.ProvisionCreated)
		}
		p.counts[t.Name] = n
	}
	return nil
}

// settings are a topic's, as the catalogue wants them.
func (p *provisioner) settings(t topic.Topic) map[string]*string {
	s := map[string]*string{
		"cleanup.policy":      kmsg.StringPtr(string(t.Cleanup)),
		"retention.ms":        kmsg.StringPtr(strconv.FormatInt(t.Retain.Milliseconds(), 10)),
		"max.message.bytes":   kmsg.StringPtr(strconv.Itoa(topic.MaxMessageBytes)),
		"min.insync.replicas": kmsg.StringPtr(strconv.Itoa(p.minInSync())),
	}
	if t.Cleanup == topic.Compact {
		s["delete.retention.ms"] = kmsg.StringPtr(strconv.FormatInt(topic.DeleteRetention.Milliseconds(), 10))
	}
	if t.Bounded && p.o.BoundedRetentionBytes > 0 {
		s["retention.bytes"] = kmsg.StringPtr(strconv.FormatInt(p.o.BoundedRetentionBytes, 10))
		// Retention drops whole segments; with one as large as the bound it
		// would hold twice as much.
		s["segment.bytes"] = kmsg.StringPtr(strconv.FormatInt(max(p.o.BoundedRetentionBytes/4, 1<<20), 10))
	}
	return s
}

func (p *provisioner) minInSync() int {
	if p.o.ReplicationFactor >= 3 {
		return 2 // an acknowledged record survives a broker, and writes survive one that is away
	}
	return 1
}

// alterTopics mends the settings of topics that were there before.
func (p *provisioner) alterTopics(ctx context.Context) error {
	if len(p.before) == 0 {
		return nil
	}
	names := make([]string, len(p.before))
	for i, n := range p.before {
		names[i] = n.In(p.o.Kafka.Namespace)
	}
	described, err := p.adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return away(err)
	}
	for _, name := range p.before {
		t, _ := topic.ByName(name)
		have, err := described.On(name.In(p.o.Kafka.Namespace), nil)
		if err == nil {
			err = have.Err
		}
		if err != nil {
			return away(fmt.Errorf("settings of topic %s: %w", name, err))
		}
		var alter []kadm.AlterConfig
		for key, want := range p.settings(t) {
			at := slices.IndexFunc(have.Configs, func(c kadm.Config) bool { return c.Key == key })
			if at < 0 || have.Configs[at].MaybeValue() != *want {
				alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: key, Value: want})
			}
		}
		if len(alter) == 0 {
			continue
		}
		answers, err := p.adm.AlterTopicConfigs(ctx, alter, name.In(p.o.Kafka.Namespace))
		for _, a := range answers {
			err = errors.Join(err, a.Err)
		}
		if err != nil {
			return away(fmt.Errorf("settings of topic %s: %w", name, err))
		}
		if !slices.Contains(p.report.Altered, name) {
			p.report.Altered = append(p.report.Altered, name)
		}
	}
	return nil
}

// commitOffsets gives every group offset 0 on every partition where it has none:
// groups have no reset policy, so without it they would refuse to start.
func (p *provisioner) commitOffsets(ctx context.Context) error {
	for _, group := range groups() {
		name := group.In(p.o.Kafka.Namespace)
		committed, err := p.adm.FetchOffsets(ctx, name)
		if err == nil {
			err = committed.Error()
		}
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return away(fmt.Errorf("group %s: %w", group, err))
		}
		missing := kadm.Offsets{}
		n := 0
		for _, t := range topic.ReadBy(group) {
			for partition := range int32(p.counts[t]) {
				if o, ok := committed.Lookup(t.In(p.o.Kafka.Namespace), partition); !ok || o.At < 0 {
					missing.AddOffset(t.In(p.o.Kafka.Namespace), partition, 0, -1)
					n++
				}
			}
		}
		if n == 0 {
			continue
		}
		// Kafka takes a live group's offsets from its members only.
		err = p.adm.CommitAllOffsets(ctx, name, missing)
		if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.RebalanceInProgress) || errors.Is(err, kerr.NonEmptyGroup) {
			return fault.Fatal(fmt.Errorf("group %s reads %s for the first time, but has running members: stop the services of that group, run provision again, then start them: %w",
				name, strings.Join(missing.TopicsSet().Topics(), ", "), err))
		}
		if err != nil {
			return away(fmt.Errorf("group %s: %w", group, err))
		}
		crash.At(crash.ProvisionCommitted)
		p.report.Offsets += n
	}
	return nil
}

func groups() []topic.Group {
	var all []topic.Group
	for _, t := range topic.Catalogue() {
		for _, g := range t.Readers {
			if !slices.Contains(all, g) {
				all = append(all, g)
			}
		}
	}
	return all
}

func (p *provisioner) registerSchemas(ctx context.Context) error {
	for _, t := range topic.Catalogue() {
		// Looked up first, so that the report tells what is new.
		if _, _, err := kafka.SchemaID(ctx, p.registry, t, p.o.Kafka.Namespace, false); err == nil {
			continue
		}
		if _, _, err := kafka.SchemaID(ctx, p.registry, t, p.o.Kafka.Namespace, true); err != nil {
			return err
		}
		p.report.Schemas = append(p.report.Schemas, t.Name)
	}
	return nil
}

func (p *provisioner) migrate(ctx context.Context) error {
	if p.o.Migrate == nil {
		return nil
	}
	applied, err := p.o.Migrate(ctx)
	p.report.Migrations = append(p.report.Migrations, applied...)
	return err
}
