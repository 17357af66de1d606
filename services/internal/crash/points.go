package crash

import "github.com/hikyaku/hikyaku/schemas/topic"

// The points. Each is passed at one place in the code, stands in one line of the
// failure table in docs/architecture.md, and has a case in services/e2e/crash_test.go.
const (
	// The importer, which owns a transactional id per import.
	ImporterOpened    Point = "importer.opened"    // the import's id is open, its former owner fenced; nothing is written
	ImporterProduced  Point = "importer.produced"  // rows lie in the open transaction, their progress does not
	ImporterMarked    Point = "importer.marked"    // rows and progress lie in the open transaction
	ImporterCommitted Point = "importer.committed" // the transaction has ended, the importer does not know
	ImporterArrived   Point = "importer.arrived"   // all rows have been loaded, the state still says published
	ImporterPointed   Point = "importer.pointed"   // the segment points at the import, no file is written
	ImporterRejects   Point = "importer.rejects"   // the reject file is written, the report is not
	ImporterUndone    Point = "importer.undone"    // the import says that it is undone, its segment is still made up of it
	ImporterReported  Point = "importer.reported"  // the report is written, the state does not say done or failed

	// The importer's exports, each with a transactional id of its own.
	ExportOpened     Point = "export.opened"     // the export's id is open, its former owner fenced; nothing is written
	ExportBegun      Point = "export.begun"      // the attempt is on record, nothing is cleared or uploaded
	ExportWritten    Point = "export.written"    // all files are uploaded, nothing says that they are the export
	ExportSealed     Point = "export.sealed"     // Kafka says so, there is no manifest
	ExportManifested Point = "export.manifested" // the manifest is there, the state does not say done

	// Whoever writes definitions: hikyaku apply, and an importer that moves a segment.
	DefinitionsOpened    Point = "definitions.opened"    // the id of all writers is open; nothing is written
	DefinitionsProduced  Point = "definitions.produced"  // the versions lie in the open transaction
	DefinitionsCommitted Point = "definitions.committed" // they are in force, the writer does not know

	// hikyaku start.
	StartRequested Point = "start.requested" // the request is in Kafka, nobody was told the run's id

	// hikyaku erase.
	EraseAsked Point = "erase.asked" // the patch that erases is written, no sink is told
	EraseNamed Point = "erase.named" // sinks know whom to leave out, all rows are there
	EraseTable Point = "erase.table" // a table is without the person, the next one, or the funnels that are kept, are not

	// The resolver: the store of its person loop, its driver, its clock.
	PersonStored    Point = "person.stored"    // the batch is in Kafka and in the store
	PersonForgotten Point = "person.forgotten" // an outdated store is empty, nothing is replayed yet
	PersonRestoring Point = "person.restoring" // replayed, the mark of the end is not written
	PersonRestored  Point = "person.restored"  // the store is up to date, nothing is decided from it yet
	DriverCounted   Point = "driver.counted"   // the audience is counted, no tick has written it
	DriverCompared  Point = "driver.compared"  // both countings of a run are compared, no tick has written it
	TicksWritten    Point = "ticks.written"    // one partition has its tick, the next has not

	// The sender, beside its loop: between it and the mail server.
	SenderInvited Point = "sender.invited" // the server waits for the message, nothing of which is sent
	SenderAsked   Point = "sender.asked"   // the message's last byte is sent, the answer not read

	// The sink, beside its loop.
	SinkGathered Point = "sink.gathered" // a batch is read, nothing of it is inserted
	SinkBetween  Point = "sink.between"  // a table has its rows, the next has not

	// The collector's intake.
	IntakeDecided           Point = "intake.decided"           // a request is read, nothing is given to Kafka
	IntakePartly            Point = "intake.partly"            // a record of the request is acknowledged
	IntakeAcknowledged      Point = "intake.acknowledged"      // all are, the client has no answer
	TrackingAcknowledged    Point = "tracking.acknowledged"    // the open or click is, the reader has no answer
	UnsubscribeAcknowledged Point = "unsubscribe.acknowledged" // the unsubscription is, the person has no answer

	// The spool of the collector's intake.
	SpoolAppended Point = "spool.appended" // the records are in the spool, the client has no answer
	SpoolDrained  Point = "spool.drained"  // Kafka has acknowledged them, the spool's mark does not say so

	// Provisioning.
	ProvisionCreated   Point = "provision.created"   // a topic is made, the next is not
	ProvisionCommitted Point = "provision.committed" // a group has its first offsets, the next has not
	ProvisionMigrated  Point = "provision.migrated"  // a statement has run, its migration is not noted
)

