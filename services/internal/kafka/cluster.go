package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Cluster is one service instance's view of Kafka and the Schema Registry. Its
// methods may be called concurrently after Start.
type Cluster struct {
	cfg             Config
	service, member string
	tel             *telemetry.Telemetry
	log             *slog.Logger
	metrics         *metrics
	watch           *brokerWatch
	breaker         *breaker

	catalogue map[topic.Name]topic.Topic
	names     map[string]topic.Name // Kafka's name → ours

	registry *sr.Client
	writers  sync.Map // schema id → *writer

	// Set by Start, read-only afterwards.
	admin *kgo.Client
	adm   *kadm.Client
	p     int
	homes map[topic.Name]home
}

// home is where a topic's records go and how they are written, looked up once for each
// record.
type home struct {
	kafkaTopic string
	partitions int
	record     string
	schemaID   int // under which this service writes
}

// What Health calls the parts of Kafka.
const (
	componentKafka    = "kafka"
	componentTopics   = "topics"
	componentRegistry = "schema registry"
)

// New checks the settings and opens nothing. The service names the metrics and
// the dead-letter topic, and with the instance the member.
func New(cfg Config, service string, tel *telemetry.Telemetry) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	registry, err := sr.NewClient(
		sr.URLs(cfg.RegistryURL),
		sr.HTTPClient(&http.Client{Timeout: 5 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("building the Schema Registry client for %s: %w", cfg.RegistryURL, err)
	}
	c := &Cluster{
		cfg: cfg, service: service, member: service + "-" + cfg.Instance,
		tel: tel, log: tel.Log,
		metrics:   newMetrics(tel.Registry),
		watch:     &brokerWatch{health: tel.Health},
		breaker:   &breaker{limit: cfg.DeadLettersPerMinute},
		catalogue: map[topic.Name]topic.Topic{}, names: map[string]topic.Name{},
		registry: registry,
	}
	tel.SetMember(c.member)
	for _, t := range topic.Catalogue() {
		c.catalogue[t.Name] = t
		c.names[t.Name.In(cfg.Namespace)] = t.Name
	}
	return c, kgo.ValidateOpts(append(c.clientOptions(""), c.producerOptions()...)...)
}

// P is the partition count of person topics. Zero before Start.
func (c *Cluster) P() int { return c.p }

// Namespace prefixes all that this installation calls its own.
func (c *Cluster) Namespace() string { return c.cfg.Namespace }

// Service is the service's name.
func (c *Cluster) Service() string { return c.service }

// Member is <service>-<instance>: the name by which this instance's former self
// is known after a restart.
func (c *Cluster) Member() string { return c.member }

// NameOf is a topic's name without the namespace; that of a topic outside the
// catalogue is Kafka's own, without the namespace if it has it.
func (c *Cluster) NameOf(kafkaTopic string) topic.Name {
	if n, ok := c.names[kafkaTopic]; ok {
		return n
	}
	return topic.Name(strings.TrimPrefix(kafkaTopic, c.cfg.Namespace+"."))
}

// home is a topic's. Only after Start.
func (c *Cluster) home(name topic.Name) (home, error) {
	h, ok := c.homes[name]
	if !ok {
		return home{}, fault.Fatal(fmt.Errorf("topic %s is not in the catalogue", name))
	}
	return h, nil
}

// Start waits for broker, topics and registry for as long as ctx lives, saying so
// in Health; then the cluster can be used. A partition count that contradicts
// the catalogue and a schema that the registry refuses are Fatal.
func (c *Cluster) Start(ctx context.Context) error {
	// Whoever asks waits and says what for, so the client must tell soon.
	admin, err := kgo.NewClient(append(c.clientOptions("admin"), kgo.RequestRetries(3))...)
	if err != nil {
		return fmt.Errorf("building the Kafka client: %w", err)
	}
	c.admin, c.adm = admin, kadm.NewClient(admin)
	if err := c.await(ctx, componentTopics, c.checkPartitions); err != nil {
		return err
	}
	return c.await(ctx, componentRegistry, c.resolveSchemas)
}

// Close ends the connections that Start opened.
func (c *Cluster) Close() {
	if c.admin != nil {
		c.admin.Close()
	}
}

// await repeats look until it succeeds, is refused for good, or ctx ends.
func (c *Cluster) await(ctx context.Context, component string, look func(context.Context) error) error {
	pause := newBackoff()
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := look(attempt)
		cancel()
		switch {
		case err == nil:
			c.tel.Health.Set(component, nil)
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for %s: %w", component, ctx.Err())
		case fault.ClassOf(err) != fault.ClassTransient:
			return err
		}
		c.tel.Health.Set(component, err)
		if !pause.wait(ctx, nil) {
			return fmt.Errorf("waiting for %s: %w", component, ctx.Err())
		}
	}
}

