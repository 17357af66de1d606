// Package topic is the catalogue: the one list of topics, what they hold, how
// they are keyed, kept and partitioned, and which service writes and reads
// each. The edge between two services is a row here and nothing else; a topic
// name as a string literal anywhere else is a bug.
package topic

import "time"

// Name is a topic's name without the namespace, as records and headers carry it.
type Name string

// The topics in use. A row is added by the change that needs it.
const (
	Definitions         Name = "definitions"
	Imports             Name = "imports"
	ImportRejects       Name = "import-rejects"
	Exports             Name = "exports"
	ProfileUpdates      Name = "profile-updates"
	SegmentMembers      Name = "segment-members"
	Events              Name = "events"
	Ticks               Name = "ticks"
	Profiles            Name = "profiles"
	PersonState         Name = "person-state"
	RunRequests         Name = "run-requests"
	Runs                Name = "runs"
	RunShards           Name = "run-shards"
	Candidates          Name = "candidates"
	MessageRequestsBulk Name = "message-requests.bulk"
	MessagesEmailBulk   Name = "messages.email.bulk"
	RetriesEmail        Name = "retries.email"
	Outcomes            Name = "outcomes"
	Engagements         Name = "engagements"
	Spools              Name = "spools"
	Erasures            Name = "erasures"

	DeadLettersImporter  Name = "dead-letters.importer"
	DeadLettersResolver  Name = "dead-letters.audience-resolver"
	DeadLettersRenderer  Name = "dead-letters.renderer"
	DeadLettersSender    Name = "dead-letters.sender"
	DeadLettersCollector Name = "dead-letters.event-collector"
	DeadLetterMarks      Name = "dead-letter-marks"
)

// Group is a consumer group's name without the namespace.
type Group string

// The consumer groups. A service that reads a topic as a table (whole, without
// a group) is listed under TableOf instead.
const (
	GroupPersonLoop Group = "audience-resolver"
	GroupShardLoop  Group = "audience-resolver.shards"
	GroupRenderer   Group = "renderer"
	GroupSender     Group = "sender"
	GroupSink       Group = "event-collector"
)

// Cleanup is Kafka's cleanup.policy.
type Cleanup string

// The two policies in use.
const (
	Log     Cleanup = "delete"
	Compact Cleanup = "compact"
)

// Lifetimes. Compacted topics keep for ever (retention -1): kfake applies
// retention.ms to them too.
const (
	day     = 24 * time.Hour
	Forever = -1 * time.Millisecond

	// DeleteRetention is how long a compacted topic keeps tombstones. A local
	// store idle for longer than half of it must be thrown away and rebuilt.
	DeleteRetention = 7 * day
)

// MaxRecordBytes is the largest value a service may produce; the broker's own
// limit (MaxMessageBytes) leaves room for the batch around it.
const (
	MaxRecordBytes  = 1 << 20
	MaxMessageBytes = 2 << 20
)

// DefaultPersonPartitions is P, the partition count that all person topics
// share unless a namespace is provisioned with another.
const DefaultPersonPartitions = 16

// Topic is one row of the catalogue.
type Topic struct {
	Name    Name
	Record  string // Avro record, as in schemas/avro
	Key     string // what the key is, in words of the glossary
	Person  bool   // shares P and is partitioned by the person (or by what Key says)
	Cleanup Cleanup
	Retain  time.Duration // Forever, or retention.ms
	Bounded bool          // bounded in bytes in the embedded stack, which holds its log in memory after a kill
	Writers []string      // services
	Readers []Group       // groups; each gets the committed offset 0 when the topic is made
	TableOf []string      // services that read it whole, without a group
}

// PartitionCount is p for person topics and 1 for all others.
func (t Topic) PartitionCount(p int) int {
	if t.Person {
		return p
	}
	return 1
}

// ByKey reports whether a record lies on the partition of its key.
func (t Topic) ByKey() bool { return t.Person && (t.Key == "user_id" || t.Key == "campaign_id") }

// Service names, as in topic rows, metrics and logs.
const (
	Importer  = "importer"
	Resolver  = "audience-resolver"
	Renderer  = "renderer"
	Sender    = "sender"
	Collector = "event-collector"
	Console   = "console"
)