// Step is an instant in one of the loops of services/internal/kafka, which are shared: the
// loop's group makes a Point of it.
type Step string

// The steps of a Transform loop.
const (
	Opened    Step = "opened"    // the transactional id is open, which aborts what a former self left; the group is not joined
	Decided   Step = "decided"   // an output of the batch is about to be produced
	Produced  Step = "produced"  // an output is acknowledged in the open transaction
	Committed Step = "committed" // a transaction with outputs has ended, the transformer does not know
)

// The steps of an Effect loop.
const (
	Done     Step = "done"     // the effect is durable, the offset is not committed
	Parked   Step = "parked"   // the dead letter is acknowledged, the offset not committed
	Passed   Step = "passed"   // the offset is committed, the next batch not begun
	Retrying Step = "retrying" // a batch waits for who is away, what was done before it is committed
)

// The steps of a claim loop.
const (
	Recovered  Step = "recovered"  // a former claim is read, nothing of it is settled
	Unresolved Step = "unresolved" // it is decided what settles a record without an answer, nothing is produced
	Claiming   Step = "claiming"   // records are chosen, the claim is not committed
	Claimed    Step = "claimed"    // the claim is committed, the call not begun
	Answered   Step = "answered"   // the call has ended, its outcome is not produced
	Retried    Step = "retried"    // the retry is acknowledged, the outcome deferred not produced
	Parking    Step = "parking"    // of a dead letter and its outcome one is acknowledged, the other is not
	Buried     Step = "buried"     // both are, the offset has not passed
	Settled    Step = "settled"    // the outcome is acknowledged, the offset has not passed
	Tidied     Step = "tidied"     // the exact prefix is committed, nothing is claimed
)

// A loop's name is the first half of its points.
var loops = []struct {
	group topic.Group
	name  string
	steps []Step
}{
	{topic.GroupPersonLoop, "person", []Step{Opened, Decided, Produced, Committed}},
	{topic.GroupShardLoop, "shards", []Step{Opened, Decided, Produced, Committed}},
	{topic.GroupRenderer, "renderer", []Step{Opened, Decided, Produced, Committed}},
	{topic.GroupSender, "sender", []Step{Recovered, Unresolved, Claiming, Claimed, Answered, Retried, Parking, Buried, Settled, Tidied}},
	{topic.GroupSink, "sink", []Step{Retrying, Parked, Done, Passed}},
}

// Of is the point at which the loop of a group passes the step; "" for a group
// that is none of ours.
func (s Step) Of(group topic.Group) Point {
	for _, l := range loops {
		if l.group == group {
			return Point(l.name + "." + string(s))
		}
	}
	return ""
}

// Points are all points.
func Points() []Point {
	all := []Point{
		ImporterOpened, ImporterProduced, ImporterMarked, ImporterCommitted, ImporterArrived, ImporterPointed, ImporterRejects, ImporterReported, ImporterUndone,
		ExportOpened, ExportBegun, ExportWritten, ExportSealed, ExportManifested,
		DefinitionsOpened, DefinitionsProduced, DefinitionsCommitted, StartRequested, EraseAsked, EraseNamed, EraseTable,
		PersonStored, PersonForgotten, PersonRestoring, PersonRestored, DriverCounted, DriverCompared, TicksWritten,
		SenderInvited, SenderAsked, SinkGathered, SinkBetween,
		IntakeDecided, IntakePartly, IntakeAcknowledged, TrackingAcknowledged, UnsubscribeAcknowledged, SpoolAppended, SpoolDrained,
		ProvisionCreated, ProvisionCommitted, ProvisionMigrated,
	}
	for _, l := range loops {
		for _, s := range l.steps {
			all = append(all, s.Of(l.group))
		}
	}
	return all
}