// checkPartitions compares the cluster with the catalogue: all person topics have
// one count P, all others one partition. Otherwise partition i of two topics
// would be two sets of people.
func (c *Cluster) checkPartitions(ctx context.Context) error {
	counts, err := PartitionCounts(ctx, c.adm, c.cfg.Namespace)
	if err != nil {
		return fault.Transient(fmt.Errorf("looking at the topics of namespace %s: %w", c.cfg.Namespace, err))
	}
	var missing []string
	for _, t := range topic.Catalogue() {
		if counts[t.Name] == 0 {
			missing = append(missing, string(t.Name))
		}
	}
	if len(missing) > 0 {
		sort.Strings(missing)
		return fault.Transient(fmt.Errorf("namespace %s has no topic %s; provision makes them", c.cfg.Namespace, strings.Join(missing, ", ")))
	}
	p := counts[topic.ProfileUpdates]
	if err := CheckPartitionCounts(counts, p, c.cfg.Namespace); err != nil {
		return fault.Fatal(err)
	}
	c.p = p
	return nil
}

// PartitionCounts returns the partition count of every topic of the catalogue that
// exists.
func PartitionCounts(ctx context.Context, adm *kadm.Client, namespace string) (map[topic.Name]int, error) {
	names := map[string]topic.Name{}
	var ask []string
	for _, t := range topic.Catalogue() {
		n := t.Name.In(namespace)
		names[n] = t.Name
		ask = append(ask, n)
	}
	details, err := adm.ListTopics(ctx, ask...)
	if err != nil {
		return nil, err
	}
	counts := map[topic.Name]int{}
	for _, d := range details {
		switch {
		case d.Err == nil:
			counts[names[d.Topic]] = len(d.Partitions)
		case !isMissingTopic(d.Err):
			return nil, fmt.Errorf("looking at topic %s: %w", d.Topic, d.Err)
		}
	}
	return counts, nil
}

// CheckPartitionCounts returns an error that names every existing topic whose
// count is not the catalogue's for P = p, and the mend.
func CheckPartitionCounts(counts map[topic.Name]int, p int, namespace string) error {
	var wrong []error
	for _, t := range topic.Catalogue() {
		have := counts[t.Name]
		if want := t.PartitionCount(p); have != 0 && have != want {
			wrong = append(wrong, fmt.Errorf("topic %s has %d partitions, the catalogue wants %d", t.Name.In(namespace), have, want))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%w\npartition counts cannot be changed in place, because people would move between partitions: "+
		"provision another NAMESPACE with the count you want and fill it by replay, or, if nothing in namespace %s is worth keeping, delete its topics and provision again",
		errors.Join(wrong...), namespace)
}

// backoff grows from a tenth of a second to five.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{100 * time.Millisecond} }

func (b *backoff) reset() { b.next = 100 * time.Millisecond }

func (b *backoff) grow() { b.next = min(2*b.next, 5*time.Second) }

// wait is waitFor the next pause; the one after it is longer.
func (b *backoff) wait(ctx context.Context, stop <-chan struct{}) bool {
	d := b.next
	b.grow()
	return waitFor(ctx, d, stop)
}

// waitFor pauses for d and reports false when ctx ended or stop was closed meanwhile.
func waitFor(ctx context.Context, d time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-stop:
	}
	return false
}