// Catalogue returns every topic, in the order in which data flows.
func Catalogue() []Topic {
	return []Topic{
		{Name: Definitions, Record: "Definition", Key: "kind/id@version, kind/id", Cleanup: Compact, Retain: Forever,
			Writers: []string{Console, Importer}, TableOf: []string{Importer, Resolver, Renderer, Console}},
		{Name: Imports, Record: "Import", Key: "import_id", Cleanup: Compact, Retain: Forever,
			Writers: []string{Importer, Console}, Readers: []Group{GroupSink}, TableOf: []string{Importer, Collector, Console}},
		{Name: ImportRejects, Record: "ImportReject", Key: "import_id", Cleanup: Log, Retain: 30 * day,
			Writers: []string{Importer}, TableOf: []string{Importer}},
		{Name: Exports, Record: "Export", Key: "export_id", Cleanup: Compact, Retain: Forever,
			Writers: []string{Console, Importer}, TableOf: []string{Importer, Console}},
		{Name: ProfileUpdates, Record: "ProfilePatch", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Importer, Collector, Console}, Readers: []Group{GroupPersonLoop}},
		{Name: SegmentMembers, Record: "SegmentMember", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Importer}, Readers: []Group{GroupPersonLoop, GroupSink}},
		{Name: Events, Record: "Event", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Importer, Collector}, Readers: []Group{GroupSink}},
		{Name: Ticks, Record: "Tick", Key: "partition", Person: true, Cleanup: Log, Retain: time.Hour,
			Writers: []string{Resolver}, Readers: []Group{GroupPersonLoop}},
		{Name: Profiles, Record: "Profile", Key: "user_id", Person: true, Cleanup: Compact, Retain: Forever,
			Writers: []string{Resolver}, Readers: []Group{GroupSink}, TableOf: []string{Resolver}},
		{Name: PersonState, Record: "PersonState", Key: "user_id/kind", Person: true, Cleanup: Compact, Retain: Forever,
			Writers: []string{Resolver}, TableOf: []string{Resolver}},
		{Name: RunRequests, Record: "RunRequest", Key: "campaign_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Console}, Readers: []Group{GroupPersonLoop}},
		{Name: Runs, Record: "Run", Key: "run_id, run_id/shard, run_id/partition", Cleanup: Compact, Retain: Forever,
			Writers: []string{Resolver}, Readers: []Group{GroupSink}, TableOf: []string{Resolver, Sender}},
		{Name: RunShards, Record: "RunShard", Key: "run_id/shard", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Resolver}, Readers: []Group{GroupShardLoop}},
		{Name: Candidates, Record: "Candidate", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Resolver}, Readers: []Group{GroupPersonLoop}},
		{Name: MessageRequestsBulk, Record: "MessageRequest", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Resolver}, Readers: []Group{GroupRenderer, GroupSink}},
		{Name: MessagesEmailBulk, Record: "Message", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day, Bounded: true,
			Writers: []string{Renderer}, Readers: []Group{GroupSender}},
		{Name: RetriesEmail, Record: "Message", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day, Bounded: true,
			Writers: []string{Sender}, Readers: []Group{GroupSender}},
		{Name: Outcomes, Record: "Outcome", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Resolver, Renderer, Sender, Collector}, Readers: []Group{GroupPersonLoop, GroupSink}},
		{Name: Engagements, Record: "Engagement", Key: "user_id", Person: true, Cleanup: Log, Retain: 14 * day,
			Writers: []string{Collector}, Readers: []Group{GroupSink}, TableOf: []string{Sender}},
		{Name: Spools, Record: "Spool", Key: "spool", Cleanup: Compact, Retain: Forever,
			Writers: []string{Collector, Console}, TableOf: []string{Resolver}},
		{Name: Erasures, Record: "Erasure", Key: "person", Cleanup: Compact, Retain: Forever,
			Writers: []string{Console}, TableOf: []string{Collector, Console}},
		deadLetters(DeadLettersImporter, Importer),
		deadLetters(DeadLettersResolver, Resolver),
		deadLetters(DeadLettersRenderer, Renderer),
		deadLetters(DeadLettersSender, Sender),
		deadLetters(DeadLettersCollector, Collector),
		// A mark is written after its dead letter and kept three times as long: none outlives its mark.
		{Name: DeadLetterMarks, Record: "DeadLetterMark", Key: "service topic/partition@offset", Cleanup: Log, Retain: 90 * day,
			Writers: []string{Console}, TableOf: []string{Console}},
	}
}

func deadLetters(n Name, service string) Topic {
	return Topic{Name: n, Record: "DeadLetter", Key: "the original record's", Cleanup: Log, Retain: 30 * day, Writers: []string{service}, TableOf: []string{Console}}
}

// ByName returns the row of a topic.
func ByName(n Name) (Topic, bool) {
	for _, t := range Catalogue() {
		if t.Name == n {
			return t, true
		}
	}
	return Topic{}, false
}

// ReadBy returns the topics that a group reads, in catalogue order.
func ReadBy(g Group) []Name {
	var out []Name
	for _, t := range Catalogue() {
		for _, r := range t.Readers {
			if r == g {
				out = append(out, t.Name)
			}
		}
	}
	return out
}

// DeadLetters returns the dead-letter topic of a service.
func DeadLetters(service string) Name { return Name("dead-letters." + service) }

// In returns the name that Kafka knows: <namespace>.<topic>.
func (n Name) In(namespace string) string { return namespace + "." + string(n) }

// Subject returns the Schema Registry subject of the topic's values.
func (n Name) Subject(namespace string) string { return n.In(namespace) + "-value" }

// In returns the group id that Kafka knows: <namespace>.<group>.
func (g Group) In(namespace string) string { return namespace + "." + string(g) }
